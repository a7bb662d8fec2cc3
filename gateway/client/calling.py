"""Calls over the current link: each within its timeout, and sent again if that is safe and wanted.

Steps are requests that may be repeated in any case: to subscribe, to register.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

from msgspec import Raw

from gateway.client.backoff import Backoff
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, CallError, ConnectionLost, failure
from gateway.client.link import Link
from gateway.client.sending.encoding import encode
from gateway.client.sending.outbox import Outgoing
from gateway.client.sending.pending import Progress
from gateway.errors import TIMEOUT
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)

T = TypeVar("T")
Step = Callable[[Link], Awaitable[None]]
"""A request, or several, over this link. Raises `CallError`."""

RETRY: Final = (0.1, 5.0)
"""The lowest and the highest ceiling, in seconds, of the pauses before a call is sent again."""


class Caller:
    """Makes calls. ``usable`` waits for a link, or raises `ConnectionLost` if there will be none."""

    def __init__(self, usable: Callable[[], Awaitable[Link]]) -> None:
        self._usable = usable

    async def call(
        self,
        method: str,
        params: object,
        timeout: float,
        *,
        node: str | None = None,
        retry: bool = False,
        raw: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Call a method and return its result; see `Client.call`."""
        encoded = encode_params(params)
        deadline = asyncio.get_running_loop().time() + timeout
        backoff = Backoff(*RETRY)
        message = Outgoing()
        last: CallError | None = None

        async def ask(link: Link) -> Any:
            return await link.call(message, lambda: _asked(link, node, method, encoded, deadline), progress, raw=raw)

        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        return await self._over_a_link(message, ask)
                    except CallError as error:
                        if not (retry and error.may_be_sent_again):
                            raise
                        last, message = error, Outgoing()
                    await asyncio.sleep(backoff.pause(last.retry_after or 0.0))
        except TimeoutError:
            if last is not None and not message.left:
                raise last from None  # it says more
            raise timed_out(method, timeout, sent=message.left) from None

    async def notify(self, method: str, params: object, timeout: float) -> None:
        """Send a notification; see `Client.notify`."""
        encoded = encode_params(params)
        data = _notification(method, encoded)
        message = Outgoing()
        try:
            async with asyncio.timeout(timeout):
                await self._over_a_link(message, lambda link: link.send(data, message))
        except TimeoutError:
            raise timed_out(method, timeout, sent=message.left) from None

    async def batch(self, requests: list[tuple[str, Any]], timeout: float) -> list[Any]:
        """Send requests in one message, and return what came of each; see `Client.batch`."""
        encoded = [(method, encode_params(params)) for method, params in requests]
        if not encoded:
            return []
        message = Outgoing()
        try:
            async with asyncio.timeout(timeout):
                return await self._over_a_link(message, lambda link: link.batch(message, encoded))
        except TimeoutError:
            return [timed_out(method, timeout, sent=message.left) for method, _ in encoded]
        except CallError as error:
            return [copy.copy(error) for _ in encoded]

    async def _over_a_link(self, message: Outgoing, send: Callable[[Link], Awaitable[T]]) -> T:
        """Have the message sent over the link, or over a later one as long as it has not left. Raises `CallError`."""
        while True:
            link = await self._usable()
            try:
                return await send(link)
            except ConnectionLost:
                if message.left or link.usable:
                    raise

    async def until_done(self, step: Step, done: Callable[[], bool], name: str, timeout: float) -> None:
        """Take a step, on the current link or on later ones, until it is done; ``name`` is the method in an error.

        Raises `CallError`: the step's own, or ``timeout``.
        """
        sent = False
        try:
            async with asyncio.timeout(timeout):
                while not done():
                    link = await self._usable()
                    sent = True
                    try:
                        await step(link)
                    except ConnectionLost:
                        await asyncio.sleep(0)  # the task that reads has to notice it first
        except TimeoutError:
            raise timed_out(name, timeout, sent=sent) from None


async def restore(link: Link, steps: Iterable[Step], timeout: float) -> None:
    """Take each step on this link, again after a temporary failure or ``timeout`` seconds without an answer.

    A step that fails for good is logged, and the next one follows. Returns when the link is no longer usable.
    """
    for step in steps:
        backoff = Backoff(*RETRY)
        while link.usable:
            try:
                async with asyncio.timeout(timeout):
                    await step(link)
                break
            except TimeoutError:
                continue
            except CallError as error:
                if not error.temporary:
                    logger.error("what went on before cannot go on: %s", error)
                    break
                await asyncio.sleep(backoff.pause(error.retry_after or 0.0))


def encode_params(params: object) -> Raw | None:
    """Return the params as JSON, or None for None.

    Raises TypeError for what does not become an array or an object, and what `encode` raises.
    """
    if params is None:
        return None
    encoded = encode(params)
    if encoded[0] not in jsonrpc.STRUCTURED:
        raise TypeError(f"params must be an array or an object in JSON, not {type(params).__name__}")
    return Raw(encoded)


def timed_out(method: str, timeout: float, *, sent: bool) -> CallError:
    """Return the error of a call that was not answered in ``timeout`` seconds; ``sent``: it may have been run."""
    return failure(TIMEOUT, f"{method}: {timeout} s", outcome=UNKNOWN if sent else NOT_DELIVERED)


def _asked(link: Link, node: str | None, method: str, params: Raw | None, deadline: float) -> tuple[str, Raw | None]:
    """Return the method and the params of the request: a node is called by the gateway's method for that."""
    if node is None:
        return method, params
    return "node.call", _to_node(link, node, method, params, deadline - asyncio.get_running_loop().time())


def _to_node(link: Link, node: str, method: str, params: Raw | None, left: float) -> Raw:
    most = link.limit("maxCallTimeoutMs", 600_000)
    request: dict[str, object] = {"node": node, "method": method}
    if params is not None:
        request["params"] = params
    return Raw(jsonrpc.encode(request | {"timeoutMs": max(1, min(int(left * 1000), most))}))


def _notification(method: str, params: Raw | None) -> bytes:
    if params is not None:
        return jsonrpc.notification(method, params)
    return b'{"jsonrpc":"2.0","method":%b}' % jsonrpc.encode(method)
