"""What a method is: a function with a decorator, and all that its signature says. Pure.

    @method("camera.snapshot", scope="call")
    async def snapshot(peer: Peer, params: SnapshotParams) -> Snapshot:
        '''Take a picture now.'''

The first argument is the connection that calls. The second, where there is one, is a `msgspec.Struct`, decoded and
validated before the function is called, or `bytes`, the caller's JSON as it came, empty where there are no parameters.
The result is anything that msgspec encodes, or `msgspec.Raw`, JSON that goes out as it is. The docstring and the types
are the method's documentation in ``rpc.discover``.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from gateway.errors import RpcError
from gateway.rpc.jsonrpc import MAX_DETAIL
from gateway.telemetry.counts import Tally

AUTHENTICATED: Final = "authenticated"
"""The scope of a method that everybody may call who is authenticated at all."""

CALL: Final = "call"
"""Short for ``call:`` and the method's own name."""

_MARK: Final = "__gateway_method__"
_BLANK: Final = b" \t\r\n"

Function = TypeVar("Function", bound=Callable[..., Any])


class Refusal(Exception):
    """Raised by a method: the request is refused with ``error``. The connection lives on, and nothing is logged.

    ``detail`` goes behind the error's own sentence, ``data`` beside its name in the reply's ``data``.
    """

    def __init__(self, error: RpcError, detail: str = "", **data: object) -> None:
        super().__init__(detail or error.message)
        self.error = error
        self.detail = detail
        self.data = data


Result = TypeVar("Result")


class Then(Generic[Result]):
    """Returned by a method instead of its result: the result, and what is done after the reply has been sent."""

    __slots__ = ("after", "result")

    def __init__(self, result: Result, after: Callable[[], None]) -> None:
        self.result = result
        self.after = after


class BadParams(Exception):
    """The parameters do not fit; the text says which one, and why."""


class Spec(NamedTuple):
    """What the decorator was told."""

    name: str
    scope: str | None
    timeout: float | None
    while_draining: bool
    forwards: bool


def method(
    name: str,
    *,
    scope: str | None = None,
    timeout: float | None = None,
    while_draining: bool = False,
    forwards: bool = False,
) -> Callable[[Function], Function]:
    """Declare a function, or a class's method, as the JSON-RPC method ``name``.

    ``scope`` is what the caller needs: `AUTHENTICATED`, `CALL`, ``"admin"``, or a scope in full. Without one nobody
    may call it. ``timeout`` is the deadline of an ``async def`` in seconds, ``limits.call_timeout`` by default.
    ``while_draining``: also answered while the gateway shuts down. ``forwards``: it returns a
    `dispatcher.Forward`.
    """

    def mark(function: Function) -> Function:
        needed = f"call:{name}" if scope == CALL else scope
        setattr(function, _MARK, Spec(name, needed, timeout, while_draining, forwards))
        return function

    return mark


class Method:
    """One row of the table; ``tally`` counts its requests.

    Raises TypeError where the function's signature is not one that a method may have.
    """

    __slots__ = (
        "decode",
        "doc",
        "forwards",
        "handler",
        "is_async",
        "name",
        "params",
        "result",
        "scope",
        "tally",
        "timeout",
        "while_draining",
    )

    def __init__(self, handler: Callable[..., Any], spec: Spec) -> None:
        self.name, self.scope, self.timeout, self.while_draining, self.forwards = spec
        if not spec.name:
            raise TypeError(f"{handler!r}: a method must have a name")
        self.handler = handler
        self.is_async = inspect.iscoroutinefunction(handler)
        self.doc = inspect.getdoc(handler) or ""
        self.tally: Final = Tally()
        try:
            self.params, self.result = _signature(handler)
            self.decode = _decoder(self.params)
        except (TypeError, NameError) as error:
            raise TypeError(f"method {spec.name}: {error}") from None


def collect(source: object) -> Iterator[Method]:
    """The methods that a module, an object, or a function itself declares. Raises TypeError for a wrong signature."""
    candidates: Iterable[object] = [source]
    if not hasattr(source, _MARK):
        candidates = (getattr(source, name) for name in dir(source) if not name.startswith("__"))
    for candidate in candidates:
        spec = getattr(candidate, _MARK, None)
        if isinstance(spec, Spec) and callable(candidate):
            yield Method(candidate, spec)


def _signature(handler: Callable[..., Any]) -> tuple[Any, Any]:
    """The types of the parameters (None: there are none) and of the result.

    Raises TypeError, and NameError for an annotation that stands for nothing at run time.
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
    """From the bytes of ``params``, empty where there are none, to the second argument; None: they are the argument."""
    if params is bytes:
        return None
    if params is None:
        return _none
    decoder = msgspec.json.Decoder(params)
    names = [field.encode_name for field in msgspec.structs.fields(params)]

    def decode(data: bytes) -> Any:
        try:
            return decoder.decode(_by_name(data, names) if data.startswith(b"[") else data or b"{}")
        except msgspec.ValidationError as error:
            raise BadParams(_which_and_why(str(error))[:MAX_DETAIL]) from None
        except RecursionError:  # what the envelope's decoder just bore may be too much a few calls further
            raise BadParams("nested too deeply") from None

    return decode


def _none(data: bytes) -> None:
    if data[1:-1].strip(_BLANK):
        raise BadParams("this method has no parameters")


def _by_name(data: bytes, names: list[str]) -> bytes:
    """Parameters by position to parameters by name (the specification, section 4.2)."""
    values = msgspec.json.decode(data, type=list[Raw])
    if len(values) > len(names):
        raise BadParams(f"{len(values)} parameters by position, there are {len(names)}")
    return msgspec.json.encode(dict(zip(names, values, strict=False)))


def _which_and_why(text: str) -> str:
    """Msgspec's ``why - at `$.path` `` as ``path: why``."""
    match = re.fullmatch(r"(.*) - at `\$\.?(.*)`", text, re.DOTALL)
    return f"{match[2]}: {match[1]}" if match and match[2] else text
