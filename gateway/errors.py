"""Every error code and close code that the gateway puts on the wire or in the log, each defined once.

There are two kinds. An `RpcError` refuses one request, and the connection lives on. A `Disconnect` ends the connection.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class RpcError(NamedTuple):
    """Refuses one request (JSON-RPC 2.0, section 5.1).

    ``code`` and ``name`` are fixed by the contract. ``message`` is a sentence for people. ``temporary`` tells a client
    whether the same request may succeed later.
    """

    code: int
    name: str
    message: str
    temporary: bool = False


PARSE_ERROR: Final = RpcError(-32700, "parse_error", "Not valid JSON")
INVALID_REQUEST: Final = RpcError(-32600, "invalid_request", "Not a valid JSON-RPC 2.0 request")
METHOD_NOT_FOUND: Final = RpcError(-32601, "method_not_found", "No such method")
INVALID_PARAMS: Final = RpcError(-32602, "invalid_params", "Invalid parameters")
INTERNAL_ERROR: Final = RpcError(-32603, "internal_error", "Internal error")
UNAUTHENTICATED: Final = RpcError(-32001, "unauthenticated", "Credential missing, wrong or expired")
RATE_LIMITED: Final = RpcError(-32002, "rate_limited", "Too many requests", temporary=True)
FORBIDDEN: Final = RpcError(-32003, "forbidden", "A scope is missing")
NOT_FOUND: Final = RpcError(-32004, "not_found", "No such connection, node or topic")
CONFLICT: Final = RpcError(-32007, "conflict", "Conflict")
TIMEOUT: Final = RpcError(-32008, "timeout", "The call's deadline passed", temporary=True)
UNACKNOWLEDGED: Final = TIMEOUT._replace(message="NATS has not acknowledged the message")
"""`TIMEOUT` for a message that other gateways may or may not hear."""
OVERLOADED: Final = RpcError(-32009, "overloaded", "Too many calls in flight", temporary=True)
TOO_LARGE: Final = OVERLOADED._replace(message="Too large", temporary=False)
"""`OVERLOADED` for what is larger than a limit: the same request does not succeed later either."""
OVERRUN: Final = OVERLOADED._replace(message="The node sent more than it had credit for", temporary=False)
"""`OVERLOADED` for a stream whose node does not heed the caller's credit."""
PUSHED_TOO_MUCH: Final = INVALID_REQUEST._replace(message="More was pushed than the node had granted")
"""`INVALID_REQUEST` for a stream whose caller does not heed the node's credit."""
VALUE_TOO_LARGE: Final = TOO_LARGE._replace(message="A value of the stream is too large")
"""`TOO_LARGE` for a stream: a value that is left out would be missed."""
NODE_LOST: Final = RpcError(-32010, "node_lost", "The node went away before it answered", temporary=True)
NODE_NOT_REACHED: Final = NODE_LOST._replace(message="The node went away before it got the call")
"""`NODE_LOST` for a call that was never written to the node."""
DRAINING: Final = RpcError(-32011, "draining", "The gateway is shutting down", temporary=True)
UNAVAILABLE: Final = RpcError(-32012, "unavailable", "What it needs is not reachable now", temporary=True)
CANCELLED: Final = RpcError(-32800, "cancelled", "Cancelled")

RPC_ERRORS: Final[tuple[RpcError, ...]] = (
    PARSE_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    INVALID_PARAMS,
    INTERNAL_ERROR,
    UNAUTHENTICATED,
    RATE_LIMITED,
    FORBIDDEN,
    NOT_FOUND,
    CONFLICT,
    TIMEOUT,
    OVERLOADED,
    NODE_LOST,
    DRAINING,
    UNAVAILABLE,
    CANCELLED,
)

NOT_DELIVERED: Final = "not_delivered"
"""The ``outcome`` beside an error if the request was not run. It is safe to send it again."""

UNKNOWN: Final = "unknown"
"""The ``outcome`` beside an error if the request may have been run."""

RETRY_BUSY_MS: Final = 100
"""The ``retryAfterMs`` beside `OVERLOADED` if too many calls are in flight: any of them may end at any moment."""

RETRY_AWAY_MS: Final = 500
"""The ``retryAfterMs`` beside `UNAVAILABLE`: NATS is looked for several times a second."""

RETRY_FULL_MS: Final = 1000
"""The ``retryAfterMs`` beside `OVERLOADED` if there are too many connections or topics: they last longer than calls."""


class Disconnect(NamedTuple):
    """Ends a connection, and says why.

    ``code`` is the close code (RFC 6455 section 7.4). After 4000 to 4499 a client may reconnect; after 4500 to 4999 it
    should not until something has changed. ``cause`` is the word in the log, the metrics and the history. ``reason`` is
    the text of the close frame, at most 123 bytes of UTF-8. ``frame`` is false if no close frame is sent, because it
    could not arrive.
    """

    code: int
    cause: str
    reason: str = ""
    frame: bool = True


CLIENT_CLOSE: Final = Disconnect(1000, "client_close")
SHUTDOWN: Final = Disconnect(1001, "shutdown", "the gateway is shutting down")
PROTOCOL_ERROR: Final = Disconnect(1002, "protocol_error", "protocol error")
UNSUPPORTED_DATA: Final = Disconnect(1003, "unsupported_data", "text frames only")
INVALID_UTF8: Final = Disconnect(1007, "invalid_utf8", "a text message must be UTF-8")
MESSAGE_TOO_BIG: Final = Disconnect(1009, "message_too_big", "message too big")
INTERNAL_FAILURE: Final = Disconnect(1011, "internal_error", "internal error")
TRANSPORT_LOST: Final = Disconnect(1006, "transport_lost", frame=False)
HEARTBEAT_TIMEOUT: Final = Disconnect(1006, "heartbeat_timeout", frame=False)
RECEIVE_TIMEOUT: Final = Disconnect(1006, "receive_timeout", frame=False)
RESUMED: Final = Disconnect(1006, "resumed", frame=False)
"""The end of the new connection whose link another one goes on by."""
HANDSHAKE_TIMEOUT: Final = Disconnect(4001, "handshake_timeout", "no valid first message in time")
SLOW_CONSUMER: Final = Disconnect(4002, "slow_consumer", frame=False)
FLOOD: Final = Disconnect(4003, "flood", "rate limit ignored for too long")
CREDENTIAL_EXPIRED: Final = Disconnect(4004, "credential_expired", "credential expired")
CLOSED_UNAUTHENTICATED: Final = Disconnect(4500, "unauthenticated", "unauthenticated")
CLOSED_BY_OPERATOR: Final = Disconnect(4501, "closed_by_operator", "closed by an operator")
REPLACED: Final = Disconnect(4502, "replaced", "a newer connection has this node's name")
CREDENTIAL_REVOKED: Final = Disconnect(4503, "credential_revoked", "credential revoked")

DISCONNECTS: Final[tuple[Disconnect, ...]] = (
    CLIENT_CLOSE,
    SHUTDOWN,
    PROTOCOL_ERROR,
    UNSUPPORTED_DATA,
    INVALID_UTF8,
    MESSAGE_TOO_BIG,
    INTERNAL_FAILURE,
    TRANSPORT_LOST,
    HEARTBEAT_TIMEOUT,
    RECEIVE_TIMEOUT,
    RESUMED,
    HANDSHAKE_TIMEOUT,
    SLOW_CONSUMER,
    FLOOD,
    CREDENTIAL_EXPIRED,
    CLOSED_UNAUTHENTICATED,
    CLOSED_BY_OPERATOR,
    REPLACED,
    CREDENTIAL_REVOKED,
)

NO_STATUS: Final = 1005
"""The close code that stands for a close frame without a code (RFC 6455 section 7.4.1). It is never sent."""

_WIRE_CODES: Final = frozenset(range(1000, 1015)) - {1004, 1005, 1006}


def may_be_on_the_wire(code: int) -> bool:
    """Whether a peer may send this close code (RFC 6455 section 7.4, and the IANA registry that it establishes)."""
    return code in _WIRE_CODES or 3000 <= code <= 4999


def closed_by_peer(code: int, reason: str) -> Disconnect:
    """Return the `CLIENT_CLOSE` that has the code and the reason of the peer's close frame."""
    return Disconnect(code, CLIENT_CLOSE.cause, reason)


def disconnect_for(code: int) -> Disconnect:
    """Return the end that a parser's close code stands for. Any other code is an internal failure."""
    return _BY_PARSER_CODE.get(code, INTERNAL_FAILURE)


_BY_PARSER_CODE: Final = {
    end.code: end for end in (PROTOCOL_ERROR, UNSUPPORTED_DATA, INVALID_UTF8, MESSAGE_TOO_BIG, FLOOD)
}
