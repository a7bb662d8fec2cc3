"""Makes an OpenRPC 1.3 document (spec.open-rpc.org) of the table of methods, and a page for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw

from gateway import __version__
from gateway.rpc.method import AUTHENTICATED, Method

VERSION: Final = "1.3.2"
"""The version of OpenRPC."""

_TEMPLATE: Final = "#/components/schemas/{name}"
_INFO: Final = {
    "title": "aisopod-gateway",
    "version": __version__,
    "description": "All that this connection may call.",
}


class Described(Protocol):
    """A method of a node, in the node's own words."""

    @property
    def name(self) -> str:
        """The name that it is called by."""

    @property
    def summary(self) -> str:
        """What it does, in a sentence."""

    @property
    def params(self) -> bytes:
        """What its parameters are, as JSON; empty if the node does not say."""


def document(methods: Iterable[Method], served: Iterable[Described] = ()) -> dict[str, Any]:
    """Return the OpenRPC document of these methods of the gateway, and of the methods ``served`` by nodes."""
    entries = list(methods)
    types = [part for entry in entries for part in (entry.params, entry.result) if _has_schema(part)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    known = dict(zip(map(id, types), schemas, strict=True))
    return {
        "openrpc": VERSION,
        "info": _INFO,
        "methods": [*(_method(entry, known, components) for entry in entries), *map(described, served)],
        "components": {"schemas": components},
    }


def _has_schema(part: Any) -> bool:
    return part is not None and part not in (bytes, Raw)


def _method(entry: Method, known: dict[int, dict[str, Any]], components: dict[str, Any]) -> dict[str, Any]:
    summary, _, more = entry.doc.partition("\n\n")
    described: dict[str, Any] = {
        "name": entry.name,
        "summary": " ".join(summary.split()),
        "paramStructure": "either",
        "params": _params(entry, known, components),
        "result": {"name": "result", "schema": known.get(id(entry.result), {})},
        "x-scope": entry.scope or "",
    }
    if more:
        described["description"] = more
    if entry.params is bytes:
        described["x-params"] = "any array or object, or none"
    return described


def described(entry: Described, brief: bool = False) -> dict[str, Any]:
    """Return the method object of a node's method. If it is ``brief``, what the node says of the method is left out.

    Its parameters are in the node's own words, which by custom are a JSON Schema.
    """
    told: dict[str, Any] = {
        "name": entry.name,
        "summary": "" if brief else entry.summary,
        "paramStructure": "either",
        "params": [],
        "result": {"name": "result", "schema": {}},
        "x-scope": f"call:{entry.name}",
    }
    if entry.params and not brief:
        told["x-params"] = Raw(entry.params)
    return told


def _params(entry: Method, known: dict[int, dict[str, Any]], components: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a content descriptor for each field of the parameters' struct, in the order of positions."""
    if not _has_schema(entry.params):
        return []
    schema = known[id(entry.params)]
    schema = components[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    required = schema.get("required", ())
    return [
        {"name": name, "required": name in required, "schema": field}
        for name, field in schema.get("properties", {}).items()
    ]


def markdown(methods: Iterable[Method]) -> str:
    """Return the text of `docs/methods.md`."""
    whole = document(methods)
    lines = [
        "# Methods",
        "",
        "Made by `python -m tests.support.methods_page` from the table. `rpc.discover` says the same as OpenRPC.",
    ]
    for entry in whole["methods"]:
        lines += _method_section(entry)
    lines += ["", "# Types"]
    for name, schema in sorted(whole["components"]["schemas"].items()):
        lines += _type_section(name, schema)
    return "\n".join(lines) + "\n"


def _method_section(entry: dict[str, Any]) -> list[str]:
    lines = ["", f"## {entry['name']}", "", entry["summary"]]
    if "description" in entry:
        lines += ["", entry["description"]]
    scope = "anyone authenticated" if entry["x-scope"] == AUTHENTICATED else f"scope `{entry['x-scope']}`"
    lines += ["", f"Who: {scope}.", ""]
    if "x-params" in entry:
        lines += [f"Parameters: {entry['x-params']}."]
    elif not entry["params"]:
        lines += ["Parameters: none."]
    else:
        lines += _table("parameter", ((param["name"], param["required"], param["schema"]) for param in entry["params"]))
    return [*lines, "", f"Result: `{_json(entry['result']['schema'])}`"]


def _type_section(name: str, schema: dict[str, Any]) -> list[str]:
    lines = ["", f"## {name}", ""]
    if "description" in schema:
        lines += [schema["description"], ""]
    required = schema.get("required", ())
    members = schema.get("properties", {}).items()
    return lines + _table("member", ((member, member in required, of) for member, of in members))


def _table(what: str, rows: Iterable[tuple[str, bool, Any]]) -> list[str]:
    """Return the lines of a table. A row has a name, whether that is required, and its JSON Schema."""
    head = [f"| {what} | required | schema |", "|---|---|---|"]
    return head + [
        f"| `{name}` | {'yes' if required else 'no'} | `{_json(schema)}` |" for name, required, schema in rows
    ]


def _json(value: object) -> str:
    """Return JSON that may stand in a cell of a table."""
    return msgspec.json.encode(value).decode().replace("|", "\\|")
