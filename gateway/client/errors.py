"""How a call fails, and what is known about it then."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.client.endings import End
from gateway.errors import RpcError
from gateway.rpc.jsonrpc import UNDECODABLE

NOT_DELIVERED: Final = "not_delivered"
"""The ``outcome`` of a call that was not run: it is safe to send it again."""

UNKNOWN: Final = "unknown"
"""The ``outcome`` of a call that may have been run."""

CONNECTION_LOST: Final = RpcError(-32000, "connection_lost", "The connection was lost", temporary=True)
"""An error of this client, which is never on the wire."""


class CallError(Exception):
    """A call has failed, with the error in the reply or with an error of this client.

    ``code``, ``message`` and ``data`` are the members of the JSON-RPC error; ``data`` is None if there was none. A
    method that is served raises a CallError to answer with an error of its own. The codes from -32768 to -32000 belong
    to JSON-RPC and the gateway.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(code, message, data)
        self.code = code
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return f"{self.message} ({self.name or self.code})"

    @property
    def name(self) -> str:
        """The error's name, such as ``timeout``; empty if it has none."""
        name = self._member("code")
        return name if isinstance(name, str) else ""

    @property
    def temporary(self) -> bool:
        """Whether the error says that the same call may succeed later."""
        return self._member("temporary") is True

    @property
    def outcome(self) -> str | None:
        """``not_delivered``: the call was not run. ``unknown``: it may have been. None: the error does not say.

        Only the gateway and this client know whether a call was not run. If the node says so, it may speak of a call
        that it has made itself.
        """
        match self._member("outcome"):
            case "not_delivered" | "unknown" as outcome:
                return str(outcome)
            case _:
                return UNKNOWN if self._member("nodeOutcome") is not None else None

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before the call is sent again, or None if the error does not say."""
        delay = self._member("retryAfterMs")
        return delay / 1000 if isinstance(delay, int | float) and not isinstance(delay, bool) and delay >= 0 else None

    @property
    def may_be_sent_again(self) -> bool:
        """Whether the call was not run, and may succeed later."""
        return self.temporary and self.outcome == NOT_DELIVERED

    def _member(self, name: str) -> Any:
        return self.data.get(name) if isinstance(self.data, dict) else None


class ConnectionLost(CallError):
    """There is no connection, or its link was lost before the answer came. ``end`` says why."""

    def __init__(self, end: End, outcome: str) -> None:
        data = {"code": CONNECTION_LOST.name, "temporary": not end.final, "outcome": outcome}
        super().__init__(CONNECTION_LOST.code, f"{CONNECTION_LOST.message}: {end}", data)
        self.end = end

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.end, self.outcome)


def failure(error: RpcError, detail: str, **data: object) -> CallError:
    """Return an error of the protocol that this client raises or answers itself; ``data`` adds to its ``data``."""
    return CallError(
        error.code, f"{error.message}: {detail}", {"code": error.name, "temporary": error.temporary, **data}
    )


class _WireError(msgspec.Struct):
    code: int = 0
    message: str = ""
    data: Any = None


def received(error: bytes | msgspec.Raw) -> CallError:
    """Return the CallError for the ``error`` member of a response. If that is no JSON-RPC error its code is 0."""
    try:
        wire = msgspec.json.decode(error, type=_WireError)
    except UNDECODABLE:
        return CallError(0, "The error that came is not one that JSON-RPC knows")
    return CallError(wire.code, wire.message, wire.data)
