"""Errors of the client: what came over the wire as attributes, and what is safe to send again."""

import pickle
from typing import Any

import pytest

from gateway import errors as contract
from gateway.client.endings import CLOSED, LOST, End
from gateway.client.errors import NOT_DELIVERED, UNKNOWN, CallError, ConnectionLost, failure, received


def test_what_came_with_it() -> None:
    data = {"code": "overloaded", "temporary": True, "outcome": "not_delivered", "retryAfterMs": 250}
    error = CallError(-32009, "Too many", data)
    assert (error.code, error.message, error.data, error.name) == (-32009, "Too many", data, "overloaded")
    assert (error.temporary, error.outcome, error.retry_after) == (True, NOT_DELIVERED, 0.25)
    assert str(error) == "Too many (overloaded)"


@pytest.mark.parametrize("data", [None, 7, [], {}, {"code": 1, "temporary": 1, "outcome": 2, "retryAfterMs": True}])
def test_an_error_of_somebody_else(data: Any) -> None:
    error = CallError(7, "no film", data)
    assert (error.name, error.temporary, error.outcome, error.retry_after) == ("", False, None, None)
    assert not error.may_be_sent_again
    assert str(error) == "no film (7)"


@pytest.mark.parametrize(
    ("error", "outcome", "again"),
    [
        (contract.OVERLOADED, NOT_DELIVERED, True),
        (contract.OVERLOADED, None, False),
        (contract.RATE_LIMITED, NOT_DELIVERED, True),
        (contract.RATE_LIMITED, None, False),
        (contract.DRAINING, NOT_DELIVERED, True),
        (contract.DRAINING, None, False),
        (contract.DRAINING, UNKNOWN, False),
        (contract.NODE_LOST, UNKNOWN, False),
        (contract.TIMEOUT, None, False),
        (contract.TIMEOUT, NOT_DELIVERED, True),
        (contract.METHOD_NOT_FOUND, NOT_DELIVERED, False),
    ],
)
def test_what_is_safe_to_send_again(error: contract.RpcError, outcome: str | None, again: bool) -> None:
    data = {} if outcome is None else {"outcome": outcome}
    assert failure(error, "why", **data).may_be_sent_again is again


def test_a_lost_connection() -> None:
    error = ConnectionLost(End(LOST, "cut"), UNKNOWN)
    assert (error.name, error.outcome, error.temporary, error.end.code) == ("connection_lost", UNKNOWN, True, LOST)
    assert "cut" in str(error)
    assert not ConnectionLost(End(4501), NOT_DELIVERED).temporary
    assert ConnectionLost(CLOSED, NOT_DELIVERED).outcome == NOT_DELIVERED


@pytest.mark.parametrize("error", [CallError(7, "no film", {"left": 0}), ConnectionLost(End(LOST), UNKNOWN)])
def test_an_error_survives_pickle(error: CallError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.code, again.message, again.data) == (error.code, error.message, error.data)


def test_errors_of_the_wire() -> None:
    error = received(b'{"code":7,"message":"no film","data":{"left":0},"more":1}')
    assert (error.code, error.message, error.data) == (7, "no film", {"left": 0})
    assert received(b'"oops"').code == 0
    assert received(b'{"code":1e999}').code == 0


@pytest.mark.parametrize("said", ["not_delivered", "unknown", "rain", 7])
def test_what_a_node_says_of_the_outcome_makes_it_unknown(said: Any) -> None:
    error = CallError(-32009, "Too many", {"code": "overloaded", "temporary": True, "nodeOutcome": said})
    assert (error.outcome, error.may_be_sent_again) == (UNKNOWN, False)
    assert CallError(-32009, "Too many", {"outcome": said}).outcome == (
        said if said in (NOT_DELIVERED, UNKNOWN) else None
    )
