"""The names that a module with methods of a user's own imports are there, and a method made of them is served."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from pytest_aiohttp import AiohttpClient

from gateway import api
from gateway.api import (
    AUTHENTICATED,
    CALL,
    BadParams,
    CallError,
    Connection,
    Refusal,
    RpcError,
    Then,
    errors,
    method,
)
from tests.support.rpc import Caller, accepted, refused, request, serve

ROOT = Path(__file__).resolve().parent.parent
STUCK = RpcError(7, "valve_stuck", "The valve is stuck", temporary=True)


class Bed(msgspec.Struct):
    """One bed."""

    bed: int


@method("garden.open", scope=AUTHENTICATED)
def open_valve(peer: Connection, params: Bed) -> Then[int]:
    """Open a valve, and say so after the reply."""
    if params.bed == 0:
        raise BadParams("bed: there is no bed 0")
    if params.bed == 1:
        raise Refusal(errors.CONFLICT, "bed 1 is being watered")
    return Then(params.bed, lambda: peer.notify("garden.opened", {"bed": params.bed}))


@method("garden.ask", scope=CALL)
async def ask(peer: Connection) -> None:
    """Call the caller's own method `agree`."""
    try:
        await peer.call("agree", timeout=5.0)
    except CallError as error:
        raise Refusal(STUCK, error.message, retryAfterMs=5) from error


@pytest.fixture
async def caller(aiohttp_client: AiohttpClient) -> Caller:
    return await serve(aiohttp_client, [open_valve, ask])


def test_its_docstring_names_all_that_it_has() -> None:
    assert api.__doc__ is not None
    described = re.findall(r"^`(\w+)`  ", api.__doc__, re.MULTILINE)
    assert sorted(described) == sorted(api.__all__)
    assert all(hasattr(api, name) for name in api.__all__)


@pytest.mark.parametrize("page", ["README.md", "docs/methods-howto.md", "docs/example/mypackage/handlers.py"])
def test_what_the_documents_import_from_it_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    imported = re.findall(r"^from gateway\.api import (.*)$", text, re.MULTILINE)
    assert {name for line in imported for name in line.split(", ")} <= set(api.__all__)
    assert not re.search(r"^from gateway(\.(rpc|connections|errors)\b.*)? import", text, re.MULTILINE)
    assert "gateway.api" in text


async def test_a_method_made_of_it_is_served(caller: Caller) -> None:
    assert await caller.answers(request("garden.open", {"bed": 2})) == [
        accepted("2"),
        '{"jsonrpc":"2.0","method":"garden.opened","params":{"bed":2}}',
    ]


async def test_its_refusals_are_error_replies(caller: Caller) -> None:
    assert await caller.ask(request("garden.open", {"bed": 0})) == refused(-32602, "bed: there is no bed 0")
    assert await caller.ask(request("garden.open", {"bed": 1})) == refused(-32007, "bed 1 is being watered")


async def test_a_call_to_the_client_fails_as_a_call_error(caller: Caller) -> None:
    await caller.send(request("garden.ask"))
    asked = json.loads(await caller.receive())
    assert asked["method"] == "agree"
    answer = {"jsonrpc": "2.0", "id": asked["id"], "error": {"code": 1, "message": "no"}}
    await caller.send(json.dumps(answer))
    reply = json.loads(await caller.receive())
    assert reply["error"] == {
        "code": 7,
        "message": "The valve is stuck: no",
        "data": {"code": "valve_stuck", "temporary": True, "retryAfterMs": 5},
    }
