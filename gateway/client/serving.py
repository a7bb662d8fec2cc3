"""Methods that this client serves: as a node, to other connections, and to the gateway itself."""

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
    """A call that is being served.

    ``method`` is its method. ``caller`` is the caller's name, or empty if the gateway itself calls. ``call_id`` is the
    request's id as JSON, or empty for a notification.
    """

    def __init__(self, link: Link, message: Incoming, context: _Context) -> None:
        self._link = link
        self._until = None if context.time_left_ms is None else time.monotonic() + context.time_left_ms / 1000
        self.call_id: Final = bytes(message.id)
        self.method: Final = message.method
        self.caller: Final = context.caller

    @property
    def time_left(self) -> float | None:
        """Seconds until the caller stops waiting for the answer; None if that is not known."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    async def progress(self, value: Any) -> None:
        """Report ``value``, which is any JSON, to the caller. Does nothing for a notification.

        Raises `ConnectionLost` if the link is lost; TypeError for a value that JSON does not hold; ValueError for text
        that is not Unicode, or if the message is larger than the gateway takes.
        """
        if not self.call_id:
            return
        data = jsonrpc.notification("rpc.progress", {"id": Raw(self.call_id), "value": value})
        if not self._link.fits(data):
            raise ValueError(f"progress of {len(data)} bytes is more than the gateway takes")
        await self._link.send(data)


class Method(NamedTuple):
    """A method and its description. ``params`` is usually a JSON Schema; None if there is none."""

    name: str
    function: Handler
    summary: str
    params: Any


class Serving:
    """The methods of a client, and the calls of them that run, ``max_calls`` at most.

    ``is_node``: whether the methods were registered. ``name``: under which name; None for the principal's.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._methods: dict[str, Method] = {}
        self._running: dict[asyncio.Task[None], ServedCall] = {}
        self.is_node = False
        self.name: str | None = None

    def __len__(self) -> int:
        """Return how many calls and notifications are being served."""
        return len(self._running)

    def add(self, method: Method) -> None:
        """Serve a method, in place of an earlier one of that name."""
        self._methods[method.name] = method

    def registration(self, name: str | None) -> Raw:
        """Return the params of `node.register`.

        Raises ValueError if there are no methods, and TypeError for a schema that JSON does not hold.
        """
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
        """Begin to serve a request or a notification, or refuse it."""
        call_id = bytes(message.id)
        method = self._methods.get(message.method)
        if method is None:
            _refuse(link, call_id, failure(METHOD_NOT_FOUND, message.method[: jsonrpc.MAX_DETAIL]))
            return
        if len(self._running) >= self._max_calls:
            detail = f"{self._max_calls} calls are running"
            _refuse(link, call_id, failure(OVERLOADED, detail, retryAfterMs=RETRY_BUSY_MS, outcome=NOT_DELIVERED))
            return
        try:
            params = msgspec.json.decode(message.params) if bytes(message.params) else None
            context = msgspec.json.decode(message.context, type=_Context) if bytes(message.context) else _Context()
        except jsonrpc.UNDECODABLE as error:  # valid JSON with too large a number, or nested too deeply
            _refuse(link, call_id, failure(INVALID_PARAMS, str(error)))
            return
        call = ServedCall(link, message, context)
        task = asyncio.create_task(self._serve(link, method, params, call))
        self._running[task] = call
        task.add_done_callback(self._running.pop)

    async def _serve(self, link: Link, method: Method, params: Any, call: ServedCall) -> None:
        reply = await _reply(method, params, call)
        if not call.call_id:
            return
        if not link.fits(reply):
            logger.error("the answer of %s has %d bytes: more than the gateway takes", method.name, len(reply))
            reply = _error(call.call_id, failure(INTERNAL_ERROR, "the answer is larger than the gateway takes"))
        try:
            await link.send(reply)
        except ConnectionLost:
            return  # the gateway has told the caller

    def cancel(self, params: Raw) -> None:
        """Cancel the call that these params of `rpc.cancel` name. Raises msgspec.DecodeError."""
        call_id = bytes(msgspec.json.decode(params, type=dict[str, Raw]).get("id", b""))
        for task, call in self._running.items():
            if call.call_id == call_id:
                task.cancel()
                return

    def cancel_all(self) -> list[asyncio.Task[None]]:
        """Cancel all calls, because the link is lost; return their tasks, which have yet to end."""
        running = list(self._running)
        for task in running:
            task.cancel()
        return running


async def _reply(method: Method, params: Any, call: ServedCall) -> bytes:
    """Run the method; return the response with its result or its error. Raises CancelledError if it is cancelled."""
    try:
        result = method.function(params, call)
        if inspect.isawaitable(result):
            result = await _awaited(result)
        return jsonrpc.result_reply(call.call_id, jsonrpc.encode(result))
    except CallError as error:
        try:
            return _error(call.call_id, error)
        except TypeError:
            logger.exception("the error's data of %s cannot be encoded", method.name)
    except Exception:
        logger.exception("the method %s has failed", method.name)
    return _error(call.call_id, failure(INTERNAL_ERROR, method.name))


async def _awaited(result: Awaitable[Any]) -> Any:
    """Wait for a method. If it ends as cancelled, but its caller has not cancelled it, it has failed."""
    try:
        return await result
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("what it waited for was cancelled") from error


def _refuse(link: Link, call_id: bytes, error: CallError) -> None:
    if call_id:
        link.post(_error(call_id, error))


def _error(call_id: bytes, error: CallError) -> bytes:
    data = {} if error.data is None else {"data": error.data}
    encoded = jsonrpc.encode({"code": error.code, "message": error.message} | data)
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (call_id, encoded)
