"""Serves the console and the JavaScript client: a few files, read once, at `/` and below `/console/`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

from aiohttp import hdrs, web

INDEX: Final = "index.html"
PREFIX: Final = "/console/"

HEADERS: Final[dict[str, str]] = {
    # No other host, no inline script or style, no frame around it, no plug-in (CSP level 3).
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The headers of every answer here but a refusal. The browser asks each time, and gets 304 if nothing has changed."""

_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
"""The types that are served. The machine's own table of types is not used."""


class File(NamedTuple):
    """A file as it is sent; ``etag`` includes its quotes."""

    body: bytes
    content_type: str
    etag: str


def load(*, login: bool = False) -> dict[str, File]:
    """Return the files of the console and the JavaScript client, by their path below `/console/`.

    ``login``: the page asks for a token at once. Otherwise it first tries to connect without one.
    """
    package = files("gateway")
    folders = (package / "console" / "static", package / "javascript")
    pages = {name: _file(name, body) for folder in folders for name, body in _bodies(folder, "")}
    if login:
        pages[INDEX] = _file(INDEX, pages[INDEX].body.replace(b'id="console"', b'id="console" data-login="needed"'))
    return pages


def _bodies(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _bodies(entry, f"{name}/")
        elif name.endswith(tuple(_TYPES)):
            yield name, entry.read_bytes()


def _file(name: str, body: bytes) -> File:
    kind = _TYPES[name[name.rindex(".") :]]
    return File(body, f"{kind}; charset=utf-8", f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def add_to(
    app: web.Application, refused: Callable[[web.Request], web.StreamResponse | None], *, login: bool = False
) -> None:
    """Add the routes. ``refused`` returns the answer to a request that is refused, and None for any other.

    ``login`` is as in `load`.
    """
    pages = load(login=login)

    async def page(request: web.Request) -> web.StreamResponse:
        answer = refused(request)
        if answer is not None:
            return answer
        file = pages.get(request.match_info.get("path") or INDEX)
        if file is None:
            raise web.HTTPNotFound(headers=HEADERS)
        headers = {**HEADERS, hdrs.ETAG: file.etag}
        if request.headers.get(hdrs.IF_NONE_MATCH) == file.etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, headers={**headers, hdrs.CONTENT_TYPE: file.content_type})

    app.router.add_get("/", page)
    app.router.add_get(f"{PREFIX}{{path:.+}}", page)
