"""What a method is: a function with a decorator, and all that its signature says. Pure.

    @method("camera.snapshot", scope="call")
    async def snapshot(peer: Peer, params: SnapshotParams) -> Snapshot:
        '''Take a picture now.'''

The first argument is the connection that calls. The second, if there is one, is either a `msgspec.Struct`, decoded and
validated before the function is called, or `bytes`: the caller's JSON as it came, empty if there are no parameters. The
result is anything that msgspec encodes; a `msgspec.Raw` is JSON that goes out as it is. The docstring and the types are
the method's documentation in ``rpc.discover``.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

import msgspec

from gateway.errors import NOT_DELIVERED, RpcError
from gateway.rpc.jsonrpc import MAX_DETAIL
from gateway.telemetry.counts import Tally

AUTHENTICATED: Final = "authenticated"
"""The scope of a method that every authenticated caller may use."""

CALL: Final = "call"
"""Short for the scope ``call:`` followed by the method's own name."""

_MARK: Final = "__gateway_method__"
_BLANK: Final = b" \t\r\n"
_LEFT_OUT: Final = object()
"""Stands for a parameter that did not come."""

Function = TypeVar("Function", bound=Callable[..., Any])


class Refusal(Exception):
    """A method raises this to refuse a request with ``error``. The connection lives on, and nothing is logged.

    ``detail`` is added to the error's own sentence, ``data`` to its name in the reply's ``data``. If the error is
    temporary, the caller takes it that the method may have done something, unless ``data`` says otherwise: see
    `not_run`.
    """

    def __init__(self, error: RpcError, detail: str = "", **data: object) -> None:
        super().__init__(detail or error.message)
        self.error = error
        self.detail = detail
        self.data = data


def not_run(error: RpcError, detail: str = "", **data: object) -> Refusal:
    """Return the refusal of a request of which nothing was done: the caller is told that, and may send it again."""
    return Refusal(error, detail, **data, outcome=NOT_DELIVERED)


Result = TypeVar("Result")


class Then(Generic[Result]):
    """A method returns this to have a function called right after the reply to its request has been sent.

    ``after`` is called for a notification, too. In a batch it is called after the reply to the whole batch.
    """

    __slots__ = ("after", "result")

    def __init__(self, result: Result, after: Callable[[], None]) -> None:
        self.result = result
        self.after = after


class Continue(Exception):
    """A plain method raises this, before it has done anything, to be answered by a coroutine, like an ``async def``.

    So it is a task only if a request is much work. ``work`` returns the coroutine, once.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        super().__init__()
        self.work = work


class BadParams(Exception):
    """The parameters do not fit. The text says which one, and why; it is told to the caller."""


Form = Literal["request", "notification"]
"""What a message may be."""


class Spec(NamedTuple):
    """What the decorator was told; see `method`."""

    name: str
    scope: str | None
    timeout: float | None
    while_draining: bool
    forwards: bool
    alone: Form | None
    paced: bool
    result: Any


def method(
    name: str,
    *,
    scope: str | None = None,
    timeout: float | None = None,
    while_draining: bool = False,
    forwards: bool = False,
    alone: Form | None = None,
    paced: bool = True,
    result: Any = None,
) -> Callable[[Function], Function]:
    """Declare a function, or a class's method, as the JSON-RPC method ``name``.

    ``scope`` is what the caller needs: `AUTHENTICATED`, `CALL`, ``"admin"``, or a scope in full. A method without a
    scope cannot be called at all. ``timeout`` is the deadline of an ``async def`` in seconds, by default
    ``limits.call_timeout``. A method with ``while_draining`` is answered even while the gateway shuts down. A method
    with ``forwards`` returns a `requests.Forward` instead of a result; ``result`` is the type of what the caller gets
    then, if that is always the same. A method with ``alone`` is taken only as a
    message of this form, and not in a batch; such a notification is outside of every rate, and taken even while the
    gateway shuts down. A method that is not ``paced`` sees to it itself whether a message counts against the rate.
    """

    def mark(function: Function) -> Function:
        needed = f"call:{name}" if scope == CALL else scope
        setattr(function, _MARK, Spec(name, needed, timeout, while_draining, forwards, alone, paced, result))
        return function

    return mark


class Method:
    """One row of the table of methods; ``tally`` counts its requests.

    ``decode`` makes the handler's second argument of the JSON of ``params``, or is None if the handler takes that JSON
    as it is; it raises `BadParams`. ``params`` and ``result`` are types; ``params`` is None if there are no parameters.

    Raises TypeError if the function's signature is not one that a method may have.
    """

    __slots__ = (
        "alone",
        "decode",
        "doc",
        "forwards",
        "handler",
        "is_async",
        "name",
        "paced",
        "params",
        "result",
        "scope",
        "tally",
        "timeout",
        "while_draining",
    )

    def __init__(self, handler: Callable[..., Any], spec: Spec) -> None:
        self.name, self.scope, self.timeout, self.while_draining, self.forwards, self.alone, self.paced, known = spec
        if not spec.name:
            raise TypeError(f"{handler!r}: a method must have a name")
        self.handler = handler
        self.is_async = inspect.iscoroutinefunction(handler)
        self.doc = inspect.getdoc(handler) or ""
        self.tally: Final = Tally()
        try:
            self.params, returned = _signature(handler)
            self.result = known or returned
            self.decode = _decoder(self.params)
        except (TypeError, NameError) as error:
            raise TypeError(f"method {spec.name}: {error}") from None


def collect(source: object) -> Iterator[Method]:
    """Yield the methods that a module or an object declares, or a declared function itself.

    Raises TypeError for a wrong signature.
    """
    candidates: Iterable[object] = [source]
    if not hasattr(source, _MARK):
        candidates = (getattr(source, name) for name in dir(source) if not name.startswith("__"))
    for candidate in candidates:
        spec = getattr(candidate, _MARK, None)
        if isinstance(spec, Spec) and callable(candidate):
            yield Method(candidate, spec)


def _signature(handler: Callable[..., Any]) -> tuple[Any, Any]:
    """Return the types of the parameters, None if there are none, and of the result.

    Raises TypeError for a wrong signature, and NameError for an annotation that is not defined at run time.
    """
    function = handler.__func__ if isinstance(handler, types.MethodType) else handler
    hints = typing.get_type_hints(function, include_extras=True)
    arguments = list(inspect.signature(handler).parameters.values())
    if not 1 <= len(arguments) <= 2 or any(
        a.kind not in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) for a in arguments
    ):
        raise TypeError("takes the connection, and at most one argument for the parameters")
    result = hints.get("return", Any)
    if typing.get_origin(result) is Then:
        (result,) = typing.get_args(result)
    msgspec.json.schema(result)  # `rpc.discover` will want it
    if len(arguments) == 1:
        return None, result
    params = hints.get(arguments[1].name)
    if params is bytes:
        return params, result
    if not (isinstance(params, type) and issubclass(params, msgspec.Struct)):
        raise TypeError(f"the parameters' type must be a msgspec.Struct or bytes, not {params!r}")
    if params.__struct_config__.array_like:
        raise TypeError("the parameters' type must not be array_like: a caller may name them")
    msgspec.json.schema(params)
    return params, result


def _decoder(params: Any) -> Callable[[bytes], Any] | None:
    """Return what makes the second argument of the JSON of ``params``, which is empty if there are none.

    Returns None if the argument is that JSON itself.
    """
    if params is bytes:
        return None
    if params is None:
        return _none
    by_name = msgspec.json.Decoder(params).decode
    by_position = _positional(params)

    def decode(data: bytes) -> Any:
        try:
            return by_position(data) if data.startswith(b"[") else by_name(data or b"{}")
        except msgspec.ValidationError as error:
            raise BadParams(_which_and_why(str(error))[:MAX_DETAIL]) from None
        except RecursionError:  # the envelope's decoder ran a few calls higher up, with more of the stack left
            raise BadParams("nested too deeply") from None

    return decode


def _none(data: bytes) -> None:
    if data[1:-1].strip(_BLANK):
        raise BadParams("this method has no parameters")


def _positional(params: type[msgspec.Struct]) -> Callable[[bytes], Any]:
    """Return a decoder of parameters by position (the specification, section 4.2), in one pass.

    What it raises names them as if they had come by name.
    """
    fields = msgspec.structs.fields(params)
    twin = msgspec.defstruct(
        params.__name__,
        [(field.name, field.type, msgspec.NODEFAULT if field.required else _LEFT_OUT) for field in fields],
        array_like=True,
        forbid_unknown_fields=True,
        kw_only=True,
    )
    decoder = msgspec.json.Decoder(twin)

    def by_position(data: bytes) -> Any:
        try:
            given = msgspec.structs.asdict(decoder.decode(data))
        except msgspec.ValidationError as error:
            raise _by_their_names(str(error), fields) from None
        try:
            return params(**{name: value for name, value in given.items() if value is not _LEFT_OUT})
        except (ValueError, TypeError) as error:  # of its __post_init__, as msgspec takes it
            raise msgspec.ValidationError(str(error)) from None

    return by_position


def _by_their_names(text: str, fields: Sequence[msgspec.structs.FieldInfo]) -> Exception:
    """Return the error for parameters by position of which msgspec says this."""
    if wrong := re.fullmatch(r"(.* - at `\$)\[(\d+)\](.*)", text, re.DOTALL):
        return msgspec.ValidationError(f"{wrong[1]}.{fields[int(wrong[2])].encode_name}{wrong[3]}")
    if short := re.search(r"at least length \d+, got (\d+)", text):
        missing = next(field for field in fields[int(short[1]) :] if field.required)
        return BadParams(f"Object missing required field `{missing.encode_name}`")
    return BadParams(f"more than {len(fields)} parameters by position")


def _which_and_why(text: str) -> str:
    """Turn msgspec's ``why - at `$.path` `` into ``path: why``."""
    match = re.fullmatch(r"(.*) - at `\$\.?(.*)`", text, re.DOTALL)
    return f"{match[2]}: {match[1]}" if match and match[2] else text
