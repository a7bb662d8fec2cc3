"""What each message gets for an answer: the peer is a list."""

import json
from typing import Any

import pytest

from gateway.dispatcher import Dispatcher
from gateway.status import Phase, Status


class Listener:
    """A peer that keeps what it is sent."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, payload: bytes) -> None:
        """Keep one JSON text."""
        self.messages.append(json.loads(payload))


def answers(message: object, phase: Phase = Phase.READY) -> list[Any]:
    """Return all that a message is answered with; bytes are sent as they are."""
    status, peer = Status("an-instance", lambda: 0.0), Listener()
    status.phase = phase
    Dispatcher(status).dispatch(peer, message if isinstance(message, bytes) else json.dumps(message).encode())
    return peer.messages


def call(identity: Any, method: str = "no.such.method") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identity, "method": method}


@pytest.mark.parametrize("identity", [1, "a", None, -5, ""])
def test_a_request_without_a_method_of_that_name(identity: Any) -> None:
    (reply,) = answers(call(identity))
    error = reply.pop("error")
    assert reply == {"jsonrpc": "2.0", "id": identity}
    assert (error["code"], error["data"]) == (-32601, {"code": "method_not_found", "temporary": False})
    assert "no.such.method" in error["message"]


@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "method": "no.such.method"},
        {"jsonrpc": "2.0", "id": 1, "result": 5},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "x"}},
        [{"jsonrpc": "2.0", "method": "a"}, {"jsonrpc": "2.0", "method": "b"}],
    ],
    ids=["notification", "result", "error", "batch of notifications"],
)
def test_what_is_not_answered(message: object) -> None:
    assert answers(message) == []


@pytest.mark.parametrize(
    ("message", "code"),
    [(b"{", -32700), (b"[1,", -32700), (b"5", -32600), (b"[]", -32600), (b'{"jsonrpc":"2.0"}', -32600)],
)
def test_what_is_no_request_is_answered_once(message: bytes, code: int) -> None:
    (reply,) = answers(message)
    assert (reply["id"], reply["error"]["code"]) == (None, code)


def test_a_batch_gets_one_array_without_its_notifications() -> None:
    batch = [call(1), {"jsonrpc": "2.0", "method": "a"}, 5, call("x")]
    (replies,) = answers(batch)
    assert [(reply["id"], reply["error"]["code"]) for reply in replies] == [
        (1, -32601),
        (None, -32600),
        ("x", -32601),
    ]


def test_a_batch_of_one_gets_an_array_of_one() -> None:
    (replies,) = answers([call(1)])
    assert [reply["id"] for reply in replies] == [1]


def test_while_draining_new_requests_are_refused() -> None:
    (reply,) = answers(call(1), Phase.DRAINING)
    assert reply["error"]["code"] == -32011
    assert reply["error"]["data"] == {"code": "draining", "temporary": True}


@pytest.mark.parametrize("method", ["gateway.ping", "rpc.discover"])
def test_while_draining_some_methods_go_on(method: str) -> None:
    (reply,) = answers(call(1, method), Phase.DRAINING)
    assert reply["error"]["code"] != -32011


def test_while_draining_notifications_are_still_not_answered() -> None:
    assert answers({"jsonrpc": "2.0", "method": "event.publish"}, Phase.DRAINING) == []
