"""Calls over whatever connection there is: each within its time, and sent again where that is safe and wanted."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec import Raw

from gateway.client.backoff import Backoff
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, CallError, failure
from gateway.client.link import Link
from gateway.client.pending import Progress
from gateway.errors import TIMEOUT
from gateway.rpc import jsonrpc

RETRY: Final = (0.1, 5.0)
"""The ceilings, in seconds, of the pauses before a call is sent again."""


class Caller:
    """Makes calls. ``usable`` waits for a connection, or raises `ConnectionLost` where there will be none."""

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
        progress: Progress | None = None,
    ) -> Any:
        """Call, and return the result; see `Client.call`."""
        encoded = encode_params(params)
        deadline = asyncio.get_running_loop().time() + timeout
        backoff = Backoff(*RETRY)
        sent = False
        last: CallError | None = None
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    link = await self._usable()
                    sent = True
                    try:
                        if node is None:
                            return await link.request(method, encoded, progress=progress)
                        left = deadline - asyncio.get_running_loop().time()
                        routed = _to_node(link, node, method, encoded, left)
                        return await link.request("node.call", routed, progress=progress)
                    except CallError as error:
                        if not (retry and error.may_be_sent_again):
                            raise
                        last, sent = error, False
                    await asyncio.sleep(backoff.pause(last.retry_after or 0.0))
        except TimeoutError:
            if last is not None and not sent:
                raise last from None  # it says more
            raise timed_out(method, timeout, sent=sent) from None

    async def notify(self, method: str, params: object, timeout: float) -> None:
        """Send a notification; see `Client.notify`."""
        encoded = encode_params(params)
        data = _notification(method, encoded)
        sent = False
        try:
            async with asyncio.timeout(timeout):
                link = await self._usable()
                link.require_size(data)
                sent = True
                await link.send(data)
        except TimeoutError:
            raise timed_out(method, timeout, sent=sent) from None

    async def batch(self, requests: list[tuple[str, Any]], timeout: float) -> list[Any]:
        """Send requests in one message; see `Client.batch`."""
        encoded = [(method, encode_params(params)) for method, params in requests]
        if not encoded:
            return []
        sent = False
        try:
            async with asyncio.timeout(timeout):
                link = await self._usable()
                sent = True
                return await link.batch(encoded)
        except TimeoutError:
            return [timed_out(method, timeout, sent=sent) for method, _ in encoded]
        except CallError as error:
            return [copy.copy(error) for _ in encoded]


def encode_params(params: object) -> Raw | None:
    """As JSON. Raises TypeError for what is neither None nor becomes an array or an object."""
    if params is None:
        return None
    encoded = jsonrpc.encode(params)
    if encoded[0] not in jsonrpc.STRUCTURED:
        raise TypeError(f"params must be an array or an object in JSON, not {type(params).__name__}")
    return Raw(encoded)


def timed_out(method: str, timeout: float, *, sent: bool) -> CallError:
    """The call was not answered in time."""
    return failure(TIMEOUT, f"{method}: {timeout} s", outcome=UNKNOWN if sent else NOT_DELIVERED)


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
