"""The JavaScript client, gateway/javascript/gateway-client.js, in Node and in a browser: tests/js/scenarios.mjs.

Between it and the gateway is a proxy that harms the connection; beside it a node of this file, `lab`, which tells the
proxy when to.
"""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import pytest_asyncio
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, web
from playwright.async_api import Browser, Route

from tests.support.browser import launched
from tests.support.command import run_node
from tests.support.credentials import Holder, KeySet, discreet, secret, signed
from tests.support.faulty_proxy import FaultyProxy
from tests.support.patience import START, Sized
from tests.support.process import ROOT, Config, GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

JS: Final = ROOT / "tests" / "js"
CLIENT: Final = ROOT / "gateway" / "javascript" / "gateway-client.js"
FILES: Final = {"/gateway-client.js": CLIENT, "/scenarios.mjs": JS / "scenarios.mjs"}
PAGE: Final = "<!doctype html><title>A page</title><link rel=icon href=data:,>"
RUN: Final = """async ([name, options]) => {
  const module = await import("/gateway-client.js");
  const scenarios = await import("/scenarios.mjs");
  const connect = (more = {}, url = options.url) => new module.GatewayClient(url, more);
  return scenarios[name]({ ...module, ...options, connect });
}"""
HEARTBEAT: Final = {"interval": 1.0, "timeout": 2.0}
EAGER: Final = {"interval": 0.3, "timeout": 0.3}
"""For a storm: who is late is cut once more."""
WELCOME: Final = {
    "connId": "00000000-0000-4000-8000-000000000000",
    "limits": {"maxMessageBytes": 1 << 20, "maxInFlight": 64, "maxBatch": 100, "maxCallTimeoutMs": 600_000},
    "principal": {"name": "anonymous", "role": "operator", "scopes": ["*"], "expiresAt": None},
}

Place = Literal["node", "chromium"]
Run = Callable[..., Awaitable[Any]]


async def run_in_node(scenario: str, **options: object) -> Any:
    """Run a scenario in a Node of its own; it must end by itself and complain of nothing."""
    return await run_node("--expose-gc", str(JS / "run.mjs"), scenario, json.dumps(options), timeout=2 * START)


async def run_in_browser(browser: Browser, scenario: str, **options: object) -> Any:
    """Run a scenario in a page of the address that it connects to."""

    async def serve(route: Route) -> None:
        path = "/" + route.request.url.split("/", 3)[3]
        if path in FILES:
            await route.fulfill(body=FILES[path].read_text(), content_type="text/javascript")
        else:
            await route.fulfill(body=PAGE, content_type="text/html")

    origin = "http://" + str(options["url"]).split("/")[2]
    context = await browser.new_context()
    try:
        await context.route(f"{origin}/**", serve)
        page = await context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(f"{origin}/")
        async with asyncio.timeout(2 * START):
            found = await page.evaluate(RUN, [scenario, options])
        assert errors == []
        return found
    finally:
        await context.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["node", "chromium"])
async def run(request: pytest.FixtureRequest) -> AsyncIterator[Run]:
    """`run(scenario, url=…, …)`: what the scenario returns there."""
    if request.param == "node":
        yield run_in_node
        return
    async with launched() as browser:

        async def run(scenario: str, **options: object) -> Any:
            return await run_in_browser(browser, scenario, **options)

        run.__name__ = "run_in_browser"
        yield run


class Lab:
    """A node that is connected to the gateway itself, and what it knows of the calls that came through."""

    def __init__(self, gateway: GatewayProcess, proxy: FaultyProxy, socket: ClientWebSocketResponse) -> None:
        self.gateway = gateway
        self.proxy = proxy
        self.url = proxy.url()
        self.ran: Counter[int] = Counter()
        self.more = False
        self._socket = socket
        self._notes: list[object] = []
        self._cancelled: list[object] = []
        self._telling: list[object] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ids = 0
        self.busy = 0

    async def serve(self) -> None:
        """Register, then answer until the connection ends."""
        names = [name.removeprefix("on_") for name in dir(self) if name.startswith("on_")]
        await self.request("node.register", name="lab", methods=[{"name": f"lab.{name}"} for name in names])
        async for message in self._socket:
            assert message.type is WSMsgType.TEXT
            self._take(message.json())

    async def request(self, method: str, **params: object) -> None:
        """Ask the gateway; the answer is not looked at."""
        self._ids += 1
        await self._socket.send_json({"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params})

    async def publish(self, topic: str, data: object) -> None:
        """Publish one event."""
        await self.request("event.publish", topic=topic, data=data)

    def _take(self, message: dict[str, Any]) -> None:
        method = message.get("method", "")
        if method == "rpc.cancel" and message["params"]["id"] in self._telling:
            self._cancelled.append(message["params"]["id"])
        if method.startswith("lab."):
            task = asyncio.create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: dict[str, Any]) -> None:
        handler = getattr(self, f"on_{message['method'].removeprefix('lab.')}")
        answer = await handler(message.get("id"), message.get("params", {}))
        if answer is not None and "id" in message:
            await self._socket.send_json({"jsonrpc": "2.0", "id": message["id"], **answer})

    # Its methods. None is no answer.

    async def on_echo(self, identity: object, params: Any) -> Any:
        self.ran[params.get("n", -1)] += 1
        return {"result": {**params, "more": self.more}}

    async def on_refuse(self, identity: object, params: Any) -> Any:
        return {"error": {"code": 42, "message": "no", "data": {"why": [1]}}}

    async def on_busy(self, identity: object, params: Any) -> Any:
        """As if it let the error of another call through."""
        self.busy += 1
        data = {"code": "overloaded", "temporary": True, **params}
        return {"error": {"code": -32009, "message": "later", "data": data}}

    async def on_count(self, identity: object, params: Any) -> Any:
        for number in range(params["to"]):
            await self._report(identity, {"at": number})
        return {"result": params["to"]}

    async def _report(self, identity: object, value: object) -> None:
        params = {"id": identity, "value": value}
        await self._socket.send_json({"jsonrpc": "2.0", "method": "rpc.progress", "params": params})

    async def on_slow(self, identity: object, params: Any) -> Any:
        if params.get("tell"):
            self._telling.append(identity)
            await self._report(identity, "it runs")

    async def on_cancelled(self, identity: object, params: Any) -> Any:
        found, self._cancelled, self._telling = len(self._cancelled), [], []
        return {"result": found}

    async def on_note(self, identity: object, params: Any) -> Any:
        self._notes.append(params)

    async def on_notes(self, identity: object, params: Any) -> Any:
        found, self._notes = self._notes, []
        return {"result": found}

    async def on_online(self, identity: object, params: Any) -> Any:
        await self.gateway.wait_event("node.online", **params)
        await self.gateway.wait_event("node.online", **params)
        return {"result": True}

    async def on_cut(self, identity: object, params: Any) -> Any:
        self.proxy.cut("reset")

    async def on_away(self, identity: object, params: Any) -> Any:
        self.proxy.refuse = True
        self.proxy.cut()
        for topic, count in params.get("publish", {}).items():
            for number in range(count):
                await self.publish(topic, {"n": f"away {number}"})
        await asyncio.sleep(params["time"])
        self.proxy.refuse = False
        return {"result": True}

    async def on_stall(self, identity: object, params: Any) -> Any:
        self.proxy.swallow = True
        await self.gateway.wait_event("connection.closed", cause="heartbeat_timeout")
        self.proxy.cut()
        self.proxy.swallow = False

    async def on_drain(self, identity: object, params: Any) -> Any:
        self.gateway.terminate()

    async def on_last(self, identity: object, params: Any) -> Any:
        await self.publish("storm.tick", {"last": True})
        return {"result": True}


@asynccontextmanager
async def lab_of(config: Config) -> AsyncIterator[Lab]:
    """A gateway, the proxy before it, and the node beside it."""
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(GatewayProcess(config))
        proxy = await stack.enter_async_context(FaultyProxy("127.0.0.1", gateway.port))
        session = await stack.enter_async_context(ClientSession())
        socket = await stack.enter_async_context(session.ws_connect(gateway.url("/ws"), max_msg_size=0))
        lab = Lab(gateway, proxy, socket)
        serving = asyncio.create_task(lab.serve())
        await gateway.wait_event("node.online", node="lab")
        try:
            yield lab
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving


@pytest_asyncio.fixture(loop_scope="module")
async def lab() -> AsyncIterator[Lab]:
    async with lab_of({"heartbeat": HEARTBEAT}) as lab:
        yield lab


def failed(code: int, name: str, outcome: str | None, *, temporary: bool = False) -> dict[str, Any]:
    """What a scenario tells of a CallError, its texts left out."""
    return {"code": code, "name": name, "temporary": temporary, "outcome": outcome}


def plain(error: dict[str, Any]) -> dict[str, Any]:
    """A CallError without its texts."""
    return {name: error[name] for name in ("code", "name", "temporary", "outcome")}


LOST: Final = failed(-32000, "connection_lost", "unknown", temporary=True)
CLOSED: Final = failed(-32000, "closed", "not_delivered")
MISSING: Final = failed(-32601, "method_not_found", "not_delivered")
LATE: Final = failed(-32008, "timeout", "unknown", temporary=True)


async def test_it_calls_batches_and_tells_errors_apart(run: Run, lab: Lab) -> None:
    found = await run("asks", url=lab.url)
    for name, error in (
        ("before", CLOSED),
        ("nothing", MISSING),
        ("big", failed(-32000, "message_too_big", "not_delivered")),
        ("busy", failed(-32009, "overloaded", None, temporary=True)),
        ("late", LATE),
        ("lateThere", LATE),
        ("after", CLOSED),
        ("noteAfter", CLOSED),
    ):
        assert plain(found[name]) == error, name
    assert found["refused"] == {
        **failed(42, "error", None),
        "message": "no",
        "data": {"why": [1]},
        "retryAfterMs": None,
    }
    one, missing, two, null = found["batch"]
    assert (one, plain(missing), two["n"], null) == ([1], MISSING, 2, None)
    assert lab.busy == 1, "the call was not sent again"
    assert (found["tooMany"], found["empty"]) == ("invalid_request", [])
    assert (found["badParams"], found["surrogate"], found["backslash"]) == (True, True, ["\\ud83d"])
    assert found["ping"] == {"text": "\N{GRINNING FACE} \u2028 \0"}
    assert (found["counted"], found["progress"]) == (3, [{"at": 0}, {"at": 1}, {"at": 2}])
    assert found["many"] == list(range(200))
    assert (found["named"], found["notes"]) == ("anonymous", [["a note"]])
    assert [one["state"] for one in found["states"]] == ["connecting", "open", "closed"]
    line = await lab.gateway.wait_event("connection.closed")
    assert (line["cause"], line["code"]) == ("client_close", 1000)


async def test_a_signal_cancels_at_the_node(run: Run, lab: Lab) -> None:
    assert await run("cancels", url=lab.url) == {"reason": "not wanted", "early": "never", "cancelled": 1}


async def test_a_lost_connection_fails_what_was_sent_and_keeps_what_was_not(run: Run, lab: Lab) -> None:
    found = await run("loses", url=lab.url)
    *calls, batch = found["unknown"]
    assert [plain(error) for error in (*calls, *batch)] == [LOST] * 5
    assert (found["waited"], found["fresh"], found["result"]["n"]) == (5, 2, 7)
    assert plain(found["notDelivered"]) == failed(-32008, "timeout", "not_delivered", temporary=True)
    assert found["stall"] == 1006
    assert found["names"][:5] == ["connecting", "open", "waiting", "connecting", "open"]
    assert found["names"][-1] == "closed"
    assert (lab.ran[5], lab.ran[6], lab.ran[7]) == (1, 0, 1)


async def test_it_serves_methods_and_registers_them_again(run: Run, lab: Lab) -> None:
    found = await run("serves", url=lab.url)
    names = ["tea.make", "tea.spill", "tea.break", "tea.flood", "tea.wait"]
    assert found["registration"] == {"name": "kettle", "methods": names}
    assert [one["name"] for one in found["methods"]] == [*names, "tea.late"]
    assert found["methods"][1] == {"name": "tea.spill", "summary": "Spill it", "params": {"type": "object"}}
    for one in (found["first"], found["second"]):
        assert one["made"] == {"cups": 2, "for": "anonymous", "inTime": True}
        assert (one["spilled"]["code"], one["spilled"]["data"]["on"]) == (7, "floor")
        assert (one["broken"]["code"], one["broken"]["message"]) == (-32603, "Internal error")
        assert plain(one["flooded"]) == failed(-32603, "internal_error", "unknown")
        assert (one["waited"], one["late"]) == ("timeout", "late")
    assert found["stopped"] == ["stopped", "stopped"]
    assert found["defects"] == ["a secret", "A message is over 1048576 bytes"] * 2


async def test_subscriptions_go_on_or_tell_of_a_gap(run: Run, lab: Lab) -> None:
    found = await run("subscribes", url=lab.url)
    first = [f"lab.a {number} {number}" for number in range(1, 6)]
    assert (found["all"], found["some"]) == ([*first, "lab.c 1 1"], first)
    assert found["small"] == [*first[:3], "lab.a gap"]
    away = [f"lab.a {6 + number} away {number}" for number in range(3)]
    assert found["recovered"] == [*away, "lab.new 1 away 0"]
    assert found["dedup"] == away
    assert found["gone"] == ["lab.a gap", "lab.a # after"]
    assert sorted(found["since"]) == ["lab.a after", "lab.a away 149", "lab.none gap"]
    assert (found["aborted"], found["over"]["done"]) == ("enough", True)
    assert plain(found["forbidden"]) == failed(-32602, "invalid_params", None)
    assert found["closed"]["done"] is True
    assert found["afterwards"] == "closed"


async def test_the_token_is_asked_for_at_each_connect_and_before_it_expires(run: Run, tmp_path: Path) -> None:
    keys = KeySet(tmp_path / "keys.json", "ed")
    page = Holder("page", "operator")
    brief, long = signed(page._replace(lives=40.0)), signed(page)
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(discreet({"auth": keys.auth}))
        proxy = await stack.enter_async_context(FaultyProxy("127.0.0.1", gateway.port))
        cutting = asyncio.create_task(cut_when_refreshed(gateway, proxy))
        found = await run("authenticates", url=proxy.url(), tokens=[brief, long], wrong=secret("token"))
        await cutting
    assert (found["welcomed"], found["first"]["name"], found["refreshed"]["name"]) == (None, "page", "page")
    assert found["first"]["expiresAt"] < found["refreshed"]["expiresAt"]
    assert (found["refreshed"]["asked"], found["after"]) == (2, 3)
    assert plain(found["refused"]) == plain(found["nobody"]) == CLOSED
    assert [one["state"] for one in found["stranger"]] == ["connecting", "closed"]
    assert found["stranger"][-1]["code"] == 4500


async def cut_when_refreshed(gateway: GatewayProcess, proxy: FaultyProxy) -> None:
    """Cut the connection once its second token was taken."""
    await gateway.wait_event("connection.authenticated")
    await gateway.wait_event("connection.authenticated")
    await asyncio.sleep(1.0)  # until the page has seen it too
    proxy.cut()


async def test_close_codes_say_whether_to_come_back(run: Run) -> None:
    async def answer(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        protocol = int(request.query.get("protocol", "1"))
        interval = float(request.query.get("heartbeat", "30"))
        params = WELCOME | {"protocol": protocol, "heartbeat": {"interval": interval, "timeout": interval}}
        await socket.send_json({"jsonrpc": "2.0", "method": "gateway.welcome", "params": params})
        if request.query.get("code") == "1006":
            assert request.transport is not None
            request.transport.abort()
        elif "code" in request.query:
            await socket.close(code=int(request.query["code"]))
        else:
            async for _ in socket:
                pass  # not a word
        return socket

    app = web.Application()
    app.router.add_get("/ws", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    back = [1001, 1006, 1009, 1011, 4000, 4002, 4499]
    away = [1002, 1003, 1007, 1008, 4500, 4502, 4999]
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"ws://127.0.0.1:{runner.addresses[0][1]}/ws"
        found = await run("heeds", url=url, codes=[*back, *away])
    finally:
        await runner.cleanup()
    assert found.pop("once") == 4001
    silent = found.pop("silent")
    assert (silent["code"], silent["reason"]) == (1006, "no answer to a ping")
    assert silent["time"] >= 250
    assert "protocol 2" in found.pop("protocol")
    assert found == {str(code): "waiting" for code in back} | {str(code): "closed" for code in away}


async def test_pauses_are_drawn_from_twice_as_much_each_time(run: Run, lab: Lab) -> None:
    lab.proxy.refuse = True
    found = await run("pauses", url=lab.url)
    assert found["found"] == pytest.approx([5, 10, 20, 40, 80, 160, 300, 300, 300])
    assert (found["opening"], found["state"]) == ("timeout", "closed")
    if run is run_in_node:
        assert set(found["reasons"]) <= {"socket hang up", "read ECONNRESET"}
    else:
        assert found["reasons"] == ["no connection; this platform does not tell why"]


async def test_a_drain_tells_when_to_come_back(run: Run, lab: Lab) -> None:
    found = await run("drains", url=lab.url)
    assert found["code"] == 1001
    assert 0 < found["deadlineMs"] <= 10_000
    assert found["off"] < 2000
    assert plain(found["held"]) == failed(-32008, "timeout", "not_delivered", temporary=True)
    assert await lab.gateway.wait() == 0


async def test_a_storm_of_cuts_leaves_nothing_open(run: Run, sized: Sized) -> None:
    for client in await storm(run, "storms", sized(100, 1000), 0.015):
        assert (client["events"]["untold"], client["events"]["last"]) == ([], True)


async def test_cuts_while_all_kinds_of_things_are_under_way_leave_nothing_deaf(run: Run, sized: Sized) -> None:
    for client in await storm(run, "tortures", sized(25, 500), 0.15):
        assert (client["events"]["untold"], client["events"]["last"]) == ([], True)
        others = client["others"]
        assert (others.pop("wrong"), others.pop("deaf")) == ([], 0)
        assert client["more"] <= 2_000_000, "what is over is kept in memory"
        assert others["tooBig"] == others["big"] > 0
        assert others["cancelled"] > 0


async def storm(run: Run, scenario: str, cuts: int, pause: float) -> list[dict[str, Any]]:
    """Run a scenario while its links are cut, up to ``pause`` seconds apart; return what the clients found."""
    async with lab_of({"heartbeat": EAGER}) as lab:
        lab.more = True
        storming = asyncio.create_task(harm(lab, cuts, pause))
        found: list[dict[str, Any]] = await run(scenario, url=lab.url)
        await storming
    assert lab.proxy.cuts >= cuts
    for client in found:
        calls = client["calls"]
        numbers = {name: len(numbers) for name, numbers in calls.items()}
        print(numbers, client["events"], client["others"], client["more"])
        assert calls["other"] == []
        ended = sorted([*calls["answered"], *calls["unknown"], *calls["notDelivered"]])
        assert ended == list(range(client["first"], client["next"]))
        assert {lab.ran[number] for number in calls["answered"]} == {1}
        assert {lab.ran[number] for number in calls["notDelivered"]} <= {0}
        assert {lab.ran[number] for number in calls["unknown"]} <= {0, 1}
    return found


async def harm(lab: Lab, cuts: int, pause: float) -> None:
    """Cut, delay and drop, and publish all the while; then be calm."""
    chance, proxy = random.Random(6), lab.proxy
    publishing = asyncio.create_task(ticking(lab))
    while proxy.cuts < cuts:
        await asyncio.sleep(chance.uniform(0.0, pause))
        proxy.delay = chance.choice([0.0, 0.0, 0.0, 0.002])
        if chance.random() < 0.004:
            proxy.swallow = True
            await asyncio.sleep(1.0)  # both sides notice
        elif chance.random() < 0.3:
            proxy.cut_after(chance.randrange(1, 3000))
            continue
        proxy.cut("fin" if chance.random() < 0.5 else "reset")
        proxy.swallow = False
    proxy.delay = 0.0
    lab.more = False
    publishing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await publishing


async def ticking(lab: Lab) -> None:
    """Publish an event every 5 ms."""
    number = 0
    while True:
        await lab.publish("storm.tick", {"n": number})
        number += 1
        await asyncio.sleep(0.005)


async def test_its_types_fit_a_users_program() -> None:
    compiler = JS / "node_modules" / ".bin" / "tsc"
    flags = ("--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,dom.iterable")
    process = await asyncio.create_subprocess_exec(
        str(compiler), *flags, "--types", "", str(JS / "user.ts"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 2 * START)
    assert (process.returncode, output.decode()) == (0, "")
