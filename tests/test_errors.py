"""The codes are the contract's: clients, operators and log readers rely on each number and name."""

import pytest

from gateway.errors import DISCONNECTS, RPC_ERRORS, disconnect_for, may_be_on_the_wire

CODES = {
    -32700: "parse_error",
    -32600: "invalid_request",
    -32601: "method_not_found",
    -32602: "invalid_params",
    -32603: "internal_error",
    -32001: "unauthenticated",
    -32002: "rate_limited",
    -32003: "forbidden",
    -32004: "not_found",
    -32007: "conflict",
    -32008: "timeout",
    -32009: "overloaded",
    -32010: "node_lost",
    -32011: "draining",
    -32012: "unavailable",
    -32800: "cancelled",
}
TEMPORARY = {"rate_limited", "timeout", "overloaded", "node_lost", "draining", "unavailable"}
CAUSES = {
    "client_close": 1000,
    "shutdown": 1001,
    "protocol_error": 1002,
    "unsupported_data": 1003,
    "invalid_utf8": 1007,
    "message_too_big": 1009,
    "internal_error": 1011,
    "transport_lost": 1006,
    "heartbeat_timeout": 1006,
    "receive_timeout": 1006,
    "resumed": 1006,
    "handshake_timeout": 4001,
    "slow_consumer": 4002,
    "flood": 4003,
    "credential_expired": 4004,
    "unauthenticated": 4500,
    "closed_by_operator": 4501,
    "replaced": 4502,
    "credential_revoked": 4503,
}
WITHOUT_A_FRAME = {"transport_lost", "heartbeat_timeout", "receive_timeout", "resumed", "slow_consumer"}
"""A peer that does not read, or is gone, would not get one; nor does one whose link is another's."""


def test_rpc_errors_are_those_of_the_contract() -> None:
    assert {error.code: error.name for error in RPC_ERRORS} == CODES
    assert len(RPC_ERRORS) == len(CODES)
    assert {error.name for error in RPC_ERRORS if error.temporary} == TEMPORARY


def test_rpc_errors_say_a_sentence_to_a_person() -> None:
    for error in RPC_ERRORS:
        assert error.message[0].isupper() and not error.message.endswith("."), error


def test_disconnects_are_those_of_the_contract() -> None:
    assert {end.cause: end.code for end in DISCONNECTS} == CAUSES
    assert len(DISCONNECTS) == len(CAUSES)
    assert {end.cause for end in DISCONNECTS if not end.frame} == WITHOUT_A_FRAME


def test_every_close_frame_has_a_code_for_the_wire_and_a_reason_that_fits() -> None:
    for end in DISCONNECTS:
        if end.frame:
            assert may_be_on_the_wire(end.code), end
            assert len(end.reason.encode()) <= 123, end
            assert end.reason or end.cause == "client_close", end


@pytest.mark.parametrize(
    ("codes", "allowed"),
    [
        (range(1000), False),
        (range(1000, 1004), True),
        (range(1004, 1007), False),
        (range(1007, 1015), True),
        (range(1015, 3000), False),
        (range(3000, 5000), True),
        (range(5000, 65536), False),
    ],
    ids=lambda value: f"{value[0]}-{value[-1]}" if isinstance(value, range) else "",
)
def test_close_codes_that_may_be_on_the_wire(codes: range, allowed: bool) -> None:
    assert {may_be_on_the_wire(code) for code in codes} == {allowed}


def test_what_the_parser_finds_becomes_an_end() -> None:
    ends = {code: disconnect_for(code).cause for code in (1002, 1003, 1007, 1009, 1011, 1000, 4711)}
    assert ends == {
        1002: "protocol_error",
        1003: "unsupported_data",
        1007: "invalid_utf8",
        1009: "message_too_big",
        1011: "internal_error",
        1000: "internal_error",
        4711: "internal_error",
    }
