"""`GET /healthz`, `/readyz` and `/metrics`: how the process is doing. They need no credential."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import hdrs, web

from gateway.handshake.upgrade import Gatekeeper, RefusedError, refused
from gateway.status import Phase, Status
from gateway.telemetry.metrics import CONTENT_TYPE

Objection = Callable[[web.Request], web.Response | None]
"""Returns the answer to a request that is refused, and None for any other."""


class Health:
    """The three paths. ``metrics`` returns the text of `/metrics`, ``cluster`` what is said of the cluster, if any."""

    def __init__(
        self,
        status: Status,
        metrics: Callable[[], Awaitable[bytes]],
        cluster: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        self._status: Final = status
        self._metrics: Final = metrics
        self._cluster: Final = cluster

    def add_to(self, app: web.Application, foreign: Objection) -> None:
        """Add the routes. ``foreign`` refuses requests for `/metrics` that name another host."""

        async def metrics(request: web.Request) -> web.Response:
            refusal = foreign(request)
            if refusal is not None:
                return refusal
            return web.Response(body=await self._metrics(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})

        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", metrics)

    async def _healthz(self, request: web.Request) -> web.Response:
        """Answer 200 while the process is alive."""
        return web.json_response({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        """Answer 200 when connections are accepted, 503 with the reason when not.

        A gateway that has lost its cluster accepts connections.
        """
        phase = self._status.phase
        cluster = {} if self._cluster is None else self._cluster()
        return web.json_response({"status": phase, **cluster}, status=200 if phase is Phase.READY else 503)


def foreign_to(gatekeeper: Gatekeeper) -> Objection:
    """Return what refuses requests for host names that are not the gateway's."""

    def foreign(request: web.Request) -> web.Response | None:
        try:
            gatekeeper.check_host(request)
        except RefusedError as refusal:
            return refused(refusal)
        return None

    return foreign


async def nosniff(request: web.Request, response: web.StreamResponse) -> None:
    """Forbid browsers to guess the type of a response, whatever made it. A 101 has no part in this."""
    response.headers["X-Content-Type-Options"] = "nosniff"
