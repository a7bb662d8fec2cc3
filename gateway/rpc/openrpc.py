"""The table of methods as an OpenRPC 1.3 document (spec.open-rpc.org), and as a page to read. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw

from gateway import __version__
from gateway.rpc.method import AUTHENTICATED, Method

VERSION: Final = "1.3.2"

_TEMPLATE: Final = "#/components/schemas/{name}"
_INFO: Final = {
    "title": "aisopod-gateway",
    "version": __version__,
    "description": "All that this connection may call.",
}


class Described(Protocol):
    """A method of a node, in the node's own words; ``params`` is any JSON."""

    @property
    def name(self) -> str:
        """What it is called by."""

    @property
    def summary(self) -> str:
        """A sentence."""

    @property
    def params(self) -> bytes:
        """Empty where nothing is known of them."""


def document(methods: Iterable[Method], served: Iterable[Described] = ()) -> dict[str, Any]:
    """The OpenRPC document of these methods, and of those that nodes serve."""
    entries = list(methods)
    types = [part for entry in entries for part in (entry.params, entry.result) if _has_schema(part)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    known = dict(zip(map(id, types), schemas, strict=True))
    return {
        "openrpc": VERSION,
        "info": _INFO,
        "methods": [*(_method(entry, known, components) for entry in entries), *map(_served, served)],
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


def _served(entry: Described) -> dict[str, Any]:
    """What is known of a node's method: its parameters as it describes them, by custom in a JSON Schema."""
    described: dict[str, Any] = {
        "name": entry.name,
        "summary": entry.summary,
        "paramStructure": "either",
        "params": [],
        "result": {"name": "result", "schema": {}},
        "x-scope": f"call:{entry.name}",
    }
    if entry.params:
        described["x-params"] = Raw(entry.params)
    return described


def _params(entry: Method, known: dict[int, dict[str, Any]], components: dict[str, Any]) -> list[dict[str, Any]]:
    """A content descriptor for each field of the parameters' struct, in the order of positions."""
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
    """The page that `docs/methods.md` is."""
    lines = [
        "# Methods",
        "",
        "Made by `python -m tests.support.methods_page` from the table. `rpc.discover` says the same as OpenRPC.",
    ]
    whole = document(methods)
    for entry in whole["methods"]:
        lines += ["", f"## {entry['name']}", "", entry["summary"]]
        if "description" in entry:
            lines += ["", entry["description"]]
        scope = "anyone authenticated" if entry["x-scope"] == AUTHENTICATED else f"scope `{entry['x-scope']}`"
        lines += ["", f"Who: {scope}.", ""]
        if "x-params" in entry:
            lines += [f"Parameters: {entry['x-params']}."]
        elif not entry["params"]:
            lines += ["Parameters: none."]
        else:
            lines += ["| parameter | required | schema |", "|---|---|---|"]
            lines += [
                f"| `{one['name']}` | {'yes' if one['required'] else 'no'} | `{_json(one['schema'])}` |"
                for one in entry["params"]
            ]
        lines += ["", f"Result: `{_json(entry['result']['schema'])}`"]
    lines += ["", "# Types"]
    for name, schema in sorted(whole["components"]["schemas"].items()):
        lines += ["", f"## {name}", ""]
        if "description" in schema:
            lines += [schema["description"], ""]
        lines += ["| member | required | schema |", "|---|---|---|"]
        required = schema.get("required", ())
        lines += [
            f"| `{member}` | {'yes' if member in required else 'no'} | `{_json(of)}` |"
            for member, of in schema.get("properties", {}).items()
        ]
    return "\n".join(lines) + "\n"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode().replace("|", "\\|")
