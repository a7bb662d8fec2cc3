"""The table of methods as OpenRPC and as a page: valid, whole, and true of what the methods do."""

import json
from collections.abc import Callable
from copy import deepcopy
from enum import Enum
from typing import Annotated, Any, NamedTuple

import msgspec
import pytest
from msgspec import Meta, Raw
from pytest_aiohttp import AiohttpClient

from gateway import __version__
from gateway.app import GATEWAY, create_app
from gateway.auth.scopes import Principal, role_scopes
from gateway.config import Config
from gateway.rpc.method import AUTHENTICATED, CALL, Method, collect, method
from gateway.rpc.openrpc import document, markdown
from tests.support import sample_methods
from tests.support.meta_schema import document_problems, params_problems, result_problems
from tests.support.methods_page import PAGE, page
from tests.support.rpc import Caller, serve


class Mode(Enum):
    """How."""

    FAST = "fast"
    FINE = "fine"


class Size(msgspec.Struct, forbid_unknown_fields=True):
    """In pixels."""

    width: Annotated[int, Meta(ge=1)]
    height: Annotated[int, Meta(ge=1)] = 480


class Shot(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """What to take."""

    file_name: Annotated[str, Meta(description="where | to")]
    size: Size
    mode: Mode = Mode.FAST
    tags: list[str] = []


class Picture(msgspec.Struct):
    """What was taken, with those that it was made of."""

    data: bytes
    parts: "list[Picture]" = []


class Camera:
    """Methods of many kinds."""

    @method("camera.shoot", scope=CALL)
    async def shoot(self, peer: object, params: Shot) -> Picture:
        """Take a picture, now.

        And keep it.

        For ever.
        """
        return Picture(params.file_name.encode(), [Picture(b"")])

    @method("camera.count", scope=AUTHENTICATED)
    def count(self, peer: object) -> int:
        """Count the pictures."""
        return 3

    @method("camera.raw", scope="admin")
    def raw(self, peer: object, params: bytes) -> Raw:
        """Take anything."""
        return Raw(params or b"null")

    @method("camera.sizes", scope=CALL)
    def sizes(self, peer: object) -> dict[str, Size | None]:
        """Tell the sizes."""
        return {"a": Size(1), "b": None}

    @method("camera.off", scope=CALL)
    def off(self, peer: object) -> None:
        """Switch it off."""

    @method("camera.undocumented", scope=CALL)
    def undocumented(self, peer: object) -> object:
        return object

    undocumented.__annotations__.clear()  # a user's method may have no types at all


class Opaque:
    """A type that JSON schema does not know."""


def table(*sources: object) -> list[Method]:
    return sorted((entry for source in sources for entry in collect(source)), key=lambda entry: entry.name)


def of(*sources: object) -> dict[str, Any]:
    """The document of these methods, as a client gets it."""
    decoded: dict[str, Any] = json.loads(msgspec.json.encode(document(table(*sources))))
    return decoded


def described(name: str) -> dict[str, Any]:
    (found,) = (entry for entry in of(Camera())["methods"] if entry["name"] == name)
    return dict(found)


# The document


@pytest.mark.parametrize("sources", [(), (Camera(),), (sample_methods,), (sample_methods, Camera())])
def test_a_document_is_valid(sources: tuple[object, ...]) -> None:
    assert document_problems(of(*sources)) == []


def test_an_invalid_document_is_found_out() -> None:
    valid = of(Camera())
    spoilt = []
    changes: tuple[Callable[[Any], object], ...] = (
        lambda it: it.update(openrpc="9.9.9"),
        lambda it: it.pop("info"),
        lambda it: it["info"].pop("version"),
        lambda it: it.update(surplus=1),
        lambda it: it["methods"][0].pop("name"),
        lambda it: it["methods"][0].update(paramStructure="neither"),
        lambda it: it["methods"][0].update(params=[{"name": "a", "schema": {"type": "nonsense"}}]),
        lambda it: it["methods"][0]["result"].pop("schema"),
        lambda it: it["components"]["schemas"].update(a={"required": 1}),
    )
    for change in changes:
        spoilt.append(deepcopy(valid))
        change(spoilt[-1])
    assert document_problems(valid) == []
    assert all(map(document_problems, spoilt))


def test_what_a_document_says_of_itself() -> None:
    whole = of()
    assert whole["openrpc"] == "1.3.2"
    assert whole["info"]["title"] == "aisopod-gateway"
    assert whole["info"]["version"] == __version__
    assert whole["methods"] == []


def test_a_method_is_described_by_its_docstring_its_types_and_its_scope() -> None:
    shoot = described("camera.shoot")
    assert shoot["summary"] == "Take a picture, now."
    assert shoot["description"] == "And keep it.\n\nFor ever."
    assert shoot["paramStructure"] == "either"
    assert shoot["x-scope"] == "call:camera.shoot"
    assert [(one["name"], one["required"]) for one in shoot["params"]] == [
        ("fileName", True),
        ("size", True),
        ("mode", False),
        ("tags", False),
    ]
    assert shoot["params"][0]["schema"] == {"type": "string", "description": "where | to"}
    assert shoot["params"][3]["schema"] == {"type": "array", "items": {"type": "string"}, "default": []}
    assert shoot["result"]["schema"] == {"$ref": "#/components/schemas/Picture"}


def test_methods_without_parameters_types_or_words() -> None:
    assert described("camera.count")["params"] == []
    assert described("camera.count")["result"]["schema"] == {"type": "integer"}
    assert described("camera.count")["x-scope"] == "authenticated"
    assert "description" not in described("camera.count")
    assert described("camera.off")["result"]["schema"] == {"type": "null"}
    assert described("camera.undocumented")["result"]["schema"] == {}
    assert described("camera.undocumented")["summary"] == ""
    raw = described("camera.raw")
    assert (raw["params"], raw["x-params"], raw["result"]["schema"]) == ([], "any array or object, or none", {})


class Told(NamedTuple):
    """A method of a node, as the node tells of it."""

    name: str
    summary: str
    params: bytes


def test_methods_of_nodes_are_described_in_their_own_words() -> None:
    served = [Told("lamp.off", "", b""), Told("lamp.on", "Switch it on.", b'{"type" : "object", "max": 1e400}')]
    text = msgspec.json.encode(document(table(Camera()), served))
    assert b'"x-params":{"type" : "object", "max": 1e400}' in text
    whole = json.loads(text)
    assert document_problems(whole) == []
    assert whole["methods"][:-2] == of(Camera())["methods"]
    off, on = whole["methods"][-2:]
    assert off == {
        "name": "lamp.off",
        "summary": "",
        "paramStructure": "either",
        "params": [],
        "result": {"name": "result", "schema": {}},
        "x-scope": "call:lamp.off",
    }
    assert (on["name"], on["summary"], on["x-scope"]) == ("lamp.on", "Switch it on.", "call:lamp.on")


@pytest.mark.parametrize("params", [b"null", b"[]", b'"words"', b"7", b'{"$ref":"#/nowhere"}'])
def test_whatever_a_node_says_of_parameters_the_document_stays_valid(params: bytes) -> None:
    whole = json.loads(msgspec.json.encode(document([], [Told("lamp.on", "", params)])))
    assert document_problems(whole) == []
    assert whole["methods"][0]["x-params"] == json.loads(params)


def test_every_reference_of_a_document_leads_somewhere() -> None:
    whole = of(Camera(), sample_methods)
    references = {part for part in json.dumps(whole).split('"') if part.startswith("#/components/schemas/")}
    assert {name.rpartition("/")[2] for name in references} <= whole["components"]["schemas"].keys()
    assert len(references) >= 3


def test_two_structs_of_one_name_stay_two() -> None:
    class Size(msgspec.Struct):
        """In metres."""

        metres: float

    @method("tape.measure", scope=CALL)
    def measure(peer: object, params: Size) -> float:
        """Measure."""
        return params.metres

    measure.__annotations__["params"] = Size
    whole = of(Camera(), measure)
    assert document_problems(whole) == []
    assert params_problems(whole, "tape.measure", {"metres": 1.5}) == []
    assert params_problems(whole, "camera.shoot", {"fileName": "a", "size": {"width": 1}}) == []
    assert params_problems(whole, "camera.shoot", {"fileName": "a", "size": {"metres": 1}}) != []


def test_a_type_without_a_schema_is_refused_when_the_method_is_declared() -> None:

    @method("opaque", scope=CALL)
    def opaque(peer: object) -> Opaque:
        """Return what only the method knows."""
        return Opaque()

    with pytest.raises(TypeError, match=r"^method opaque: "):
        table(opaque)


# The document and the methods


@pytest.fixture
async def caller(aiohttp_client: AiohttpClient) -> Caller:
    return await serve(aiohttp_client, [Camera(), sample_methods])


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("camera.shoot", {"fileName": "a", "size": {"width": 1}}),
    ("camera.shoot", {"fileName": "a", "size": {"width": 1, "height": 2}, "mode": "fine", "tags": ["b"]}),
    ("camera.count", {}),
    ("camera.sizes", {}),
    ("camera.off", {}),
    ("subtract", {"minuend": 1, "subtrahend": 2}),
    ("get_data", {}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("camera.shoot", {"fileName": "a"}),
    ("camera.shoot", {"fileName": 1, "size": {"width": 1}}),
    ("camera.shoot", {"fileName": "a", "size": {"width": 0}}),
    ("camera.shoot", {"fileName": "a", "size": {"width": 1}, "mode": "slow"}),
    ("camera.shoot", {"fileName": "a", "size": {"width": 1}, "more": 1}),
    ("camera.count", {"more": 1}),
    ("subtract", {"minuend": 1}),
    ("subtract", {"minuend": 1, "subtrahend": None}),
]


@pytest.mark.parametrize(("name", "params"), GOOD)
async def test_what_the_document_allows_is_taken_and_answered_as_it_says(
    caller: Caller, name: str, params: dict[str, Any]
) -> None:
    whole = await caller.result("rpc.discover")
    assert params_problems(whole, name, params) == []
    assert result_problems(whole, name, await caller.result(name, params)) == []


@pytest.mark.parametrize(("name", "params"), BAD)
async def test_what_the_document_forbids_is_refused(caller: Caller, name: str, params: dict[str, Any]) -> None:
    whole = await caller.result("rpc.discover")
    assert params_problems(whole, name, params) != []
    assert (await caller.call(name, params))["error"]["code"] == -32602


@pytest.mark.parametrize(
    "principal",
    [
        Principal("me", "operator", ("*",)),
        Principal("me", "operator", role_scopes("operator", "me")),
        Principal("page", "ui", role_scopes("ui", "tv")),
        Principal("kitchen", "node", role_scopes("node", "kitchen-pi")),
        Principal("page", "ui", ("call:camera.shoot", "call:camera.s*")),
        Principal("page", "ui", ("call:camera.*",)),
        Principal("auditor", "ui", ("admin",)),
        Principal("nobody", "ui", ()),
    ],
    ids=lambda principal: f"{principal.role} {' '.join(principal.scopes)}",
)
async def test_exactly_what_this_connection_may_call_is_listed(
    aiohttp_client: AiohttpClient, principal: Principal
) -> None:
    caller = await serve(aiohttp_client, [Camera()])
    caller.connection.principal = principal
    whole = await caller.result("rpc.discover")
    assert document_problems(whole) == []
    listed = [entry["name"] for entry in whole["methods"]]
    assert listed == sorted(set(listed))
    everything = caller.app[GATEWAY].dispatcher.methods
    assert set(listed) <= everything.keys()
    for name in everything:
        # Parameters that hardly anybody takes: only who may call the method learns so.
        reply = await caller.call(name, [1, 2, 3, 4, 5, 6])
        code = reply["error"]["code"] if "error" in reply else None
        taken = (None, -32602, -32600 if name == "connection.ack" else None)  # which is a notification alone
        assert code in (taken if name in listed else (-32003,)), name


# The page


def test_the_page_in_docs_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.support.methods_page"


def test_the_page_has_every_method_of_the_gateways_own() -> None:
    text = page()
    methods = create_app(Config())[GATEWAY].dispatcher.methods
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")][: len(methods)] == sorted(methods)
    for entry in methods.values():
        assert entry.doc.partition("\n")[0] in text


def test_a_page_is_proper_markdown() -> None:
    text = markdown(table(Camera()))
    assert text.startswith("# Methods\n")
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert "Who: scope `call:camera.shoot`." in text
    assert "Who: anyone authenticated." in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("|")[1:3] for row in rows[:4]] == [
        [" `fileName` ", " yes "],
        [" `size` ", " yes "],
        [" `mode` ", " no "],
        [" `tags` ", " no "],
    ]
    assert all(row.replace("\\|", "").count("|") == 4 for row in rows)


def test_a_page_says_what_its_references_stand_for() -> None:
    text = markdown(table(Camera()))
    for name in ("width", "height", "data", "parts", "In pixels.", "What was taken, with those that it was made of."):
        assert name in text
