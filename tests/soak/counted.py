"""`python -m tests.soak.counted --config FILE`: the gateway, and a path `/census` that counts what is in it.

It is the gateway's own command line, listener and connection; only the application has one route more.
"""

import asyncio
import ctypes
import gc
import sys
from collections import Counter
from typing import Any
from unittest import mock

from aiohttp import web

from gateway import cli
from gateway.app import CONNECTIONS, create_app
from gateway.config import Config
from gateway.connections.history import History
from gateway.limits import Sampler


class MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc, mallinfo(3): sizes in bytes, over all arenas."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )

    hblkhd: int
    uordblks: int


def heap() -> int:
    """Return the bytes that are in use outside of Python's own allocator, 0 where the C library does not tell."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return 0
    mallinfo.restype = MallInfo
    info: MallInfo = mallinfo()
    return info.uordblks + info.hblkhd


async def census(request: web.Request) -> web.Response:
    """`GET /census`: connections, tasks, and, after a full collection, what memory is in use for.

    `objects`: live ones by type, of those that the collector knows. `blocks`: what Python has allocated, by number.
    `heap`: what else is allocated, in bytes. `garbage`: objects that the collector has freed since the start, for they
    were in cycles.
    """
    gc.collect()
    garbage = sum(generation["collected"] for generation in gc.get_stats())
    connections: dict[str, Any] = request.app["connections"]
    objects = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())
    return web.json_response(
        {
            "connections": len(connections),
            "tasks": len(asyncio.all_tasks()),
            "objects": dict(objects),
            "blocks": sys.getallocatedblocks(),
            "heap": heap(),
            "garbage": garbage,
        }
    )


def create_counted_app(config: Config) -> web.Application:
    """Build the gateway's application with the path, and without the history: what it remembers is no leak."""
    app = create_app(config)
    app[CONNECTIONS].history = History(0)
    app.router.add_get("/census", census)
    return app


def admit_all(sampler: Sampler, key: str) -> int:
    """Let each line be written, because each opening and each end is looked at. A mock would remember its calls."""
    return 0


if __name__ == "__main__":
    with (
        mock.patch("gateway.server.create_app", create_counted_app),
        mock.patch("gateway.limits.Sampler.admit", admit_all),
    ):
        sys.exit(cli.main())
