"""What a page in a real browser can reach: the gateway keeps strangers' pages out, and lets its own in."""

import hashlib
import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.support.browser import EVIL_HOST, SANDBOXED, Attempt, attempt, launched, page_server, visit, visit_rebound
from tests.support.process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN: Final = secrets.token_urlsafe(32)
NEVER_OPENED: Final = Attempt(opened=False, code=1006, messages=[])


class Scene(NamedTuple):
    """A browser, a gateway in mode token, and the origins of two page servers: one that it allows, one that not."""

    browser: Browser
    gateway: GatewayProcess
    allowed: str
    foreign: str

    @property
    def url(self) -> str:
        return self.gateway.url("/ws", websocket=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    tokens: Path = tmp_path_factory.mktemp("browser") / "tokens.toml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    tokens.write_text(f'[[token]]\nname = "kitchen-tablet"\nrole = "ui"\nsha256 = "{digest}"\n')
    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(launched())
        allowed = await stack.enter_async_context(page_server())
        foreign = await stack.enter_async_context(page_server())
        config = {
            "server": {"allowed_origins": [allowed]},
            "auth": {"mode": "token", "tokens_file": str(tokens)},
        }
        gateway = await stack.enter_async_context(GatewayProcess(config))
        yield Scene(browser, gateway, allowed, foreign)


async def assert_kept_out(scene: Scene, page: Page, url: str, status: int) -> None:
    """Fail unless the page cannot open a WebSocket, and the gateway tells this status as the reason."""
    gateway = scene.gateway
    welcomed = len(gateway.events("connection.opened"))
    assert await attempt(page, url, TOKEN) == NEVER_OPENED
    line = await gateway.wait_event("handshake.rejected")
    assert (line["status"], line["stage"]) == (status, "request")
    assert re.fullmatch(r"127\.0\.0\.1:[1-9][0-9]*", line["remote"])
    assert len(gateway.events("connection.opened")) == welcomed


def assert_let_in(seen: Attempt) -> None:
    """Fail unless the page opened its WebSocket, brought its token first, and had its ping answered."""
    assert (seen.opened, seen.code) == (True, 1000), seen
    welcome, principal, pong = seen.messages
    assert (welcome["method"], welcome["params"]["principal"]) == ("gateway.welcome", None)
    assert principal["result"] == {
        "name": "kitchen-tablet",
        "role": "ui",
        "scopes": ["call:>", "subscribe:>"],
        "expiresAt": None,
    }
    assert (pong["id"], pong["result"]) == (2, {"still": "here"})


async def test_a_page_of_an_allowed_origin_brings_its_token_in_the_first_message(scene: Scene) -> None:
    async with visit(scene.browser, scene.allowed) as page:
        assert_let_in(await attempt(page, scene.url, TOKEN))
    opened = await scene.gateway.wait_event("connection.opened", principal="kitchen-tablet")
    closed = await scene.gateway.wait_event("connection.closed", connId=opened["connId"])
    assert (closed["cause"], closed["code"]) == ("client_close", 1000)


async def test_a_page_that_offers_a_subprotocol_has_it_chosen(scene: Scene) -> None:
    """A browser fails a WebSocket whose offer was not answered."""
    script = """([url, offered]) => new Promise((resolve) => {
        const socket = new WebSocket(url, offered);
        socket.onopen = () => resolve(socket.protocol);
        socket.onerror = () => resolve(null);
    })"""
    async with GatewayProcess({"server": {"allowed_origins": [scene.allowed]}}) as gateway:
        url = gateway.url("/ws", websocket=True)
        async with visit(scene.browser, scene.allowed) as page:
            assert await page.evaluate(script, [url, ["graphql-ws", "jsonrpc"]]) == "jsonrpc"
            assert await page.evaluate(script, [url, []]) == ""
            assert await page.evaluate(script, [url, ["graphql-ws"]]) is None


async def test_the_token_is_in_no_log_line_and_no_address(scene: Scene) -> None:
    addresses: list[str] = []
    async with visit(scene.browser, scene.allowed) as page:
        page.on("request", lambda request: addresses.append(request.url))
        page.on("websocket", lambda websocket: addresses.append(websocket.url))
        assert_let_in(await attempt(page, scene.url, TOKEN))
        wrong = await attempt(page, scene.url, TOKEN[::-1])
    assert (wrong.opened, wrong.code) == (True, 4500)
    assert wrong.messages[-1]["error"]["code"] == -32001
    assert addresses == [scene.url, scene.url]
    gateway = scene.gateway
    await gateway.wait_event("connection.opened", principal="kitchen-tablet")
    await gateway.wait_event("handshake.rejected", stage="authenticate", code=4500)
    told = json.dumps(gateway.lines) + gateway.stderr + "".join(gateway.other_output)
    assert TOKEN not in told
    assert TOKEN[::-1] not in told


async def test_a_page_of_a_foreign_origin_cannot_open_it(scene: Scene) -> None:
    async with visit(scene.browser, scene.foreign) as page:
        await assert_kept_out(scene, page, scene.url, 403)


async def test_a_page_without_an_origin_to_show_cannot_open_it(scene: Scene) -> None:
    async with visit(scene.browser, scene.allowed + SANDBOXED) as page:
        assert await page.evaluate("self.origin") == "null"
        await assert_kept_out(scene, page, scene.url, 403)


async def test_a_page_whose_name_was_rebound_to_the_gateway_cannot_open_it(scene: Scene) -> None:
    place = f"{EVIL_HOST}:{scene.gateway.port}"
    async with visit_rebound(scene.browser, f"http://{place}") as page:
        assert await page.evaluate("location.host") == place
        await assert_kept_out(scene, page, f"ws://{place}/ws", 421)


async def test_a_foreign_page_cannot_use_a_rebound_name_either(scene: Scene) -> None:
    async with visit(scene.browser, scene.allowed) as page:
        await assert_kept_out(scene, page, f"ws://{EVIL_HOST}:{scene.gateway.port}/ws", 421)


async def test_a_page_of_the_gateways_own_address_can_open_it(scene: Scene) -> None:
    place = f"localhost:{scene.gateway.port}"
    async with visit_rebound(scene.browser, f"http://{place}") as page:
        assert_let_in(await attempt(page, f"ws://{place}/ws", TOKEN))
