"""Methods that this client serves: as a node, to other connections, and to the gateway itself."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Container
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from gateway.client import replies
from gateway.client.errors import UNKNOWN, CallError, failure
from gateway.client.link import Incoming
from gateway.client.sending.encoding import encode
from gateway.client.sending.flows import CREDIT, CREDIT_BYTES, Flows, Grant, most_bytes
from gateway.client.sending.session import Session
from gateway.errors import CANCELLED, INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, OVERLOADED
from gateway.rpc import jsonrpc

Handler = Callable[[Any, "ServedCall"], Any]
HandlerT = TypeVar("HandlerT", bound=Handler)


class _Context(msgspec.Struct, rename="camel"):
    caller: str = ""
    time_left_ms: int | None = None


class _Push(msgspec.Struct):
    id: Raw
    value: Raw = jsonrpc.ABSENT
    end: bool = False


class ServedCall:
    """A call that is being served. If it is a stream, ``async for`` yields what the caller pushes, for one reader.

    ``method`` is its method. ``caller`` is the caller's name, or empty if the gateway itself calls. ``call_id`` is the
    request's id as JSON, or empty for a notification. ``raw_params`` are the params as JSON, byte for byte, or empty if
    there are none.
    """

    def __init__(self, session: Session, message: Incoming, context: _Context) -> None:
        self._session = session
        self.withdrawn = False
        """Whether no answer is waited for any more: the caller has cancelled it, or the connection is lost."""
        self._length = None if context.time_left_ms is None else context.time_left_ms / 1000
        self._begun = time.monotonic()
        self.call_id: Final = bytes(message.id)
        self.method: Final = message.method
        self.raw_params: Final = bytes(message.params)
        self.caller: Final = context.caller
        self.flows: Final = _flows(session, message)
        """Both directions of a stream; None for a call that is none."""

    @property
    def is_stream(self) -> bool:
        """Whether values flow both ways, each as fast as its receiver takes them."""
        return self.flows is not None

    @property
    def time_left(self) -> float | None:
        """Seconds until the caller stops waiting for the answer; None if that is not known.

        For a stream they count from the last value or grant.
        """
        if self._length is None:
            return None
        idle = time.monotonic() - self._begun if self.flows is None else self.flows.idle
        return max(0.0, self._length - idle)

    async def progress(self, value: Any) -> None:
        """Report ``value``, which is any JSON, to the caller. Does nothing for a notification.

        It waits while there is no link; if the call is a stream, until the caller takes the value. Raises
        `ConnectionLost` if the connection is lost, `CallError` if the stream is over; TypeError for a value that
        JSON does not hold; ValueError for text that is not Unicode, or if the message is larger than the gateway takes;
        RecursionError for a value that is nested too deeply.
        """
        if self.flows is not None:
            await self.flows.outflow.send(value)
            return
        if not self.call_id:
            return
        data = jsonrpc.notification("rpc.progress", {"id": Raw(self.call_id), "value": Raw(encode(value))})
        if not self._session.fits(data):
            raise ValueError(f"progress of {len(data)} bytes is more than the gateway takes")
        await self._session.send(data)

    def __aiter__(self) -> AsyncIterator[Any]:
        """Read what the caller pushes; nothing is granted to it before. It may be left, and read on later.

        Raises TypeError at once if the call is no stream. The iteration raises `CallError` when the call is over.
        """
        if self.flows is None:
            raise TypeError("the call is no stream: its caller pushes nothing")
        if not self.flows.inflow.is_open:
            credit, octets = CREDIT, min(CREDIT_BYTES, most_bytes(self._session))
            self.flows.inflow.open(credit, octets)
            self.flows.grant(credit, octets)
        return self.flows.inflow

    def withdraw(self, reason: CallError) -> None:
        """Take it that no answer is waited for any more."""
        self.withdrawn = True
        self.end(reason)

    def end(self, reason: CallError | None = None) -> None:
        """End its stream."""
        if self.flows is not None:
            self.flows.end(reason)


def _flows(session: Session, message: Incoming) -> Flows | None:
    """Return the flows of a call that is a stream, with the first grant. Raises one of `jsonrpc.UNDECODABLE`."""
    call_id, stream = bytes(message.id), bytes(message.stream)
    if not call_id or stream in (b"", b"null"):
        return None
    grant = msgspec.json.decode(stream, type=Grant)
    flows = Flows("rpc.demand", "rpc.progress")
    flows.begin(session, call_id)
    flows.granted(grant)
    return flows


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
        self._by_id: dict[bytes, tuple[asyncio.Task[None], ServedCall]] = {}
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
        return Raw(jsonrpc.encode(named | {"methods": methods, "context": True, "streams": True}))

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
            call = ServedCall(session, message, context)
        except jsonrpc.UNDECODABLE as error:  # valid JSON with too large a number, or nested too deeply
            _refuse(session, call_id, failure(INVALID_PARAMS, str(error)))
            return
        task = asyncio.create_task(self._serve(session, method, params, call))
        self._running[task] = call
        task.add_done_callback(self._over)
        if call.call_id:
            self._by_id[call.call_id] = task, call

    def _over(self, task: asyncio.Task[None]) -> None:
        call = self._running.pop(task)
        if self._by_id.get(call.call_id, (None,))[0] is task:
            del self._by_id[call.call_id]

    async def _serve(self, session: Session, method: Method, params: Any, call: ServedCall) -> None:
        try:
            reply = await _reply(method, params, call, session.fits)
        except BaseException:
            # The task was cancelled, by its caller or by others, or the program ends.
            if not call.withdrawn:
                _refuse(session, call.call_id, failure(INTERNAL_ERROR, method.name, outcome=UNKNOWN))
            raise
        finally:
            call.end()
        if call.call_id:
            with suppress(CallError):  # a gateway that takes not even the reply that there was none
                await session.reply(reply)

    def notified(self, method: str, params: Raw) -> bool:
        """Take a notification about a call that runs. Returns False if it is another. Raises msgspec.DecodeError."""
        match method:
            case "rpc.cancel":
                self._cancel(bytes(msgspec.json.decode(params, type=dict[str, Raw]).get("id", b"")))
            case "rpc.credit":
                grant = msgspec.json.decode(params, type=Grant)
                for _, call in self._named(bytes(grant.id)):
                    if call.flows is not None:
                        call.flows.granted(grant)
            case "rpc.push":
                push = msgspec.json.decode(params, type=_Push)
                for _, call in self._named(bytes(push.id)):
                    self._pushed(call, push)
            case _:
                return False
        return True

    def _named(self, call_id: bytes) -> list[tuple[asyncio.Task[None], ServedCall]]:
        found = self._by_id.get(call_id)
        return [] if found is None else [found]

    def _cancel(self, call_id: bytes) -> None:
        for task, call in self._named(call_id):
            call.withdraw(failure(CANCELLED, "the caller has gone", outcome=UNKNOWN))
            task.cancel()

    def _pushed(self, call: ServedCall, push: _Push) -> None:
        """Give a stream what was pushed. One that gets more than it has granted ends."""
        if call.flows is None:
            return
        if push.end:
            call.flows.inflow.end(None)
        elif (overrun := call.flows.put(push.value)) is not None:
            call.flows.inflow.end(overrun, drop=True)

    def cancel_all(self, *, but: Container[object] = ()) -> list[asyncio.Task[None]]:
        """Cancel all calls, because the connection is lost; return their tasks, which have yet to end.

        The tasks in ``but`` go on.
        """
        for task, call in self._running.items():
            call.withdraw(failure(CANCELLED, "the connection is lost", outcome=UNKNOWN))
            if task not in but:
                task.cancel()
        return [task for task in self._running if task not in but]


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
