"""The operator's page in a browser, and what it must never do: an error, a request to another host, a policy broken."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Page, Request, WebSocket, expect

from tests.support.process import ROOT, GatewayProcess

Theme = Literal["light", "dark"]

VIEWS: Final = ("Connections", "History", "Nodes", "Events", "Charts")
AWAY: Final = re.compile(r"net::ERR_CONNECTION_REFUSED|Unexpected response code: 503")
"""What the browser itself reports while a gateway drains, and then nobody listens."""

_VIOLATIONS: Final = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""
_AXE: Final = ROOT / "tests/js/node_modules/axe-core/axe.min.js"
_RUN_AXE: Final = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations.map(({ id, impact, nodes }) => ({ id, impact, where: nodes.map((node) => node.target.join(" ")) }));
}"""


@dataclass
class Console:
    """The page, and what was seen of it."""

    page: Page
    origin: str
    errors: list[str] = field(default_factory=list)
    """Of the browser's console, and exceptions."""
    strangers: list[str] = field(default_factory=list)
    """Addresses of other hosts that it asked."""
    sockets: int = 0
    """WebSockets that it has opened."""

    async def log_in(self, token: str) -> None:
        """Log in, and wait until the page is there."""
        await self.page.get_by_label("Token").fill(token)
        await self.page.get_by_role("button", name="Log in").click()
        await self.is_connected()

    async def is_connected(self) -> None:
        """Wait until the page says so."""
        await expect(self.page.locator("#state")).to_have_text("connected")

    async def go(self, view: str) -> None:
        """Open one of VIEWS."""
        await self.page.get_by_role("navigation").get_by_role("link", name=view).click()
        await expect(self.page).to_have_title(f"{view} – Gateway console")

    async def accessibility(self) -> list[dict[str, Any]]:
        """What axe-core finds serious or critical in what is shown now: `id`, `impact`, `where`."""
        await self.page.evaluate(_AXE.read_text())
        found: list[dict[str, Any]] = await self.page.evaluate(_RUN_AXE)
        return [one for one in found if one["impact"] in ("serious", "critical")]

    async def assert_clean(self, *, but: re.Pattern[str] | None = None) -> None:
        """Fail if it has done what it must not. ``but``: errors with this in them are none of the page's."""
        assert [error for error in self.errors if but is None or not but.search(error)] == []
        assert self.strangers == []
        assert await self.page.evaluate("window.violations") == []

    def _logged(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.text} {json.dumps(message.location)}")

    def _asked(self, request: Request) -> None:
        self._went(request.url)

    def _opened(self, socket: WebSocket) -> None:
        self.sockets += 1
        self._went(socket.url.replace("ws", "http", 1))

    def _went(self, url: str) -> None:
        where = urlsplit(url)
        if where.scheme in ("http", "https") and f"{where.scheme}://{where.netloc}" != self.origin:
            self.strangers.append(url)


@asynccontextmanager
async def opened(browser: Browser, gateway: GatewayProcess, theme: Theme = "light") -> AsyncIterator[Console]:
    """The console of this gateway in a tab of a new profile. What it did is looked at by `assert_clean`."""
    async with blank(browser, gateway, theme) as console:
        await console.page.goto(gateway.url("/"))
        yield console


@asynccontextmanager
async def blank(browser: Browser, gateway: GatewayProcess, theme: Theme = "light") -> AsyncIterator[Console]:
    """As `opened`, before the page is there."""
    context = await browser.new_context(color_scheme=theme, viewport={"width": 1280, "height": 800}, locale="en-GB")
    try:
        await context.add_init_script(_VIOLATIONS)
        page = await context.new_page()
        console = Console(page, gateway.url("").rstrip("/"))
        page.on("console", console._logged)
        page.on("pageerror", lambda error: console.errors.append(str(error)))
        page.on("request", console._asked)
        page.on("websocket", console._opened)
        yield console
    finally:
        await context.close()
