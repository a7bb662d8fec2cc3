"""The operator's page at one of several gateways: what it shows of them, and when another, or NATS, is gone."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Route, expect

from gateway.client import Client, ServedCall, connect
from gateway.console.pages import HEADERS, load
from tests.support.browser import launched
from tests.support.clustered import clustered, nats_for_gateways
from tests.support.console import VIEWS, Console, blank
from tests.support.nats import NatsServer
from tests.support.process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

IN_CLUSTER = [*VIEWS[:3], "Members", *VIEWS[3:]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


EVERY: Final = {
    "cluster.js": (b"EVERY = 3_000;", b"EVERY = 1_050;"),
    "connections.js": (b"EVERY = 10_000;", b"EVERY = 1_000_000;"),
    "nodes.js": (b"EVERY = 5_000;", b"EVERY = 1_000_000;"),
}
"""How often the page asks: for the cluster more often than it does, and for nothing else without a reason."""


async def patient(route: Route) -> None:
    """Let the page have another idea of how often to ask."""
    name = route.request.url.rpartition("/")[2]
    if name not in EVERY:
        await route.fallback()
        return
    body, (old, new) = load()[name].body, EVERY[name]
    assert old in body
    await route.fulfill(body=body.replace(old, new), content_type="text/javascript", headers=HEADERS)


class Scene:
    """The gateways `attic`, with the page, and `cellar`, with the node `pi`. As an async context."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Scene":
        async with AsyncExitStack() as stack:
            stack.push_async_exit(self._stack)  # if not all can be started, those that are end
            enter = self._stack.enter_async_context
            self.server: NatsServer = await enter(nats_for_gateways())
            self.a, self.b = await asyncio.gather(*(enter(self.gateway(name)) for name in ("attic", "cellar")))
            await self.a.wait_event("cluster.member_joined")
            self.node: Client = await enter(pi(self.b))
            self.console: Console = await enter(blank(self._browser, self.a))
            await self.console.page.route("**/console/*.js", patient)
            await self.console.page.goto(self.a.url("/"))
            await self.console.is_connected()
            stack.pop_all()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.__aexit__(*error)

    def gateway(self, name: str) -> GatewayProcess:
        """A gateway of the cluster."""
        return GatewayProcess(clustered(self.server, name, member_timeout=0.8))

    def row(self, text: str) -> Locator:
        """The row of a table with this text."""
        return self.console.page.locator("tbody tr.row").filter(has_text=text)

    def notice(self, text: str) -> Locator:
        """What is told on every page."""
        return self.console.page.get_by_role("alert").filter(has_text=text)


@asynccontextmanager
async def pi(where: GatewayProcess) -> AsyncIterator[Client]:
    """The node `pi` at a gateway, which answers no call."""
    async with connect(where.url("/ws", websocket=True)) as node:

        @node.method("camera.pan")
        async def pan(params: Any, call: ServedCall) -> None:
            await call.progress(0.5)
            await asyncio.sleep(600)

        await node.serve("pi")
        yield node


async def test_it_shows_where_everything_is_and_goes_on_when_a_neighbour_is_killed(browser: Browser) -> None:
    async with Scene(browser) as scene:
        console, page = scene.console, scene.console.page
        await expect(page.get_by_role("navigation").get_by_role("link")).to_have_text(IN_CLUSTER)
        await expect(page.get_by_role("banner")).to_contain_text("anonymous at attic, version")
        await expect(page.get_by_role("columnheader", name="Member")).to_be_visible()
        await expect(page.locator("#count")).to_have_text("2 of 2 connections")
        await page.get_by_label("Filter by").fill("cellar")
        await expect(page.locator("#count")).to_have_text("1 of 2 connections")
        await expect(scene.row(scene.node.welcome["connId"]).get_by_role("cell", name="cellar")).to_be_visible()
        await console.go("Charts")
        await expect(page.get_by_text("of the gateway attic")).to_be_visible()
        await console.go("Members")
        await expect(page.locator("#member-count")).to_have_text("2 of 2 gateways answer")
        await expect(scene.row("this page is here").get_by_role("cell").first).to_have_text("attic")
        assert await console.accessibility() == []
        await console.go("Nodes")
        await expect(page.get_by_role("article", name="pi")).to_contain_text(" at cellar, since")
        await page.get_by_role("button", name="camera.pan").click()
        await page.get_by_role("button", name="Call", exact=True).click()
        await expect(page.get_by_role("progressbar")).to_be_visible()

        scene.b.signal(signal.SIGKILL)
        await scene.b.wait()
        await expect(page.get_by_text("node_lost")).to_be_visible()
        await expect(page.get_by_role("article", name="pi")).to_have_count(0)
        await expect(scene.notice("Gone: cellar since")).to_be_visible()
        assert await console.accessibility() == []
        await console.go("Connections")
        await expect(page.locator("#count")).to_have_text("1 of 1 connections")
        await console.go("Members")
        await expect(page.locator("#member-count")).to_have_text("1 of 2 gateways answer")
        await expect(scene.row("gone since").get_by_role("cell").first).to_have_text("cellar")

        async with scene.gateway("cellar") as again, pi(again) as node:
            await expect(page.locator("#member-count")).to_have_text("2 of 2 gateways answer")
            await expect(page.get_by_text("Gone:")).to_have_count(0)
            await console.go("History")
            await expect(page.get_by_role("columnheader", name="Member")).to_be_visible()
            await console.go("Connections")
            await expect(scene.row(node.welcome["connId"])).to_be_visible()
        await expect(scene.notice("Gone: cellar")).to_be_visible()
        await page.get_by_role("button", name="Dismiss").click()
        await expect(scene.notice("Gone: cellar")).to_have_count(0)
        await console.assert_clean()


async def test_that_nats_is_away_is_told_as_long_as_it_is_and_nothing_is_shown_that_has_ended(browser: Browser) -> None:
    async with Scene(browser) as scene:
        page, count = scene.console.page, scene.console.page.locator("#count")
        await expect(count).to_have_text("2 of 2 connections")
        scene.server.end()
        await expect(scene.notice("This gateway has lost NATS.")).to_be_visible()
        await expect(count).to_have_text("1 of 1 connections")
        await scene.console.go("Members")
        await expect(scene.row("no answer").get_by_role("cell").first).to_have_text("cellar")
        assert await scene.console.accessibility() == []
        everybody = 'user: u, password: p, permissions: { publish: ["gateway.>"], subscribe: ["gateway.>"] }'
        narrow = f"authorization {{ users: [{{ {everybody} }}] }}\nno_auth_user: u"
        await scene.server.restart(f"max_payload: 2MB\n{narrow}")
        await expect(scene.notice("Events are out of reach")).to_be_visible()
        await expect(page.locator("#member-count")).to_have_text("2 of 2 gateways answer")
        await scene.server.restart("max_payload: 2MB")
        await expect(scene.notice("NATS")).to_have_count(0)
        await expect(page.locator("#member-count")).to_have_text("2 of 2 gateways answer")
        await expect(page.get_by_text("Gone:")).to_have_count(0)
        await scene.console.go("Connections")
        await expect(count).to_have_text("2 of 2 connections")

        row = scene.row(scene.node.welcome["connId"])  # of a connection that is looked at while its gateway is killed
        await row.get_by_role("button").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog.locator("dt:has-text('At') + dd")).to_have_text("cellar")
        scene.b.signal(signal.SIGKILL)
        await expect(dialog).to_contain_text("It has ended.")
        await page.keyboard.press("Escape")
        await expect(row).to_have_count(0)
        await scene.console.assert_clean()
