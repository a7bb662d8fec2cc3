"""Calls over the current connection: each within its timeout, and sent again if that is safe and wanted.

Steps are requests that may be repeated in any case: to subscribe, to register.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Container, Iterable
from typing import Any, Final, NamedTuple, TypeVar

from msgspec import Raw

from gateway.client.backoff import Backoff
from gateway.client.connection import Connection
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, CallError, ConnectionLost, failure
from gateway.client.sending.encoding import encode
from gateway.client.sending.outbox import Outgoing
from gateway.client.sending.pending import Progress
from gateway.client.sending.session import Session
from gateway.client.sending.streams import Opening
from gateway.errors import TIMEOUT
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)

T = TypeVar("T")
Step = Callable[[Session], Awaitable[None]]
"""A request, or several, over this connection. Raises `CallError`."""

RETRY: Final = (0.1, 5.0)
"""The lowest and the highest ceiling, in seconds, of the pauses before a call is sent again."""


class ToNode(NamedTuple):
    """Which node is called, and for how long it is waited for.

    ``wait`` is seconds, for a node that is not there or does not serve the method yet. ``held``: whether to wait for
    one that has lost its link, and may come back.
    """

    node: str
    wait: float = 0.0
    held: bool = True


def to_node(node: str | None, wait: float, held: bool) -> ToNode | None:
    """Return which node to call, or None: the gateway decides. Raises ValueError for what needs a node without one."""
    if node is None and (wait or not held):
        raise ValueError("wait and held are for the call of a node")
    if not 0 <= wait < math.inf:
        raise ValueError("wait is seconds, from 0 on")
    return None if node is None else ToNode(node, wait, held)


class Caller:
    """Makes calls over a connection, and over later ones as long as it is not over."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._usable = connection.usable

    async def call(
        self,
        method: str,
        params: object,
        timeout: float,
        *,
        to: ToNode | None = None,
        retry: bool = False,
        raw: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Call a method and return its result; see `Client.call`."""
        encoded = encode_params(params)
        timeout += 0.0 if to is None else to.wait
        deadline = asyncio.get_running_loop().time() + timeout
        backoff = Backoff(*RETRY)
        message = Outgoing()
        last: CallError | None = None

        async def ask(session: Session) -> Any:
            return await session.call(
                message, lambda: _asked(session, to, method, encoded, deadline), progress, raw=raw
            )

        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        return await self._sent(message, ask)
                    except CallError as error:
                        if not (retry and error.may_be_sent_again) or self._connection.is_over:
                            raise
                        last, message = error, Outgoing()
                    await self._connection.over_within(backoff.pause(last.retry_after or 0.0))
        except TimeoutError:
            if last is not None and not message.left:
                raise last from None  # it says more
            raise timed_out(method, timeout, sent=message.left) from None

    async def stream(
        self, method: str, params: Raw | None, timeout: float, opening: Opening, *, to: ToNode | None, raw: bool
    ) -> Any:
        """Call a method as a stream and return its result; see `Client.stream`. ``timeout`` ends with the sending."""
        deadline = asyncio.get_running_loop().time() + timeout
        message = Outgoing()

        async def ask(session: Session) -> Any:
            limit.reschedule(deadline)

            def make() -> tuple[str, dict[str, Any] | Raw | None, float]:
                if not limit.expired():
                    limit.reschedule(None)
                return _streamed(session, to, method, params, timeout)

            return await session.stream(message, opening, make, raw=raw)

        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await self._sent(message, ask)
        except TimeoutError:
            raise timed_out(method, timeout, sent=message.left) from None

    async def notify(self, method: str, params: object, timeout: float) -> None:
        """Send a notification; see `Client.notify`."""
        encoded = encode_params(params)
        data = _notification(method, encoded)
        message = Outgoing()
        try:
            async with asyncio.timeout(timeout):
                await self._sent(message, lambda session: session.send(data, message))
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
                return await self._sent(message, lambda session: session.batch(message, encoded))
        except TimeoutError:
            return [timed_out(method, timeout, sent=message.left) for method, _ in encoded]
        except CallError as error:
            return [copy.copy(error) for _ in encoded]

    async def _sent(self, message: Outgoing, send: Callable[[Session], Awaitable[T]]) -> T:
        """Have the message sent over the connection, or a later one as long as it has not left. Raises `CallError`."""
        while True:
            session = await self._usable()
            try:
                return await send(session)
            except ConnectionLost:
                if message.left or session.usable:
                    raise

    async def until_done(self, step: Step, done: Callable[[], bool], name: str, timeout: float) -> None:
        """Take a step, on this connection or on later ones, until it is done; ``name`` is the method in an error.

        Raises `CallError`: the step's own, or ``timeout``.
        """
        sent = False
        try:
            async with asyncio.timeout(timeout):
                while not done():
                    session = await self._usable()
                    sent = True
                    try:
                        await step(session)
                    except ConnectionLost:
                        await asyncio.sleep(0)  # the task that reads has to notice it first
        except TimeoutError:
            raise timed_out(name, timeout, sent=sent) from None


async def restore(session: Session, steps: Iterable[Step], timeout: float) -> None:
    """Take each step on this connection, again after a temporary failure or ``timeout`` seconds without an answer.

    A step that fails for good is logged, and the next one follows. Returns when that is no longer usable.
    """
    for step in steps:
        backoff = Backoff(*RETRY)
        while session.usable:
            try:
                async with asyncio.timeout(timeout):
                    await step(session)
                break
            except TimeoutError:
                continue
            except CallError as error:
                if not error.temporary:
                    logger.error("what went on before cannot go on: %s", error)
                    break
                await asyncio.sleep(backoff.pause(error.retry_after or 0.0))


def cancelled(tasks: Iterable[asyncio.Task[Any]], *, but: Container[object]) -> list[asyncio.Task[Any]]:
    """Cancel the tasks, except for those in ``but``; return those that have yet to end."""
    ending = [task for task in tasks if task not in but]
    for task in ending:
        task.cancel()
    return ending


async def ended(tasks: Collection[asyncio.Task[Any]], timeout: float) -> None:
    """Wait for the tasks up to ``timeout`` seconds, then cancel the rest."""
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=timeout)
        for task in left:
            task.cancel()
        await asyncio.sleep(0)


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


def _asked(
    session: Session, to: ToNode | None, method: str, params: Raw | None, deadline: float
) -> tuple[str, Raw | None]:
    """Return the method and the params of the request: a node is called by the gateway's method for that."""
    if to is None:
        return method, params
    left = deadline - asyncio.get_running_loop().time() - to.wait
    return "node.call", Raw(jsonrpc.encode(_to_node(session, to, method, params, left)))


def _streamed(
    session: Session, to: ToNode | None, method: str, params: Raw | None, timeout: float
) -> tuple[str, dict[str, Any] | Raw | None, float]:
    """Return the method and the params of a stream's call, and the deadline that it gets, in seconds."""
    if to is None:
        return method, params, session.limit("callTimeoutMs", 30_000) / 1000
    request = _to_node(session, to, method, params, timeout)
    return "node.call", request, request["timeoutMs"] / 1000


def _to_node(session: Session, to: ToNode, method: str, params: Raw | None, timeout: float) -> dict[str, Any]:
    most = session.limit("maxCallTimeoutMs", 600_000)
    request: dict[str, Any] = {"node": to.node, "method": method}
    if params is not None:
        request["params"] = params
    if to.wait > 0:
        request["waitMs"] = _milliseconds(to.wait, most)
    if not to.held:
        request["held"] = False
    return request | {"timeoutMs": max(1, _milliseconds(timeout, most))}


def _milliseconds(seconds: float, most: int) -> int:
    return int(min(seconds * 1000, most))  # a time without end has no whole number


def _notification(method: str, params: Raw | None) -> bytes:
    if params is not None:
        return jsonrpc.notification(method, params)
    return b'{"jsonrpc":"2.0","method":%b}' % jsonrpc.encode(method)
