"""Reads the source of `gateway` and says where it leaves the layers of docs/design.md.

Nothing of `gateway` is imported for it: what counts is what the text says, also inside functions and under
TYPE_CHECKING. Every finding is one line for a person; an empty list means that all is well.
"""

import ast
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

__all__ = ["cycles", "intrusions", "misdirected", "read", "unplaced", "untested"]

# Module name, a package by its own name, to source text.
Sources = Mapping[str, str]

PACKAGE: Final = "gateway"


@dataclass(frozen=True)
class Layer:
    """Modules and packages by their first name below `gateway`, and foreign names that they may not know."""

    name: str
    members: frozenset[str]
    forbidden: frozenset[str] = frozenset()


# From the bottom up: a module may import from its own layer and from those before it in this table.
LAYERS: Final = (
    Layer(
        "pure",
        frozenset(
            {
                "errors",
                "config",
                "counts",
                "credentials",
                "frames",
                "jsonrpc",
                "limits",
                "method",
                "names",
                "openrpc",
                "proxies",
                "scopes",
                "status",
                "text",
                "timestamps",
                "topics",
            }
        ),
        frozenset({"aiohttp", "asyncio", "time", "uvloop"}),
    ),
    Layer(
        "services",
        frozenset(
            {
                "auth",
                "cluster",
                "delivery",
                "calls",
                "deadlines",
                "dispatcher",
                "events",
                "expiry",
                "jwts",
                "log",
                "metrics",
                "nodes",
                "presence",
                "rejections",
                "routing",
                "systemd",
                "tokens",
                "tracing",
            }
        ),
        frozenset({"aiohttp"}),
    ),
    Layer(
        "live",
        frozenset(
            {
                "admission",
                "antechamber",
                "connection",
                "connections",
                "handshake",
                "methods",
                "outbox",
                "reader",
                "websocket",
            }
        ),
    ),
    Layer("assembly", frozenset({"api", "app", "listener", "server", "terminal", "commands", "cli", "__main__"})),
)
RANKS: Final = {member: rank for rank, layer in enumerate(LAYERS) for member in layer.members}
# Beside the layers: they know next to nothing of the gateway, and only the assembly knows them.
LEAVES: Final = frozenset({"client", "console"})
LEAVES_MAY_KNOW: Final = frozenset({"errors", "jsonrpc"})
# The two halves of the WebSocket: the only modules that may touch aiohttp's private names.
INSIDERS: Final = frozenset({"gateway.websocket", "gateway.reader"})
# Documented as public, in spite of the underscore: os._exit, a named tuple's methods, logging._srcfile (its HOWTO).
PUBLIC: Final = frozenset({"_asdict", "_exit", "_field_defaults", "_fields", "_make", "_replace", "_srcfile"})


def read(root: Path) -> dict[str, str]:
    """Return the sources of the package in the project folder `root`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
        for path in sorted((root / PACKAGE).rglob("*.py"))
    }


def unplaced(sources: Sources) -> list[str]:
    """Find modules that stand in no layer."""
    return [
        f"{module} is in no layer: add {_member(module)!r} to LAYERS in tests/support/layers.py and to docs/design.md"
        for module in sources
        if module != PACKAGE and _member(module) not in RANKS.keys() | LEAVES
    ]


def misdirected(sources: Sources) -> list[str]:
    """Find imports that run upwards, that a layer may not have, or that are not written in full."""
    return [
        f"{module}:{line}: imports {target}, {why}"
        for module, source in sources.items()
        for line, target in _imports(ast.parse(source))
        if (why := _objection(module, target))
    ]


def cycles(sources: Sources) -> list[str]:
    """Find the first circle of modules that import each other."""

    def resolve(target: str) -> str:
        while target and target not in sources:
            target = target.rpartition(".")[0]
        return target

    graph = {
        module: {resolve(target) for _, target in _imports(ast.parse(source))} - {"", PACKAGE, module}
        for module, source in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" → ".join(reversed(error.args[1]))]
    return []


def intrusions(sources: Sources) -> list[str]:
    """Find uses of what is private to others, aiohttp above all, outside of the one module that may."""
    return [
        f"{module}:{line}: {what} is private to another; aiohttp's is for {', '.join(sorted(INSIDERS))}"
        for module, source in sources.items()
        if module not in INSIDERS
        for line, what in _private_uses(ast.parse(source))
    ]


def untested(sources: Sources, tests: Path) -> list[str]:
    """Find modules without a file of tests: gateway/cluster/memory.py has tests/test_cluster_memory.py."""
    packages = {module.rpartition(".")[0] for module in sources}
    wanted = {
        module: f"test_{'_'.join(module.split('.')[1:])}.py"
        for module in sources
        if module not in packages | {PACKAGE} and not module.endswith(".__main__")
    }
    return [f"{module} has no tests/{name}" for module, name in wanted.items() if not (tests / name).is_file()]


def _member(module: str) -> str:
    """Return the first name below the package, or an empty string for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the full dotted name of all that is imported, the imported name included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(base, names, level):
                prefix = "." * (level or 0) + (f"{base}." if base else "")
                yield from ((node.lineno, prefix + name.name) for name in names)
            case ast.Call(
                ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module"),
                [ast.Constant(str(name)), *_],
            ):
                yield node.lineno, name


def _objection(module: str, target: str) -> str:
    """Say why `module` must not import `target`, or return an empty string."""
    importer, imported = _member(module), _member(target)
    rank = RANKS.get(importer, len(LAYERS))
    if target.startswith("."):
        return "but an import is written in full"
    if target.partition(".")[0] != PACKAGE:
        forbidden = importer in RANKS and target.partition(".")[0] in LAYERS[rank].forbidden
        return f"which the layer {LAYERS[rank].name!r} does not know" if forbidden else ""
    if imported == importer:
        return ""
    if imported in LEAVES:
        return "" if rank == len(LAYERS) - 1 else "a leaf, which only the assembly may know"
    if importer in LEAVES and imported in RANKS.keys() - LEAVES_MAY_KNOW:
        return f"but a leaf knows {' and '.join(sorted(LEAVES_MAY_KNOW))} at most"
    # What is in no layer is a name in gateway/__init__.py, which is below all.
    above = RANKS.get(imported, -1) > (rank if importer else -1)
    return "which is above it" if above else ""


def _is_private(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name.startswith("_") and not dunder and name not in PUBLIC


def _private_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of each use of a private name that is not the module's own."""
    for line, target in _imports(tree):
        if any(map(_is_private, target.split("."))):
            yield line, target
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    ours = {"self", "cls", *(node.name for node in classes)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(owner, name) if _is_private(name) and not _is_ours(owner, ours):
                yield node.lineno, ast.unparse(node)
            case ast.Call(
                ast.Name("getattr" | "setattr" | "hasattr" | "delattr"), [owner, ast.Constant(str(name)), *_]
            ) if _is_private(name) and not _is_ours(owner, ours):
                yield node.lineno, ast.unparse(node)
    for node in classes:
        yield from _inherited_uses(tree, node)


def _is_ours(owner: ast.expr, ours: set[str]) -> bool:
    match owner:
        case ast.Name(name):
            return name in ours
        case ast.Call(ast.Name("super" | "type")):
            return True
    return False


def _inherited_uses(tree: ast.Module, node: ast.ClassDef) -> Iterator[tuple[int, str]]:
    """Yield the uses in a subclass of an aiohttp class of names that are private to that class.

    A name of our own that only happens to be the same is found too: it would overwrite aiohttp's.
    """
    names = _aiohttp_names(tree)
    for base in node.bases:
        first, dot, rest = ast.unparse(base).partition("[")[0].partition(".")
        if first not in names:
            continue
        theirs = _privates_of(pkgutil.resolve_name(names[first] + dot + rest))
        for inner in ast.walk(node):
            match inner:
                case ast.Attribute(owner, name) if name in theirs and _is_ours(owner, {"self", "cls"}):
                    yield inner.lineno, f"{ast.unparse(inner)} of {ast.unparse(base)}"
                case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) if name in theirs:
                    yield inner.lineno, f"{name}() of {ast.unparse(base)}"


def _aiohttp_names(tree: ast.Module) -> dict[str, str]:
    """Return what the module calls the things that it imports from aiohttp, and their full names."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(aliases):
                tops = {a.name.partition(".")[0] for a in aliases if not a.asname}
                names |= {top: top for top in tops} | {a.asname: a.name for a in aliases if a.asname}
            case ast.ImportFrom(str(base), aliases):
                names |= {a.asname or a.name: f"{base}.{a.name}" for a in aliases}
    return {name: full for name, full in names.items() if full.partition(".")[0] == "aiohttp"}


def _privates_of(cls: type) -> set[str]:
    """Return the private names of an aiohttp class: what it has, and what its source sets on an instance."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("aiohttp.")]
    names = {name for base in bases for name in vars(base)}
    for base in bases:
        # A compiled class has no source, and no attributes that are not among its names.
        with suppress(OSError, TypeError):
            names.update(re.findall(r"\bself\.(_\w+)", inspect.getsource(base)))
    return {name for name in names if _is_private(name)}
