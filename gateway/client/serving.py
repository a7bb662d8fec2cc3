"""Methods that this client serves: as a node to whoever calls it, and to the gateway itself."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from gateway.client.errors import NOT_DELIVERED, CallError, ConnectionLost, failure
from gateway.client.link import Incoming, Link
from gateway.errors import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, OVERLOADED, RETRY_BUSY_MS
from gateway.rpc import jsonrpc

logger = logging.getLogger(__name__)

Handler = Callable[[Any, "ServedCall"], Any]
HandlerT = TypeVar("HandlerT", bound=Handler)


class _Context(msgspec.Struct, rename="camel"):
    caller: str = ""
    time_left_ms: int | None = None


class ServedCall:
    """One call that is being served. ``caller`` is the caller's name, empty where the gateway itself calls."""

    def __init__(self, link: Link, message: Incoming, context: _Context) -> None:
        self._link = link
        self._until = None if context.time_left_ms is None else time.monotonic() + context.time_left_ms / 1000
        self.identity: Final = bytes(message.id)
        self.method: Final = message.method
        self.caller: Final = context.caller

    @property
    def time_left(self) -> float | None:
        """Seconds until nobody waits for the answer any more; None where that is not known."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    async def progress(self, value: Any) -> None:
        """Report to the caller; ``value`` is anything that JSON holds. Does nothing for a notification.

        Raises `ConnectionLost`; TypeError and ValueError for what JSON does not hold, or the gateway does not take.
        """
        if not self.identity:
            return
        data = jsonrpc.notification("rpc.progress", {"id": Raw(self.identity), "value": value})
        if not self._link.check_size(data):
            raise ValueError(f"progress of {len(data)} bytes is more than the gateway takes")
        await self._link.send(data)


class Method(NamedTuple):
    """A method and how it is described. ``params`` is a JSON Schema, by custom."""

    name: str
    function: Handler
    summary: str
    params: Any


class Serving:
    """The methods, and the calls of them that run. ``registered`` is the name it was registered under."""

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._methods: dict[str, Method] = {}
        self._running: dict[asyncio.Task[None], ServedCall] = {}
        self.is_node = False
        self.name: str | None = None

    def __len__(self) -> int:
        """How many calls run."""
        return len(self._running)

    def add(self, method: Method) -> None:
        """Serve a method, or serve it otherwise."""
        self._methods[method.name] = method

    def registration(self, name: str | None) -> Raw:
        """The params of `node.register`. Raises ValueError where there are no methods, TypeError for their schemas."""
        if not self._methods:
            raise ValueError("there is no method to serve yet: see Client.method")
        methods = [
            {"name": one.name, "summary": one.summary} | ({} if one.params is None else {"params": one.params})
            for one in self._methods.values()
        ]
        named = {} if name is None else {"name": name}
        return Raw(jsonrpc.encode(named | {"methods": methods, "context": True}))

    # Calls

    def begin(self, link: Link, message: Incoming) -> None:
        """A request or a notification has come."""
        identity = bytes(message.id)
        method = self._methods.get(message.method)
        if method is None:
            _refuse(link, identity, failure(METHOD_NOT_FOUND, message.method[: jsonrpc.MAX_DETAIL]))
            return
        if len(self._running) >= self._max_calls:
            detail = f"{self._max_calls} calls are running"
            _refuse(link, identity, failure(OVERLOADED, detail, retryAfterMs=RETRY_BUSY_MS, outcome=NOT_DELIVERED))
            return
        try:
            params = msgspec.json.decode(message.params) if bytes(message.params) else None
            context = msgspec.json.decode(message.context, type=_Context) if bytes(message.context) else _Context()
        except jsonrpc.UNDECODABLE as error:  # valid JSON, but no number or stack of this machine holds it
            _refuse(link, identity, failure(INVALID_PARAMS, str(error)))
            return
        call = ServedCall(link, message, context)
        task = asyncio.create_task(self._serve(link, method, params, call))
        self._running[task] = call
        task.add_done_callback(self._running.pop)

    async def _serve(self, link: Link, method: Method, params: Any, call: ServedCall) -> None:
        reply = await _reply(method, params, call)
        if not call.identity:
            return
        if not link.check_size(reply):
            logger.error("the answer of %s has %d bytes: more than the gateway takes", method.name, len(reply))
            reply = _error(call.identity, failure(INTERNAL_ERROR, "the answer is larger than the gateway takes"))
        try:
            await link.send(reply)
        except ConnectionLost:
            return  # the gateway has told the caller

    def cancel(self, params: Raw) -> None:
        """The gateway does not want the answer to a call any more. Raises msgspec.DecodeError."""
        identity = bytes(msgspec.json.decode(params, type=dict[str, Raw]).get("id", b""))
        for task, call in self._running.items():
            if call.identity == identity:
                task.cancel()
                return

    def cancel_all(self) -> list[asyncio.Task[None]]:
        """The connection is lost: nobody waits for any answer. Returns those that are still ending."""
        running = list(self._running)
        for task in running:
            task.cancel()
        return running


async def _reply(method: Method, params: Any, call: ServedCall) -> bytes:
    """Run the method. Its answer, or the error that it has raised. Raises CancelledError where it was cancelled."""
    try:
        result = method.function(params, call)
        if inspect.isawaitable(result):
            result = await _awaited(result)
        return jsonrpc.result_reply(call.identity, jsonrpc.encode(result))
    except CallError as error:
        try:
            return _error(call.identity, error)
        except TypeError:
            logger.exception("the error's data of %s cannot be encoded", method.name)
    except Exception:
        logger.exception("the method %s has failed", method.name)
    return _error(call.identity, failure(INTERNAL_ERROR, method.name))


async def _awaited(result: Awaitable[Any]) -> Any:
    """Wait for a method. One that is cancelled by itself, and not by its caller, has failed."""
    try:
        return await result
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("what it waited for was cancelled") from error


def _refuse(link: Link, identity: bytes, error: CallError) -> None:
    if identity:
        link.post(_error(identity, error))


def _error(identity: bytes, error: CallError) -> bytes:
    data = {} if error.data is None else {"data": error.data}
    encoded = jsonrpc.encode({"code": error.code, "message": error.message} | data)
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (identity, encoded)
