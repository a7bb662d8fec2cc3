"""Pictures of the console for the documentation: `python -m tests.support.screenshots FOLDER`."""

import asyncio
import math
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Browser, Page, expect

from gateway.client import Client, ServedCall, connect
from tests.support.browser import launched
from tests.support.console import Console, Theme, opened
from tests.support.credentials import Holder, TokensFile
from tests.support.process import GatewayProcess

OPERATOR: Final = Holder("alex", "operator")
NODES: Final = tuple(
    Holder(name, "node", ("serve:>", "publish:>")) for name in ("kitchen-pi", "garden-pi", "workshop-nuc")
)
PAGES: Final = tuple(Holder(name, "ui") for name in ("hall-tablet", "kitchen-tablet", "wall-clock"))

Schema = dict[str, Any]


def params(*required: str, **properties: Schema) -> Schema:
    """The schema of a method's parameters."""
    return {"type": "object", "properties": properties, "required": list(required)}


METHODS: Final[dict[str, list[tuple[str, str, Schema]]]] = {
    "kitchen-pi": [
        (
            "camera.snap",
            "Take a picture",
            params(
                "width",
                width={"type": "integer", "minimum": 16, "maximum": 4096, "default": 640, "description": "pixels"},
                format={"enum": ["jpeg", "png"], "default": "jpeg"},
                flash={"type": "boolean", "default": False},
            ),
        ),
        ("light.set", "Dim the lamp over the table", params("level", level={"type": "number"})),
        ("temperature.get", "Degrees Celsius", params()),
    ],
    "garden-pi": [("pump.run", "Water the beds", params("seconds", seconds={"type": "integer"}))],
    "workshop-nuc": [
        ("print.start", "Print a file, with progress", params("file", file={"type": "string"})),
        ("print.stop", "Stop the print", params()),
    ],
}


async def serve(node: Client, name: str) -> None:
    """Register this node's methods; each takes its time."""

    async def run(given: Any, call: ServedCall) -> Any:
        await asyncio.sleep(0.02 + 0.03 * abs(math.sin(asyncio.get_running_loop().time())))
        return {"path": "/var/lib/camera/2026-11-23.jpeg", "bytes": 48213, "asked": given}

    for method, summary, schema in METHODS[name]:
        node.method(method, summary=summary, params=schema)(run)
    await node.serve()


async def live(nodes: list[Client], pages: list[Client]) -> None:
    """Call and publish for ever, as a home would."""
    turn = 0
    while True:
        turn += 1
        page = pages[turn % len(pages)]
        await page.call("camera.snap" if turn % 3 else "temperature.get", {"width": 640})
        if turn % 5 == 0:
            await nodes[0].publish("home.kitchen.temperature", {"celsius": round(21 + math.sin(turn / 20), 2)})
            await nodes[1].publish("home.garden.soil", {"moisture": 0.31, "bed": turn % 4})
        if turn % 35 == 0:
            await nodes[2].publish("workshop.print", {"file": "hinge.gcode", "layer": turn})
        await asyncio.sleep(0.05 + 0.05 * math.sin(turn / 15))


async def events(page: Page) -> None:
    """Listen until something has come."""
    await page.get_by_label("Topics and patterns").fill("home.> workshop.*")
    await page.get_by_role("button", name="Listen").click()
    await expect(page.locator(".log li").nth(7)).to_be_visible(timeout=20_000)
    await page.get_by_role("button", name="Stop").click()


async def call(page: Page) -> None:
    """Call a method through its form."""
    await page.get_by_role("button", name="camera.snap").click()
    await page.get_by_role("button", name="Call").click()
    await expect(page.get_by_role("region", name="Result")).to_be_visible()


async def take(console: Console, folder: Path, theme: Theme, token: str) -> None:
    """Take all pictures of one theme."""
    page = console.page

    async def shoot(name: str) -> None:
        await page.wait_for_timeout(300)
        await page.screenshot(path=folder / f"{name}-{theme}.png")

    await shoot("login")
    await console.log_in(token)
    await expect(page.get_by_text("messages counted")).to_be_visible()
    await shoot("connections")
    await page.get_by_role("button", name="kitchen-pi").click()
    await page.get_by_label("Reason").fill("moved to another room")
    await shoot("details")
    await page.keyboard.press("Escape")
    await console.go("Events")
    await events(page)
    await shoot("events")
    await console.go("History")
    await shoot("history")
    await console.go("Nodes")
    await call(page)
    await shoot("nodes")
    await console.go("Charts")
    await page.wait_for_timeout(12_000)
    await shoot("charts")


async def leave_some(where: str, tokens: TokensFile) -> None:
    """Ends of connections, of several kinds, for the history."""
    async with connect(where, token=tokens.of(OPERATOR)) as operator:
        for holder in PAGES:
            async with connect(where, token=tokens.of(holder)):
                await asyncio.sleep(0.4)
        async with connect(where, token=tokens.of(PAGES[0]), reconnect=False) as page:
            await asyncio.sleep(1.3)
            asked = {"connId": page.welcome["connId"], "reason": "out of hours"}
            await operator.call("connection.close", asked)
        async with connect(where, token=tokens.of(NODES[2]), reconnect=False) as old:
            await serve(old, NODES[2].name)
            await asyncio.sleep(0.7)
            async with connect(where, token=tokens.of(NODES[2])) as new:
                await serve(new, NODES[2].name)


async def both(browser: Browser, gateway: GatewayProcess, folder: Path, token: str) -> None:
    """All pictures, light and dark at the same time."""

    async def one(theme: Theme) -> None:
        async with opened(browser, gateway, theme) as console:
            await take(console, folder, theme, token)

    await asyncio.gather(one("light"), one("dark"))


async def main(folder: Path) -> None:
    """Start a gateway with its nodes and pages, and take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        tokens = TokensFile(Path(directory) / "tokens.toml", OPERATOR, *NODES, *PAGES)
        gateway = await stack.enter_async_context(GatewayProcess({"auth": tokens.auth}))
        where = gateway.url("/ws", websocket=True)
        await leave_some(where, tokens)
        nodes = [await stack.enter_async_context(connect(where, token=tokens.of(holder))) for holder in NODES]
        pages = [await stack.enter_async_context(connect(where, token=tokens.of(holder))) for holder in PAGES]
        for node, holder in zip(nodes, NODES, strict=True):
            await serve(node, holder.name)
        living = asyncio.create_task(live(nodes, pages))
        try:
            browser = await stack.enter_async_context(launched())
            await both(browser, gateway, folder, tokens.of(OPERATOR))
        finally:
            living.cancel()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
