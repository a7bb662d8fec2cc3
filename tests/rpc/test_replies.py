"""What becomes of a result, a refusal or a defect, without a dispatcher; test_dispatcher.py has them with one."""

import logging
from typing import Any

import pytest
from msgspec import Raw

from gateway import errors
from gateway.rpc.method import BadParams, Refusal
from gateway.rpc.replies import (
    ANSWERED,
    SMALL,
    Batch,
    failure,
    fitting,
    outcome_of,
    send_then,
    success,
    too_much,
)
from gateway.telemetry.lines import Lines
from tests.support.rpc import Listing, accepted, refused

SURROGATE = "\ud83d"


@pytest.fixture
def caller() -> Listing:
    return Listing()


def failed(caller: Listing, error: BaseException, request_id: bytes = b"1") -> str | None:
    """The error reply as text; None if there is none."""
    reply = failure(caller, "lamp.on", request_id, error, Lines())
    return None if reply is None else reply.decode()


# A result


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, "null"),
        ({"a": [1, "ü"]}, '{"a":[1,"ü"]}'),
        (Raw(b'{ "as": "it is" }'), '{ "as": "it is" }'),
        ([Raw(b"1.0"), 1.0], "[1.0,1.0]"),
    ],
)
def test_a_result_is_encoded_unless_it_is_json_already(result: Any, text: str) -> None:
    assert success(b'"an id"', result).decode() == accepted(text, '"an id"')


@pytest.mark.parametrize("result", [object(), {"key": object()}, SURROGATE])
def test_a_result_that_is_no_json_is_the_callers_business(result: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        success(b"1", result)


# A reply, and what comes after it


def test_what_comes_after_a_reply_finds_it_sent(caller: Listing) -> None:
    seen: list[str] = []
    assert send_then(caller, b"reply", lambda: seen.extend(caller.sent), None) is None
    assert (caller.take(), seen) == (["reply"], ["reply"])


def test_what_comes_after_a_notification_is_done_without_a_reply(caller: Listing) -> None:
    done: list[int] = []
    assert send_then(caller, None, lambda: done.append(1), None) is None
    assert (caller.take(), done) == ([], [1])


def test_what_comes_after_a_reply_in_a_batch_waits_for_the_batch(caller: Listing) -> None:
    batch = Batch(caller)
    done: list[str] = []
    batch.add(b"1", send_then(caller, b"1", lambda: done.append("first"), batch))
    batch.add(b"1", send_then(caller, None, lambda: done.append(caller.sent[0]), batch))
    assert (caller.sent, done) == ([], [])
    batch.done(b"", None)
    assert (caller.take(), done) == (["[1]"], ["first", "[1]"])


# A batch


def test_a_batch_is_sent_with_the_last_of_its_replies(caller: Listing) -> None:
    batch = Batch(caller)
    batch.add(b"1", b"1")
    batch.expect()
    batch.expect()
    batch.add(b"2", b"2")
    batch.done(b"", None)
    batch.done(b"3", b"3")
    assert caller.take() == []
    batch.done(b"4", b"4")
    assert caller.take() == ["[1,2,3,4]"]


def test_a_batch_waits_for_its_own_end(caller: Listing) -> None:
    batch = Batch(caller)
    batch.expect()
    batch.done(b"1", b"1")
    assert caller.take() == []
    batch.done(b"", None)
    assert caller.take() == ["[1]"]


def test_a_batch_holds_no_more_than_its_caller_has_room_for(caller: Listing) -> None:
    caller.room = 10
    batch = Batch(caller)
    batch.add(b"1", b"123456")
    batch.add(b"2", b"12345")
    batch.add(b"3", b"1234")
    assert caller.room == 0
    batch.done(b"", None)
    assert caller.take() == [f"[123456,{too_much(b'2').decode()},1234]"]
    assert caller.room == 10


def test_a_reply_without_room_is_refused_and_its_outcome_is_not_known() -> None:
    detail = "the caller has not read the replies before"
    assert too_much(b"2").decode() == refused(-32009, detail, "2", retryAfterMs=100, outcome="unknown")


def test_what_is_answered_within_a_batch_stays_in_flight_until_the_batch_is_sent(caller: Listing) -> None:
    batch = Batch(caller)
    for _ in range(2):
        batch.expect()
    batch.done(b"", None)
    batch.done(b"1", b"11")
    assert (caller.running, caller.settlements) == ({b"1": ANSWERED}, 0)
    for waiting in caller.running.values():
        waiting.cancel(errors.CANCELLED)
        waiting.abandon()
        waiting.drained()
    batch.done(b"2", b"22")
    assert (caller.take(), caller.running, caller.settlements) == (["[11,22]"], {}, 1)


def test_a_late_reply_that_is_not_small_is_refused_while_its_caller_does_not_read(caller: Listing) -> None:
    small, large = bytes(SMALL), bytes(SMALL + 1)
    assert fitting(caller, b"1", large) is large
    caller.link.pressed = True
    assert fitting(caller, b"1", small) is small
    assert fitting(caller, b"1", None) is None
    assert fitting(caller, b"1", large) == too_much(b"1")


def test_a_batch_without_replies_sends_nothing_and_goes_on(caller: Listing) -> None:
    batch = Batch(caller)
    done: list[int] = []
    batch.after.append(lambda: done.append(1))
    batch.expect()
    batch.add(b"1", None)
    batch.done(b"", None)
    assert done == []
    batch.done(b"", None)
    assert (caller.take(), done) == ([], [1])


# A failure


def test_a_refusal_is_told_and_not_logged(caller: Listing, caplog: pytest.LogCaptureFixture) -> None:
    refusal = Refusal(errors.NOT_FOUND, "no such lamp", lamp="a")
    assert failed(caller, refusal) == refused(-32004, "no such lamp", lamp="a")
    assert failed(caller, refusal, b"") is None
    assert (outcome_of(refusal), caplog.records) == ("not_found", [])


def test_wrong_parameters_are_told_and_not_logged(caller: Listing, caplog: pytest.LogCaptureFixture) -> None:
    assert failed(caller, BadParams("name: too long")) == refused(-32602, "name: too long")
    assert failed(caller, BadParams("name: too long"), b"") is None
    assert (outcome_of(BadParams()), caplog.records) == ("invalid_params", [])


@pytest.mark.parametrize("request_id", [b"1", b""])
@pytest.mark.parametrize("error", [ValueError("swordfish"), SystemError(), KeyError(SURROGATE)])
def test_a_defect_is_logged_and_nothing_of_it_is_told(
    caller: Listing, caplog: pytest.LogCaptureFixture, error: Exception, request_id: bytes
) -> None:
    assert failed(caller, error, request_id) == (refused(-32603) if request_id else None)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("gateway.rpc.replies", logging.ERROR)
    assert record.getMessage() == "method lamp.on failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    fields = vars(record)
    told = {name: fields[name] for name in ("event", "connId", "remote", "method")}
    assert told == {"event": "call.failed", "connId": caller.conn_id, "remote": caller.remote, "method": "lamp.on"}
    assert outcome_of(error) == "internal_error"


@pytest.mark.parametrize("refusal", [Refusal(errors.CONFLICT, SURROGATE), Refusal(errors.CONFLICT, lamp=object())])
def test_a_refusal_that_is_no_json_is_a_defect(
    caller: Listing, caplog: pytest.LogCaptureFixture, refusal: Refusal
) -> None:
    assert failed(caller, refusal) == refused(-32603)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], (TypeError, ValueError))
    assert record.getMessage() == "method lamp.on failed"
