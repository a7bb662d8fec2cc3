"""Methods that this client serves: as a node, to other connections, and to the gateway itself."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from gateway.client import replies
from gateway.client.errors import UNKNOWN, CallError, failure
from gateway.client.link import Incoming
from gateway.client.sending.encoding import encode
from gateway.client.sending.session import Session
from gateway.errors import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, OVERLOADED
from gateway.rpc import jsonrpc

Handler = Callable[[Any, "ServedCall"], Any]
HandlerT = TypeVar("HandlerT", bound=Handler)


class _Context(msgspec.Struct, rename="camel"):
    caller: str = ""
    time_left_ms: int | None = None


class ServedCall:
    """A call that is being served.

    ``method`` is its method. ``caller`` is the caller's name, or empty if the gateway itself calls. ``call_id`` is the
    request's id as JSON, or empty for a notification. ``raw_params`` are the params as JSON, byte for byte, or empty if
    there are none.
    """

    def __init__(self, session: Session, message: Incoming, context: _Context) -> None:
        self._session = session
        self.withdrawn = False
        """Whether no answer is waited for any more: the caller has cancelled it, or the connection is lost."""
        self._until = None if context.time_left_ms is None else time.monotonic() + context.time_left_ms / 1000
        self.call_id: Final = bytes(message.id)
        self.method: Final = message.method
        self.raw_params: Final = bytes(message.params)
        self.caller: Final = context.caller

    @property
    def time_left(self) -> float | None:
        """Seconds until the caller stops waiting for the answer; None if that is not known."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    async def progress(self, value: Any) -> None:
        """Report ``value``, which is any JSON, to the caller. Does nothing for a notification.

        It waits while there is no link. Raises `ConnectionLost` if the connection is lost; TypeError for a value that
        JSON does not hold; ValueError for text that is not Unicode, or if the message is larger than the gateway takes;
        RecursionError for a value that is nested too deeply.
        """
        if not self.call_id:
            return
        data = jsonrpc.notification("rpc.progress", {"id": Raw(self.call_id), "value": Raw(encode(value))})
        if not self._session.fits(data):
            raise ValueError(f"progress of {len(data)} bytes is more than the gateway takes")
        await self._session.send(data)


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

    def begin(self, session: Session, message: Incoming) -> None:
        """Begin to serve a request or a notification, or refuse it."""
        call_id = bytes(message.id)
        method = self._methods.get(message.method)
        if method is None:
            _refuse(session, call_id, failure(METHOD_NOT_FOUND, message.method[: jsonrpc.MAX_DETAIL]))
            return
        if len(self._running) >= self._max_calls:
            _refuse(session, call_id, failure(OVERLOADED, f"{self._max_calls} calls are running"))
            return
        try:
            params = msgspec.json.decode(message.params) if bytes(message.params) else None
            context = msgspec.json.decode(message.context, type=_Context) if bytes(message.context) else _Context()
        except jsonrpc.UNDECODABLE as error:  # valid JSON with too large a number, or nested too deeply
            _refuse(session, call_id, failure(INVALID_PARAMS, str(error)))
            return
        call = ServedCall(session, message, context)
        task = asyncio.create_task(self._serve(session, method, params, call))
        self._running[task] = call
        task.add_done_callback(self._running.pop)

    async def _serve(self, session: Session, method: Method, params: Any, call: ServedCall) -> None:
        try:
            reply = await _reply(method, params, call, session.fits)
        except BaseException:
            # The task was cancelled, by its caller or by others, or the program ends.
            if not call.withdrawn:
                _refuse(session, call.call_id, failure(INTERNAL_ERROR, method.name, outcome=UNKNOWN))
            raise
        if call.call_id:
            with suppress(CallError):  # a gateway that takes not even the reply that there was none
                await session.reply(reply)

    def cancel(self, params: Raw) -> None:
        """Cancel the call that these params of `rpc.cancel` name. Raises msgspec.DecodeError."""
        call_id = bytes(msgspec.json.decode(params, type=dict[str, Raw]).get("id", b""))
        for task, call in self._running.items():
            if call.call_id == call_id:
                call.withdrawn = True
                task.cancel()
                return

    def cancel_all(self) -> list[asyncio.Task[None]]:
        """Cancel all calls, because the connection is lost; return their tasks, which have yet to end."""
        for task, call in self._running.items():
            call.withdrawn = True
            task.cancel()
        return list(self._running)


async def _reply(method: Method, params: Any, call: ServedCall, fits: replies.Fits) -> bytes:
    """Run the method; return its reply. Raises CancelledError if this task is cancelled, and what ends the program."""
    try:
        result = method.function(params, call)
        if inspect.isawaitable(result):
            result = await result
    except CallError as error:
        return replies.of_error(call.call_id, method.name, error, fits)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # One that is cancelled without this task being so has failed: what it waited for was cancelled.
        if isinstance(error, asyncio.CancelledError) and _cancelled():
            raise
        return replies.of_defect(call.call_id, method.name, error)
    return replies.of_result(call.call_id, method.name, result, fits)


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _refuse(session: Session, call_id: bytes, error: CallError) -> None:
    if call_id:
        with suppress(CallError):  # a gateway that takes not even that
            session.post(replies.refusal(call_id, error))
