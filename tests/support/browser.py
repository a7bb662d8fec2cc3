"""A real browser, Debian's Chromium, and the pages that it opens."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.support.patience import WAIT

expect.set_options(timeout=1000 * WAIT)

EVIL_HOST: Final = "evil.example"
"""A name that leads the browser to this machine: what DNS rebinding does with the name of a page."""

SANDBOXED: Final = "/sandboxed"
"""The path of a page whose origin the browser keeps to itself: it sends `Origin: null`."""

PAGE: Final = """<!doctype html><title>A page</title><script>
function attempt(url, token) {
  return new Promise((resolve) => {
    const seen = { opened: false, code: 0, messages: [] };
    const socket = new WebSocket(url);
    const ask = (id, method, params) => socket.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
    socket.onopen = () => { seen.opened = true; };
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      seen.messages.push(message);
      if (message.method === "gateway.welcome") ask(1, "gateway.authenticate", { token });
      else if (message.id === 1 && message.result) ask(2, "gateway.ping", { still: "here" });
      else if (message.id === 2) socket.close(1000);
    };
    socket.onclose = ({ code }) => resolve({ ...seen, code });
  });
}
</script>"""


class Attempt(NamedTuple):
    """What a page saw of its WebSocket."""

    opened: bool
    code: int
    messages: list[Any]


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """A browser without a window."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is missing; scripts/test installs it"
    arguments = [
        f"--host-resolver-rules=MAP {EVIL_HOST} 127.0.0.1",
        # Newer browsers keep strangers' pages from this machine by themselves. Here the gateway is to do it alone.
        "--disable-features=LocalNetworkAccessChecks",
    ]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # it refuses to run as root with one
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def page_server() -> AsyncIterator[str]:
    """Serve PAGE on a free port; gives the origin of it."""

    async def page(request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": "sandbox allow-scripts"} if request.path == SANDBOXED else None
        return web.Response(text=PAGE, content_type="text/html", headers=headers)

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_get(SANDBOXED, page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def visit(browser: Browser, url: str) -> AsyncIterator[Page]:
    """A tab of a new profile, at this address."""
    context = await browser.new_context()
    try:
        page = await context.new_page()
        await page.goto(url)
        yield page
    finally:
        await context.close()


@asynccontextmanager
async def visit_rebound(browser: Browser, origin: str) -> AsyncIterator[Page]:
    """A tab with PAGE, as if it came from this origin, whose name leads to this machine ever since."""
    context = await browser.new_context()
    try:
        await context.route(f"{origin}/", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
        page = await context.new_page()
        await page.goto(f"{origin}/")
        yield page
    finally:
        await context.close()


async def attempt(page: Page, url: str, token: str) -> Attempt:
    """Let the page open a WebSocket; where it opens, it sends the token first, then a ping, and closes it."""
    seen: dict[str, Any] = await page.evaluate("([url, token]) => attempt(url, token)", [url, token])
    return Attempt(seen["opened"], seen["code"], seen["messages"])
