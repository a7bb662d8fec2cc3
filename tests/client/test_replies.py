"""The replies to served calls: always valid, whatever a method returns or raises."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from gateway.client import replies
from gateway.client.errors import CallError
from gateway.rpc import jsonrpc


def everything_fits(_: bytes) -> bool:
    return True


def cycle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


NOT_JSON: dict[str, Any] = {
    "surrogate": "\ud83d",
    "deep": deep(100_000),
    "cycle": cycle(),
    "object": object(),
    "key": {object(): 1},
    "garbage": Raw(b'{"a"'),
    "nothing": Raw(b""),
    "two": Raw(b'1,"method":"x"'),
    "bytes": Raw(b'"\xff"'),
}


def read(reply: bytes) -> dict[str, Any]:
    """Read it as the gateway does."""
    reply.decode()
    jsonrpc.decode(reply)
    message: dict[str, Any] = msgspec.json.decode(reply)
    assert message.keys() in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"})
    assert (message["jsonrpc"], message["id"]) == ("2.0", 7)
    if "error" in message:
        assert (type(message["error"]["code"]), type(message["error"]["message"])) == (int, str)
    return message


@pytest.mark.parametrize("name", NOT_JSON)
def test_a_result_that_is_no_json(name: str, caplog: pytest.LogCaptureFixture) -> None:
    message = read(replies.of_result(b"7", "work.do", NOT_JSON[name], everything_fits))
    assert (message["error"]["code"], message["error"]["data"]["outcome"]) == (-32603, "unknown")
    (record,) = caplog.records
    assert record.exc_info


@pytest.mark.parametrize("name", NOT_JSON)
@pytest.mark.parametrize("member", ["code", "message", "data"])
def test_an_error_that_is_no_json(name: str, member: str, caplog: pytest.LogCaptureFixture) -> None:
    error = CallError(1001, "no film", {"left": 0})
    setattr(error, member, NOT_JSON[name])
    message = read(replies.of_error(b"7", "work.do", error, everything_fits))
    assert message["error"]["code"] == -32603
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("code", "message"), [("1", "x"), (1.5, "x"), (None, "x"), (True, "x"), (1, None), (1, 7)])
def test_an_error_that_is_no_error_of_json_rpc(code: Any, message: Any) -> None:
    assert read(replies.of_error(b"7", "x", CallError(code, message), everything_fits))["error"]["code"] == -32603


def test_what_is_sent_as_it_is() -> None:
    assert read(replies.of_result(b"7", "x", {"a": (1, Raw(b"[2]"))}, everything_fits))["result"] == {"a": [1, [2]]}
    assert read(replies.of_result(b"7", "x", None, everything_fits))["result"] is None
    busy = {"code": "overloaded", "retryAfterMs": 1, "temporary": True}
    for data in ({"left": 0}, [1], "text", 0, False, busy, busy | {"outcome": "rain"}):
        error = read(replies.of_error(b"7", "x", CallError(1001, "no film", data), everything_fits))["error"]
        assert error == {"code": 1001, "message": "no film", "data": data}
    assert "data" not in read(replies.of_error(b"7", "x", CallError(1001, "no film"), everything_fits))["error"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda fits: replies.of_result(b"7", "x", "x" * 1000, fits), "the answer is larger"),
        (lambda fits: replies.of_error(b"7", "x", CallError(1, "x" * 1000), fits), "the error is larger"),
        (lambda fits: replies.of_error(b"7", "x", CallError(1, "x", ["x" * 1000]), fits), "the error is larger"),
    ],
)
def test_what_is_larger_than_the_gateway_takes(
    make: Callable[[replies.Fits], bytes], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = read(make(lambda data: len(data) < 1000))["error"]
    assert (error["code"], error["data"]["outcome"]) == (-32603, "unknown")
    assert told in error["message"]
    assert len(caplog.records) == 1


INNER = {"code": "overloaded", "temporary": True}


@pytest.mark.parametrize(
    "data",
    [
        INNER | {"outcome": "not_delivered", "retryAfterMs": 100},
        INNER | {"nodeOutcome": "not_delivered"},
        {"outcome": "not_delivered", "temporary": True},
    ],
)
def test_what_a_nested_call_came_to_is_not_told_of_the_outer_one(data: dict[str, Any]) -> None:
    error = read(replies.of_error(b"7", "x", CallError(-32009, "Too many", data), everything_fits))["error"]
    assert (error["code"], error["message"]) == (-32009, "Too many")
    assert error["data"].pop("outcome") == "unknown"
    assert error["data"] == {name: value for name, value in data.items() if name in ("code", "temporary")}
    # The gateway renames what a node says of the outcome.
    for name in ("outcome", "nodeOutcome"):
        outer = CallError(-32009, "Too many", error["data"] | {name: "unknown"})
        assert (outer.outcome, outer.may_be_sent_again) == ("unknown", False)


async def test_a_defect_is_logged_with_its_traceback_and_its_caller_is_told_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, "gateway.client"):
        error = read(replies.of_defect(b"7", "work.do", asyncio.CancelledError("secret")))["error"]
    assert error["code"] == -32603
    assert "secret" not in str(error)
    (record,) = caplog.records
    assert record.exc_info
