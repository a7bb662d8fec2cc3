"""A stream as its caller has it: the handle, and the opening that travels with the call."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

from msgspec import Raw

from gateway.client.errors import UNKNOWN, CallError, failure
from gateway.client.sending.flows import MAX_CREDIT, Flows, Sender, most_bytes
from gateway.errors import CANCELLED
from gateway.rpc import jsonrpc


class Opening(NamedTuple):
    """How a stream begins: its flows, and how many values and bytes are granted to the node with the call."""

    flows: Flows
    credit: int
    octets: int

    def request(self, session: Sender, request_id: bytes, method: str, params: dict[str, Any] | Raw | None) -> bytes:
        """Return the call, with its member ``stream``: in `node.call` that is one of the params, given as a dict."""
        stream = {"credit": self.credit, "bytes": min(self.octets, most_bytes(session))}
        if isinstance(params, dict):
            return jsonrpc.request(request_id, method, params | {"stream": stream})
        return b'%b,"stream":%b}' % (jsonrpc.request(request_id, method, params)[:-1], jsonrpc.encode(stream))

    def begin(self, session: Sender, stream_id: bytes, deadline: float) -> None:
        """Go on in this session, where the call has its place now, and renew the deadline, in seconds."""
        self.flows.inflow.open(self.credit, min(self.octets, most_bytes(session)))
        self.flows.begin(session, stream_id, deadline)


def opening(credit: int, nbytes: int, *, raw: bool = False) -> Opening:
    """Return how a stream begins; ``raw``: see `Inflow`. Raises ValueError for a credit or bytes out of bounds."""
    if not 1 <= credit <= MAX_CREDIT:
        raise ValueError(f"credit is a number of values from 1 to {MAX_CREDIT}")
    if nbytes < 1:
        raise ValueError("nbytes is a number of bytes from 1 on")
    return Opening(Flows("rpc.credit", "rpc.push", raw=raw), credit, nbytes)


class Stream:
    """A call whose values come as fast as they are read, and no faster: for ``async with``, whose end cancels it.

    ``async for`` yields the values, for one reader, and ends with the answer; it raises what `result` raises. A stream
    whose values are not read stands still as soon as its credit is used up, and then has no result either.
    """

    def __init__(self, opening: Opening, ask: Callable[[], Awaitable[Any]]) -> None:
        self._flows = opening.flows
        self._ask = ask
        self._task: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        """Begin the call. It does not wait until that is sent. Raises RuntimeError if the stream was entered before."""
        if self._task is not None:
            raise RuntimeError("a stream is used once")
        self._task = asyncio.create_task(self._run())
        return self

    async def _run(self) -> Any:
        try:
            result = await self._ask()
        except CallError as error:
            self._flows.end(error)
            raise
        except Exception as error:  # what the caller has given is no JSON
            self._flows.inflow.end(error)
            self._flows.end(_cancelled())
            raise
        except BaseException:
            self._flows.end(_cancelled(), drop=True)
            raise
        self._flows.end(None)
        return result

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._begun()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # asyncio is not to complain if the block has not asked for the result
        # It may have been cancelled before it ran at all.
        self._flows.end(_cancelled(), drop=True)

    def _begun(self) -> asyncio.Task[Any]:
        if self._task is None:
            raise RuntimeError("a stream begins with async with")
        return self._task

    def __aiter__(self) -> Self:
        self._begun()
        return self

    async def __anext__(self) -> Any:
        return await anext(self._flows.inflow)

    async def send(self, value: Any) -> None:
        """Push a value, which is any JSON, to the node. It waits until the node takes it, and while there is no link.

        Raises `CallError` if the stream is over or `end` was called; TypeError for a value that JSON does not hold;
        ValueError for text that is not Unicode, or if the message is larger than the gateway takes; RecursionError for
        a value that is nested too deeply.
        """
        self._begun()
        await self._flows.outflow.send(value)

    async def end(self) -> None:
        """Tell the node, after all values, that no more are pushed. Does nothing if the stream is over."""
        self._begun()
        await self._flows.outflow.finish()

    async def result(self) -> Any:
        """Wait for the method's result, and return it. Raises `CallError`, as `Client.call` does."""
        task = self._begun()
        await asyncio.wait([task])
        if task.cancelled():
            raise _cancelled()
        error = task.exception()
        if error is not None:
            raise copy.copy(error) if isinstance(error, CallError) else error
        return task.result()


def _cancelled() -> CallError:
    return failure(CANCELLED, "the stream was left", outcome=UNKNOWN)
