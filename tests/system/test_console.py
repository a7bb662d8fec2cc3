"""The operator's page, used as an operator would, in a real browser."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio
from playwright.async_api import Browser, WebSocketRoute, expect

from gateway.client import Client, ServedCall, connect
from gateway.console.pages import HEADERS, INDEX, load
from tests.support.browser import launched
from tests.support.console import AWAY, VIEWS, Console, Theme, blank, opened
from tests.support.credentials import OP, PAGE, PI, TokensFile
from tests.support.faulty_proxy import FaultyProxy
from tests.support.fleet import request
from tests.support.patience import WAIT, Sized
from tests.support.peers import RawPeer
from tests.support.process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

MANY: Final = 10_000
DRAWN: Final = 80
"""Rows that are drawn at a time, at most, whatever their number is."""

NODE: Final = PI._replace(scopes=("serve:>", "publish:>"))

SNAP: Final = {
    "type": "object",
    "properties": {
        "width": {"type": "integer", "minimum": 16, "description": "pixels"},
        "format": {"enum": ["jpeg", "png"], "default": "png"},
        "flash": {"type": "boolean", "default": False},
        "crop": {"type": "array"},
    },
    "required": ["width"],
}


class Scene(NamedTuple):
    """A browser, and a gateway in mode token."""

    browser: Browser
    gateway: GatewayProcess
    tokens: TokensFile


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    tokens = TokensFile(tmp_path_factory.mktemp("console") / "tokens.toml", OP, NODE, PAGE)
    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(launched())
        gateway = await stack.enter_async_context(GatewayProcess({"auth": tokens.auth}))
        yield Scene(browser, gateway, tokens)


@asynccontextmanager
async def logged_in(scene: Scene) -> AsyncIterator[Console]:
    """The console, with the operator's token; nothing that it must not do may have happened at the end."""
    async with opened(scene.browser, scene.gateway) as console:
        await console.log_in(scene.tokens.of(OP))
        yield console
        await console.assert_clean()


async def entered(scene: Scene) -> RawPeer:
    """Another peer: the page `page`."""
    bearer = {"Authorization": f"Bearer {scene.tokens.of(PAGE)}"}
    return await RawPeer.open(scene.gateway, headers=bearer)


@asynccontextmanager
async def kitchen(scene: Scene) -> AsyncIterator[Client]:
    """The node `pi`, that serves a few methods."""
    async with connect(scene.gateway.url("/ws", websocket=True), token=scene.tokens.of(NODE)) as node:

        @node.method("camera.snap", summary="Take a picture", params=SNAP)
        async def snap(params: Any, call: ServedCall) -> Any:
            return {"taken": params}

        @node.method("camera.pan", summary="Turn for a long time")
        async def pan(params: Any, call: ServedCall) -> Any:
            await call.progress(0.25)
            await asyncio.sleep(600)

        await node.serve()
        yield node


async def test_a_wrong_token_is_told_and_the_right_one_lets_in(scene: Scene) -> None:
    async with opened(scene.browser, scene.gateway) as console:
        await console.page.get_by_label("Token").fill("wrong")
        await console.page.keyboard.press("Enter")
        await expect(console.page.get_by_role("alert")).to_have_text("The gateway does not take this token.")
        await console.log_in(scene.tokens.of(OP))
        await expect(console.page.get_by_role("banner")).to_contain_text("op, version")
        await console.page.get_by_role("button", name="Log out").click()
        await expect(console.page.get_by_label("Token")).to_be_focused()
        await console.assert_clean()


async def test_where_a_token_is_needed_it_does_not_knock_without_one(scene: Scene) -> None:
    async with blank(scene.browser, scene.gateway) as console:
        index = load(login=True)[INDEX]
        await console.page.route(
            scene.gateway.url("/"),
            lambda route: route.fulfill(body=index.body, content_type="text/html", headers=HEADERS),
        )
        await console.page.goto(scene.gateway.url("/"))
        await console.log_in(scene.tokens.of(OP))
        assert console.sockets == 1
        await console.assert_clean()


async def test_where_no_credential_is_asked_for_nobody_logs_in(scene: Scene) -> None:
    async with GatewayProcess() as gateway, opened(scene.browser, gateway) as console:
        await console.is_connected()
        await expect(console.page.get_by_role("banner")).to_contain_text("anonymous")
        await console.assert_clean()


async def test_a_connection_is_seen_to_come_and_go(scene: Scene) -> None:
    async with logged_in(scene) as console:
        table = console.page.get_by_role("region", name="Connections")
        await expect(table.locator("tbody tr.row")).to_have_count(1)
        peer = await entered(scene)
        row = table.get_by_role("row").filter(has_text=peer.local)
        await expect(row).to_contain_text("page")
        await peer.welcome()
        await peer.leave()
        await expect(row).to_have_count(0)
        await console.go("History")
        past = console.page.get_by_role("row").filter(has_text=peer.local)
        await expect(past).to_contain_text("client_close")


async def test_a_connection_that_has_lost_its_link_is_shown_with_the_time_that_is_left(scene: Scene) -> None:
    async with logged_in(scene) as console:
        page = console.page
        peer = await entered(scene)
        await peer.welcome()
        await request(peer, "connection.keep")
        session = (await peer.recv_json())["result"]["session"]
        await peer.send_json({"jsonrpc": "2.0", "method": "connection.ack", "params": {"received": 0}})
        await request(peer, "gateway.ping")
        await peer.recv_json()
        peer.rst()
        await scene.gateway.wait_event("connection.held", remote=peer.local)
        await page.get_by_role("button", name="Refresh").click()
        row = page.get_by_role("region", name="Connections").get_by_role("row").filter(has_text=peer.local)
        await expect(row).to_contain_text("away, held for")
        with await entered(scene) as again:
            await again.welcome()
            params = {"session": session, "received": 0, "attempt": 1}
            await request(again, "connection.resume", **params)
            assert "connId" in (await again.recv_json())["result"]
            await page.get_by_role("button", name="Refresh").click()
            await expect(page.get_by_text("away, held for")).to_have_count(0)
            await console.go("History")
            await expect(page.get_by_text("resumed")).to_have_count(0)


async def test_a_connection_is_found_looked_at_and_closed_with_a_reason(scene: Scene) -> None:
    async with logged_in(scene) as console:
        peer = await entered(scene)
        conn_id = (await peer.welcome())["connId"]
        await console.page.get_by_label("Filter by").fill(peer.local.upper())
        await expect(console.page.locator("#count")).to_have_text("1 of 2 connections")
        await console.page.get_by_role("button", name="page", exact=True).press("Enter")
        dialog = console.page.get_by_role("dialog")
        await expect(dialog).to_contain_text(conn_id)
        await expect(dialog).to_contain_text("1 out")
        await dialog.get_by_label("Reason").fill("moved house")
        await dialog.get_by_role("button", name="Close this connection").click()
        await peer.recv_until_closed()
        assert (peer.close_code, peer.close_reason) == (4501, "moved house")
        await expect(dialog).to_have_count(0)
        await expect(console.page.get_by_text("Closed the connection of page.")).to_be_visible()
        await console.go("History")
        past = console.page.get_by_role("row").filter(has_text=conn_id)
        await expect(past).to_contain_text("closed_by_operator")
        await expect(past).to_contain_text("moved house")
        peer.close()


async def test_the_details_of_a_connection_that_ends_say_how(scene: Scene) -> None:
    async with logged_in(scene) as console:
        peer = await entered(scene)
        await peer.welcome()
        row = console.page.get_by_role("row").filter(has_text=peer.local)
        await row.get_by_role("button").click()
        await peer.leave()
        await expect(console.page.get_by_role("dialog")).to_contain_text("client_close, code 1000")
        await console.page.keyboard.press("Escape")
        await expect(console.page.get_by_role("dialog")).to_have_count(0)


async def test_a_nodes_method_is_called_through_its_form(scene: Scene) -> None:
    async with logged_in(scene) as console, kitchen(scene):
        page = console.page
        await console.go("Nodes")
        await page.get_by_role("button", name="camera.snap").click()
        await page.get_by_label("width").fill("wide")
        await page.get_by_role("button", name="Call").click()
        await expect(page.get_by_text("width must be an integer")).to_be_visible()
        await page.get_by_label("width").fill("640")
        await page.get_by_label("flash").check()
        await page.get_by_label("crop").fill("[1, 2]")
        await page.get_by_role("button", name="Call").click()
        result = json.loads(await page.get_by_role("region", name="Result").inner_text())
        assert result == {"taken": {"width": 640, "format": "png", "flash": True, "crop": [1, 2]}}


def field(**schema: Any) -> dict[str, Any]:
    """A schema with one parameter `p`."""
    return {"type": "object", "properties": {"p": schema}}


def nested(depth: int) -> Any:
    """Arrays in each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


NO_TEXT: Final = {"toString": 1, "valueOf": None, "toJSON": 2, "constructor": None, "__proto__": 3, "type": "div"}
"""What JavaScript cannot make a text of, and what looks like other things to a careless page."""

HOSTILE: Final[dict[str, Any]] = {
    **{f"{name} no text": field(**{name: NO_TEXT}) for name in ("title", "description", "minimum", "maximum", "type")},
    "default no text": field(default=NO_TEXT),
    "text by default no text": field(type="string", default=NO_TEXT),
    "enum no text": field(enum=[NO_TEXT, [NO_TEXT], None], default=NO_TEXT),
    "enum of many": field(enum=[f"choice-{number}" for number in range(5_000)]),
    "types no text": field(type=[NO_TEXT, "string"]),
    "no properties": {"type": "object", "properties": None},
    "properties a text": {"type": "object", "properties": "text"},
    "a parameter null": {"type": "object", "properties": {"p": None, "q": 5, "r": [], "s": NO_TEXT}},
    "required no array": field() | {"required": NO_TEXT},
    "required no texts": field() | {"required": [NO_TEXT, None]},
    "odd names": {"type": "object", "properties": {name: {} for name in ("", "a b", "__proto__", "x" * 50_000)}},
    "deep": field(default=nested(400), description="d" * 50_000),
    "no text at all": NO_TEXT,
    "an array": [NO_TEXT],
    "a text": "<script>throw 1</script>",
}


async def test_whatever_a_node_says_of_its_methods_the_page_lives(scene: Scene) -> None:
    """Each of them has its form, through which it can be called; nothing raises."""
    names = {f"odd.m{number}": schema for number, schema in enumerate(HOSTILE.values())}
    async with logged_in(scene) as console, connect(where_of(scene), token=scene.tokens.of(PI)) as node:
        for name, schema in names.items():
            node.method(name, summary="<b>" + "s" * 1_900, params=schema)(echoed)
        await node.serve()
        page = console.page
        await console.go("Nodes")
        for name in names:
            await page.get_by_role("button", name=name, exact=True).click()
            await expect(page.get_by_role("heading", level=3).filter(has_text="on pi")).to_contain_text(name)
            await expect(page.get_by_text("cannot be shown")).to_have_count(0)
            await expect(page.get_by_role("button", name="Call", exact=True)).to_be_enabled()
        assert await page.locator("option").count() <= 100


async def echoed(params: Any, call: ServedCall) -> Any:
    return params


def where_of(scene: Scene) -> str:
    return scene.gateway.url("/ws", websocket=True)


async def test_a_parameter_may_have_any_name(scene: Scene) -> None:
    properties = {"__proto__": {"type": "string"}, "constructor": {"type": "integer"}, "a b": {"type": "string"}}
    async with logged_in(scene) as console, connect(where_of(scene), token=scene.tokens.of(PI)) as node:
        node.method("odd.names", params={"type": "object", "properties": properties})(echoed)
        await node.serve()
        page = console.page
        await console.go("Nodes")
        await page.get_by_role("button", name="odd.names").click()
        for name, value in (("__proto__", "x"), ("constructor", "5"), ("a b", "z")):
            await page.get_by_label(name, exact=True).fill(value)
        await page.get_by_role("button", name="Call", exact=True).click()
        result = json.loads(await page.get_by_role("region", name="Result").inner_text())
        assert result == {"__proto__": "x", "constructor": 5, "a b": "z"}


async def test_a_form_has_100_fields_at_most_and_json_takes_more(scene: Scene) -> None:
    async with logged_in(scene) as console, connect(where_of(scene), token=scene.tokens.of(PI)) as node:
        for count in (100, 101, 5_000):
            properties = {f"f{number}": {"type": "string"} for number in range(count)}
            node.method(f"wide.m{count}", params={"type": "object", "properties": properties})(echoed)
        await node.serve()
        page = console.page
        await console.go("Nodes")
        for count, fields in ((100, 100), (101, 0), (5_000, 0)):
            name = f"wide.m{count}"
            await page.get_by_role("button", name=name, exact=True).click()
            await expect(page.get_by_role("heading", level=3).filter(has_text="on pi")).to_contain_text(name)
            await expect(page.locator(".field")).to_have_count(fields)
            await expect(page.get_by_label("Parameters, in JSON")).to_have_count(0 if fields else 1)
        await page.get_by_label("Parameters, in JSON").fill('{"f4999": "last"}')
        await page.get_by_role("button", name="Call", exact=True).click()
        assert json.loads(await page.get_by_role("region", name="Result").inner_text()) == {"f4999": "last"}


async def test_of_a_node_with_many_methods_few_are_drawn_until_more_are_asked_for(scene: Scene) -> None:
    async with logged_in(scene) as console, connect(where_of(scene), token=scene.tokens.of(PI)) as node:
        for number in range(120):
            node.method(f"many.m{number:03}")(echoed)
        await node.serve()
        page = console.page
        await console.go("Nodes")
        methods = page.get_by_role("article", name="pi").locator("li")
        for drawn, more in ((50, "70 more"), (100, "20 more")):
            await expect(methods).to_have_count(drawn)
            await page.get_by_role("button", name=more).click()
        await expect(methods).to_have_count(120)
        await expect(page.get_by_role("button", name="more")).to_have_count(0)


async def test_results_progress_and_events_are_shown_as_far_as_they_can_be_read(scene: Scene) -> None:
    """What is very deep or very long is cut; with an indent at each line a deep one would be far longer than it is."""
    values = {"deep": nested(800), "long": "x" * 900_000, "wide": [NO_TEXT] * 8_000, "odd": NO_TEXT}
    async with logged_in(scene) as console, connect(where_of(scene), token=scene.tokens.of(PI)) as node:

        @node.method("odd.result")
        async def result(params: Any, call: ServedCall) -> Any:
            await call.progress(values[params["which"]])
            return values[params["which"]]

        await node.serve()
        page = console.page
        await console.go("Nodes")
        await page.get_by_role("button", name="odd.result").click()
        for which in values:
            await page.get_by_label("Parameters, in JSON").fill(json.dumps({"which": which}))
            await page.get_by_role("button", name="Call", exact=True).click()
            await expect(page.get_by_text("Answered after")).to_be_visible()
            told = await page.get_by_role("region", name="Result").inner_text()
            assert len(told) <= 200_001
            assert ("…" in told) == (which != "odd")
        assert json.loads(told) == NO_TEXT
        await console.go("Events")
        await page.get_by_role("button", name="Listen").click()
        await expect(page.get_by_text("listening", exact=True)).to_be_visible()
        log = page.get_by_role("region", name="Events")
        async with asyncio.timeout(WAIT):
            while not await log.get_by_text("first").count():
                await node.publish("odd.event", "first")
                await asyncio.sleep(0.1)
        for value in values.values():
            await node.publish("odd.event", value)
        await node.publish("odd.event", "last")
        await expect(log.get_by_text("last")).to_be_visible()
        assert max(map(len, await log.locator("code").all_inner_texts())) <= 2_001


async def test_a_part_that_cannot_be_drawn_says_so_and_the_rest_lives(scene: Scene) -> None:
    """The gateway lists an ended connection in a way that no gateway does: nothing in it is what it should be."""

    async def odd(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        asked: set[Any] = set()

        def to_server(text: str | bytes) -> None:
            message = json.loads(text)
            if message.get("method") == "connection.history":
                asked.add(message["id"])
            server.send(text)

        def to_page(text: str | bytes) -> None:
            message = json.loads(text)
            if message.get("id") in asked:
                message["result"] = {"connections": [{"connId": "1", "name": "odd", "duration": NO_TEXT}]}
            socket.send(json.dumps(message))

        socket.on_message(to_server)
        server.on_message(to_page)

    async with blank(scene.browser, scene.gateway) as console:
        page = console.page
        await page.route_web_socket(re.compile("/ws$"), odd)
        await page.goto(scene.gateway.url("/"))
        await console.log_in(scene.tokens.of(OP))
        await expect(page.get_by_text("messages counted")).to_be_visible()
        await console.go("History")
        await expect(page.get_by_role("alert").filter(has_text="History cannot be shown:")).to_be_visible()
        await console.go("Connections")
        await expect(page.get_by_role("row").filter(has_text="this page")).to_be_visible()
        await expect(page.get_by_text("cannot be shown")).to_have_count(0)
        await console.assert_clean()


async def test_a_call_shows_its_progress_and_can_be_cancelled(scene: Scene) -> None:
    async with logged_in(scene) as console, kitchen(scene):
        page = console.page
        await console.go("Nodes")
        await page.get_by_role("button", name="camera.pan").click()
        await page.get_by_role("button", name="Call").click()
        await expect(page.get_by_role("progressbar")).to_have_attribute("value", "0.25")
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.get_by_text("Cancelled.")).to_be_visible()
        await scene.gateway.wait_event("call.failed", error="cancelled", method="camera.pan")


async def test_a_stream_shows_its_values_as_they_come_and_can_be_stopped(scene: Scene) -> None:
    bearer = {"Authorization": f"Bearer {scene.tokens.of(NODE)}"}
    async with logged_in(scene) as console:
        page = console.page
        node = await RawPeer.open(scene.gateway, headers=bearer)
        params = {"name": "pi", "methods": [{"name": "log.follow"}], "streams": True}
        await node.welcome()
        await node.send_json({"jsonrpc": "2.0", "id": 1, "method": "node.register", "params": params})
        await node.recv_json()
        await console.go("Nodes")
        await page.get_by_role("button", name="log.follow").click()
        await expect(page.get_by_label("Time limit")).to_have_count(0)
        await page.get_by_role("button", name="Call", exact=True).click()
        call = await node.recv_json()
        credit = call["stream"]["credit"]
        assert 0 < credit < 120
        for number in range(120):
            while credit == 0:
                credit = (await node.recv_json())["params"]["credit"]
            credit -= 1
            await tell(node, call, f"line {number}")
        values = page.get_by_role("region", name="Values")
        await expect(page.get_by_text("120 values, the last 100 are shown")).to_be_visible()
        await expect(values.get_by_role("listitem").first).to_have_text('"line 20"')
        await expect(values.get_by_role("listitem").last).to_have_text('"line 119"')
        assert await console.accessibility() == []
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.get_by_text("Cancelled.")).to_be_visible()
        await expect(values.get_by_role("listitem")).to_have_count(100)
        while (told := await node.recv_json())["method"] != "rpc.cancel":
            assert told["method"] == "rpc.credit"
        await page.get_by_role("button", name="Call", exact=True).click()
        await expect(values).to_have_count(0)
        call = await node.recv_json()
        await tell(node, call, 0.5)
        await expect(page.get_by_role("progressbar")).to_have_attribute("value", "0.5")
        await node.send_json({"jsonrpc": "2.0", "id": call["id"], "result": "end of file"})
        await expect(page.get_by_role("region", name="Result")).to_have_text('"end of file"')
        await expect(values).to_have_text("0.5")
        await node.leave()


async def tell(node: RawPeer, call: dict[str, Any], value: object) -> None:
    """Send a value of a call."""
    params = {"id": call["id"], "value": value}
    await node.send_json({"jsonrpc": "2.0", "method": "rpc.progress", "params": params})


async def test_a_node_that_goes_while_it_is_called_is_told(scene: Scene) -> None:
    async with logged_in(scene) as console:
        page = console.page
        await console.go("Nodes")
        async with kitchen(scene):
            await page.get_by_role("button", name="camera.pan").click()
            await page.get_by_role("button", name="Call").click()
            await expect(page.get_by_text("Running")).to_be_visible()
        await expect(page.get_by_text("node_lost")).to_be_visible()
        await expect(page.get_by_text("pi does not serve it now.")).to_be_visible()


async def test_events_of_a_pattern_are_shown_until_it_is_stopped(scene: Scene) -> None:
    async with logged_in(scene) as console, kitchen(scene) as node:
        page = console.page
        await console.go("Events")
        log = page.get_by_role("region", name="Events")
        await page.get_by_label("Topics and patterns").fill("home.*")
        await page.get_by_role("button", name="Listen").click()
        await expect(page.get_by_text("listening", exact=True)).to_be_visible()
        await node.publish("garden.gate", "open")
        # The page may ask a moment after it says so: the first message is sent until it is seen.
        async with asyncio.timeout(WAIT):
            while not await log.get_by_text("first").count():
                await node.publish("home.door", {"is": "first"})
                await asyncio.sleep(0.1)
        await node.publish("home.door", {"is": "<b>second</b>"})
        await expect(log.locator("li").first).to_contain_text('{"is":"<b>second</b>"}')
        assert "garden" not in await log.inner_text()
        await page.get_by_role("button", name="Stop").click()
        await expect(page.get_by_text("not listening")).to_be_visible()
        await page.get_by_label("Topics and patterns").fill("home..")
        await page.get_by_role("button", name="Listen").click()
        await expect(page.get_by_role("alert").filter(has_text="topics[0]")).to_be_visible()


async def test_a_page_without_the_scope_admin_has_no_connections(scene: Scene) -> None:
    async with opened(scene.browser, scene.gateway) as console, kitchen(scene):
        await console.log_in(scene.tokens.of(PAGE))
        await expect(console.page.get_by_role("navigation").get_by_role("link")).to_have_text(list(VIEWS[2:]))
        await expect(console.page.get_by_role("article", name="pi")).to_be_visible()
        await console.assert_clean()


async def test_charts_have_figures_of_what_the_gateway_measures(scene: Scene) -> None:
    async with logged_in(scene) as console:
        await console.go("Charts")
        figures = console.page.locator("figure")
        await expect(figures).to_have_count(4)
        await expect(figures.first).to_contain_text(re.compile(r"Connections\s*[1-9]\d* open"))
        await expect(figures.first.locator("canvas")).to_be_visible()


async def test_metrics_are_read_as_prometheus_reads_them(scene: Scene) -> None:
    text = """# HELP t_seconds A "{quoted}" line
t_seconds_bucket{method="a",le="0.1"} 4.0
t_seconds_bucket{method="b \\"c\\"",le="0.1"} 6
t_seconds_bucket{method="a",le="1.0"} 20.0
t_seconds_bucket{method="a",le="+Inf"} 20.0
t_total 7
"""
    async with opened(scene.browser, scene.gateway) as console:
        seen = await console.page.evaluate(
            """async (text) => {
              const { buckets, parse, quantile, sum } = await import("/console/metrics.js");
              const now = buckets(parse(text), "t_seconds");
              const shares = [0.25, 0.5, 0.75, 1].map((share) => quantile(share, now, []));
              const missing = sum(parse(text), "none") === undefined;
              return [sum(parse(text), "t_total"), missing, shares, quantile(0.5, now, now)];
            }""",
            text,
        )
    total, missing, shares, nothing_new = seen
    assert (total, missing, nothing_new) == (7, True, None)
    assert shares == pytest.approx([0.05, 0.1, 0.55, 1.0])


async def test_it_survives_a_restart_and_says_so(scene: Scene) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(GatewayProcess({"server": {"drain_timeout": 2.0}}))
        console = await stack.enter_async_context(opened(scene.browser, first))
        page, state = console.page, console.page.locator("#state")
        await console.is_connected()
        peer = await RawPeer.open(first)
        await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "event.subscribe", "params": {"topics": ["a"]}})
        first.terminate()
        await expect(page.get_by_text(re.compile("is draining|has drained"))).to_be_visible()
        await expect(state).to_have_text("connection lost, trying again…")
        peer.close()
        await first.wait()
        second = await stack.enter_async_context(GatewayProcess({"server": {"port": first.port}}))
        await expect(state).to_have_text("connected")
        await expect(page.get_by_text("Connected again")).to_be_visible()
        await expect(page.locator("#count")).to_have_text("1 of 1 connections")
        other = await RawPeer.open(second)
        await expect(page.get_by_role("row").filter(has_text=other.local)).to_be_visible()
        other.close()
        await console.assert_clean(but=AWAY)


async def test_it_goes_on_after_cuts_and_says_that_it_was_away(scene: Scene, sized: Sized) -> None:
    async with FaultyProxy("127.0.0.1", scene.gateway.port) as proxy, blank(scene.browser, scene.gateway) as console:
        page, state = console.page, console.page.locator("#state")
        console.origin = proxy.url("", "http")
        await page.goto(proxy.url("/", "http"))
        await console.log_in(scene.tokens.of(OP))
        # What is answered now was asked behind the acknowledgement with which the connection is kept.
        await expect(page.get_by_role("row").filter(has_text="this page")).to_be_visible()
        await page.get_by_role("button", name="Refresh").click()
        await expect(page.get_by_role("button", name="Refresh")).to_be_enabled()
        for cut in range(sized(2, 10)):
            proxy.refuse = True
            proxy.cut("reset" if cut % 2 else "fin")
            await expect(state).to_have_text("away, coming back…")
            proxy.refuse = False
            await expect(page.get_by_text("and nothing is lost")).to_be_visible()  # for some seconds
            await expect(state).to_have_text("connected")
            resumed = await scene.gateway.wait_event("connection.resumed")
        assert scene.gateway.events("connection.closed", connId=resumed["connId"]) == []
        await expect(page.get_by_role("row").filter(has_text="this page")).to_be_visible()
        await expect(page.get_by_role("alert")).to_have_text("")
        await console.assert_clean(but=re.compile("net::ERR_|WebSocket connection to"))


async def test_the_end_of_its_own_connection_is_told(scene: Scene) -> None:
    async with logged_in(scene) as console:
        page = console.page
        row = page.get_by_role("row").filter(has_text="this page")
        await row.get_by_role("button").click()
        await page.get_by_label("Reason").fill("enough")
        await page.get_by_role("button", name="Close this connection").click()
        await expect(page.locator("#state")).to_have_text("disconnected")
        await expect(page.get_by_text("4501 enough")).to_be_visible()
        await page.get_by_role("button", name="Log in again").click()
        await console.log_in(scene.tokens.of(OP))


async def test_it_is_used_without_a_mouse(scene: Scene) -> None:
    async with logged_in(scene) as console:
        page = console.page
        await expect(page.get_by_role("row").filter(has_text="this page")).to_be_visible()
        await expect(page.get_by_role("button", name="Refresh")).to_be_enabled()
        names = []
        for _ in range(20):
            await page.keyboard.press("Tab")
            names.append(await page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel"))
        for name in (*VIEWS, "Log out", "Refresh", "Connections", "Name", "op"):
            assert name in [text.strip() if text else "" for text in names], names


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_no_view_has_a_serious_finding_of_accessibility(scene: Scene, theme: Theme) -> None:
    found: dict[str, Any] = {}
    async with opened(scene.browser, scene.gateway, theme) as console, kitchen(scene) as node:
        page = console.page
        found["Log in"] = await console.accessibility()
        await console.log_in(scene.tokens.of(OP))
        for view in VIEWS:
            await console.go(view)
            if view == "Nodes":
                await page.get_by_role("button", name="camera.snap").click()
                await page.get_by_label("width").fill("640")
                await page.get_by_role("button", name="Call").click()
                await expect(page.get_by_role("region", name="Result")).to_be_visible()
            elif view == "Events":
                await page.get_by_role("button", name="Listen").click()
                await expect(page.get_by_text("listening", exact=True)).to_be_visible()
                await node.publish("a.b", {"c": 1})
            found[view] = await console.accessibility()
        await console.go("Connections")
        await page.get_by_role("row").filter(has_text="pi").get_by_role("button").click()
        found["Details"] = await console.accessibility()
        assert await page.evaluate("document.documentElement.dataset.theme") == theme
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="theme").click()
        assert await page.evaluate("document.documentElement.dataset.theme") != theme
    assert {name: findings for name, findings in found.items() if findings} == {}


def one_of_many(number: int) -> dict[str, Any]:
    """A connection as `connection.list` tells it."""
    return {
        "connId": f"{number:08x}-0000-4000-8000-000000000000",
        "name": f"sensor-{number * 7919 % MANY}",
        "role": ("node", "ui", "operator")[number % 3],
        "remote": f"10.{number // 65536}.{number // 256 % 256}.{number % 256}:{40000 + number % 20000}",
        "openedAt": f"2026-11-23T{number % 24:02d}:{number % 60:02d}:{number % 59:02d}.{number % 1000:03d}Z",
        "lastSeenAt": "2026-11-23T23:59:59.000Z",
        **dict.fromkeys(("messagesIn", "messagesOut", "bytesIn", "bytesOut"), number * 31 % 977),
        "inFlight": number % 5,
        "outboxBytes": 0,
    }


async def with_many(socket: WebSocketRoute) -> None:
    """Pass all on to the gateway, but list very many connections."""
    server = socket.connect_to_server()
    everybody = [one_of_many(number) for number in range(MANY)]

    def on_message(text: str | bytes) -> None:
        message = json.loads(text)
        if message.get("method") == "connection.keep":  # whoever answers for the gateway makes its numbers wrong
            error = {"code": -32601, "message": "", "data": {"code": "method_not_found", "temporary": False}}
            socket.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}))
            return
        if message.get("method") != "connection.list":
            server.send(text)
            return
        after, limit = message["params"]["after"], message["params"]["limit"]
        begin = int(after[:8], 16) + 1 if after else 0
        found = everybody[begin : begin + limit]
        rest = begin + limit < MANY
        result = {"connections": found, "next": found[-1]["connId"] if rest else None}
        socket.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}))

    socket.on_message(on_message)


_STEPS: Final = """async () => {
  const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  const input = document.querySelector("#filter");
  const table = document.querySelector(".table");
  const type = (text) => {
    input.value = text;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const rows = {};
  let added = 0;
  const observer = new MutationObserver((records) => {
    for (const { addedNodes } of records) added += [...addedNodes].filter(({ nodeName }) => nodeName === "TR").length;
  });
  observer.observe(document.body, { childList: true, subtree: true });
  const step = async (name, act) => {
    await drawn();
    added = 0;
    act();
    await drawn();
    (rows[name] ??= []).push(Math.max(added, table.querySelectorAll("tbody tr").length));
  };
  for (const text of ["s", "se", "sen", "sensor-99", "node", "10.0.7.", "nobody", ""]) {
    await step("filter", () => type(text));
  }
  for (const button of document.querySelectorAll("th button")) await step("sort", () => button.click());
  for (let at = 1; at <= 30; at++) await step("scroll", () => (table.scrollTop = (at * table.scrollHeight) / 30));
  for (let at = 0; at < 30; at++) await step("scroll", () => (table.scrollTop -= 300));
  observer.disconnect();
  return rows;
}"""


async def test_of_ten_thousand_connections_few_are_drawn_at_a_time(scene: Scene) -> None:
    """Each step of filtering, sorting and scrolling draws the rows that can be seen, and no others."""
    async with blank(scene.browser, scene.gateway) as console:
        page = console.page
        await page.route_web_socket(re.compile("/ws$"), with_many)
        await page.goto(scene.gateway.url("/"))
        await console.log_in(scene.tokens.of(OP))
        await expect(page.locator("#count")).to_have_text(f"{MANY} of {MANY} connections")
        await expect(page.get_by_text("messages counted")).to_be_visible()
        rows = await page.evaluate(_STEPS)
        assert rows.keys() == {"filter", "sort", "scroll"}
        assert {name: steps for name, steps in rows.items() if max(steps) >= DRAWN} == {}
        await page.locator("#filter").fill(one_of_many(4242)["connId"])
        await expect(page.locator("tbody tr.row")).to_have_count(1)
        await expect(page.locator("tbody tr.row")).to_contain_text(one_of_many(4242)["name"])
        await console.assert_clean()
