"""`/healthz`, `/readyz` and `/metrics`, in each phase of the process."""

import json

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpClient

from gateway.assembly.health import Health, foreign_to, nosniff
from gateway.config import Server
from gateway.handshake.upgrade import Gatekeeper
from gateway.status import Status


class Clinic:
    """The paths, of a process that has done nothing yet."""

    def __init__(self) -> None:
        self.status = Status("1", lambda: 0.0)
        self.app = web.Application()
        self.app.on_response_prepare.append(nosniff)
        Health(self.status, self._metrics).add_to(self.app, foreign_to(Gatekeeper(Server())))

    async def _metrics(self) -> bytes:
        return b"gateway_x 1.0\n"


async def test_ready_is_said_while_it_is(aiohttp_client: AiohttpClient) -> None:
    clinic = Clinic()
    client = await aiohttp_client(clinic.app)

    async def ready() -> tuple[int, str]:
        async with client.get("/readyz") as response:
            return response.status, json.loads(await response.text())["status"]

    assert await ready() == (503, "starting")
    clinic.status.ready()
    assert await ready() == (200, "ready")
    clinic.status.drain()
    assert await ready() == (503, "draining")
    async with client.get("/healthz") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("gateway.example", 421)])
async def test_metrics_are_for_names_that_are_served(host: str, status: int, aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(Clinic().app)
    async with client.get("/metrics", headers={"Host": host}) as response:
        assert response.status == status
        assert (await response.text() == "gateway_x 1.0\n") is (status == 200)
    async with client.get("/readyz", headers={"Host": host}) as response:
        assert response.status == 503, "it says nothing that a stranger may not know"
