"""docs/cluster.md as its reader uses it: each fenced block of the page is run, or the test fails."""

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from gateway.client import CallError, Client, Event, Gap, connect
from gateway.cluster.nats import Nats
from gateway.cluster.natslink import NatsError
from tests.support.certs import authority
from tests.support.credentials import OP, PI, TokensFile
from tests.support.fleet import until
from tests.support.nats import NatsServer, program
from tests.support.nats_peer import NatsPeer
from tests.support.nginx import Nginx
from tests.support.patience import START, WAIT, Sized
from tests.support.peers import RawPeer
from tests.support.process import ROOT, Config, GatewayProcess, clean_environment, free_port, to_toml
from tests.support.units import verified

PAGE: Final = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
BLOCKS: Final = re.findall(r"^```(\S*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
HOSTS: Final = ("192.0.2.11", "192.0.2.12", "192.0.2.13")
"""The three servers of NATS, as the page calls them."""
TOPIC: Final = "pi.door"


def blocks(language: str) -> list[str]:
    """The page's blocks in a language."""
    return [text for name, text in BLOCKS if name == language]


SERVER, ROUTES, SHARED_ACCOUNT = blocks("nats")
PASSWORD, CHECK, UPDATE, LOOK = blocks("sh")
ACCOUNTS: Final = SERVER[SERVER.index("accounts {") :]


class Folder:
    """The folders of the page, below one of the test's own: certificates, secrets and tokens are made as it says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ = clean_environment()
        for name in ("nats", "aisopod-gateway", "bin"):
            (path / name).mkdir()
        files = authority().issue(path / "nats")
        for name in ("nats/ca.pem", "aisopod-gateway/nats-ca.pem"):
            authority().write(path / name)
        assert (files.cert, files.key) == (path / "nats/server.pem", path / "nats/server.key")
        self.tokens = TokensFile(path / "aisopod-gateway/tokens.toml", OP, PI)
        self._command("aisopod-gateway", f"cd {ROOT} && exec {sys.executable} -m gateway")
        self._command("systemctl", f"echo >>{path}/systemctl")
        self._command("nats-server", f"exec {program()}")
        self.environ["PATH"] = f"{path / 'bin'}:{os.environ['PATH']}"
        assert self.run(PASSWORD) == ""

    def _command(self, name: str, line: str) -> None:
        file = self.path / "bin" / name
        file.write_text(f'#!/bin/sh\n{line} "$@"\n')
        file.chmod(0o755)

    @property
    def password(self) -> str:
        """The one that the page has made."""
        return (self.path / "aisopod-gateway/nats.password").read_text().strip()

    def real(self, text: str) -> str:
        """Return the text with real folders."""
        text = text.replace(".venv/bin/", "").replace("/etc/nats/", f"{self.path}/nats/")
        return text.replace("/etc/aisopod-gateway/", f"{self.path}/aisopod-gateway/")

    def run(self, text: str) -> str:
        """Run the lines of a block in a shell. Returns what they print; none of them may fail."""
        done = subprocess.run(
            ["sh", "-e", "-c", self.real(text)],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def server(self, text: str, number: int = 0, routes: Sequence[int] = ()) -> NatsServer:
        """Return a server with this configuration, one of those with these ports for each other."""
        text = self.real(text).replace(f'listen: "{HOSTS[0]}:4222"\n', "").replace("/var/lib/nats", "{directory}")
        text = text.replace("nats-1", f"nats-{number + 1}").replace(
            f'listen: "{HOSTS[0]}:', f'listen: "{HOSTS[number]}:'
        )
        for host, port in zip(HOSTS, routes, strict=False):
            text = text.replace(f"{host}:6222", f"127.0.0.1:{port}")
        assert "192.0.2" not in text
        return NatsServer(text)

    def config(self, servers: Sequence[NatsServer], member: str) -> dict[str, Any]:
        """Return the configuration of a gateway that joins them."""
        (text,) = blocks("toml")
        config = tomllib.loads(self.real(text))
        config["server"] |= {"host": "127.0.0.1", "port": 0}
        urls = [server.url.replace("nats:", "tls:") for server in servers]
        config["cluster"] |= {"nats": urls, "member": member, "replicas": len(servers)}
        return config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    folder = Folder(tmp_path)
    monkeypatch.setenv("GATEWAY_PASSWORD", folder.password)
    monkeypatch.setenv("SENSORS_PASSWORD", "sensors")
    folder.environ["GATEWAY_PASSWORD"] = folder.password
    return folder


def test_there_is_a_test_for_each_block() -> None:
    assert PAGE.count("\n```") == 2 * len(BLOCKS)
    counts = {name: len(blocks(name)) for name, _ in BLOCKS}
    assert counts == {"nats": 3, "sh": 4, "ini": 1, "toml": 1, "nginx": 1}


def test_systemd_finds_nothing_wrong_with_the_unit_of_the_page(tmp_path: Path) -> None:
    (unit,) = blocks("ini")
    assert verified(unit, tmp_path / "nats-server.service") == (0, "")


async def test_gateways_of_the_page_are_checked_updated_and_looked_at(folder: Folder) -> None:
    async with folder.server(SERVER) as server, AsyncExitStack() as stack:
        files = folder.path / "nats/nats-server.conf", folder.path / "aisopod-gateway/gateway.toml"
        for file, text in zip(files, (SERVER, to_toml(folder.config([server], "attic"))), strict=True):
            file.write_text(folder.real(text).replace("/var/lib/nats", str(folder.path)))
        assert "in the cluster gateway" in await asyncio.to_thread(folder.run, CHECK)

        gateways = []
        for name in ("attic", "cellar"):
            config = folder.config([server], name)
            config["server"]["ops_port"] = free_port()
            gateways.append(await stack.enter_async_context(GatewayProcess(config)))
        first, second = gateways
        await first.wait_event("cluster.member_joined")
        ports = {
            str(old): str(one.config["server"]["ops_port"]) for old, one in zip((9101, 9102), gateways, strict=True)
        }
        update, look = (re.sub("910[12]", lambda found: ports[found[0]], text) for text in (UPDATE, LOOK))
        assert (await asyncio.to_thread(folder.run, update)).count('"cluster": "joined"') == 2
        asked = (folder.path / "systemctl").read_text()

        folder.environ |= {
            "GATEWAY_URL": first.url("/ws", websocket=True),
            "GATEWAY_TOKEN": folder.tokens.of(OP),
        }
        async with connect(second.url("/ws", websocket=True), folder.tokens.of(PI)) as node:
            node.method("cellar.light")(lambda params, call: True)
            await node.serve("pi")
            printed = await asyncio.to_thread(folder.run, look)
        assert re.search(r"^pi .* cellar +cellar\.light$", printed, re.MULTILINE), printed
        assert re.search(r"^attic .*\n^cellar ", printed, re.MULTILINE), printed
        assert "gateway_cluster_members 2.0" in printed
        assert asked == "".join(f"restart gateway@{port}\n" for port in ports.values())


class Named(NamedTuple):
    """A server of NATS, and its name as the others know it."""

    name: str
    server: NatsServer


@asynccontextmanager
async def three_servers(folder: Folder) -> AsyncIterator[list[Named]]:
    """Start the three servers of the page."""
    routes = [free_port() for _ in HOSTS]
    found = [Named(f"nats-{number + 1}", folder.server(SERVER + ROUTES, number, routes)) for number in range(3)]
    async with AsyncExitStack() as stack:
        for one in found:
            await stack.enter_async_context(one.server)
        yield found


async def api(nats: Nats, what: str) -> dict[str, Any]:
    """Ask JetStream, until it answers."""
    async with asyncio.timeout(WAIT):
        while True:
            with suppress(NatsError):
                _, answer = await nats.request(f"$JS.API.{what}".encode(), b"", 1.0)
                found: dict[str, Any] = json.loads(answer)
                if "error" not in found:
                    return found
            await asyncio.sleep(0.1)


async def leader(folder: Folder, servers: Sequence[Named]) -> str:
    """Return the name of the server that leads the stream. All three of them have it."""
    urls = [one.server.url.replace("nats:", "tls:") for one in servers]
    tls = authority().client_context()
    async with NatsPeer(*urls, user="gateway", password=folder.password, tls=tls, inbox=b"gateway.inbox") as peer:
        async with asyncio.timeout(WAIT):
            while True:
                raft = (await api(peer.nats, "STREAM.INFO.gateway"))["cluster"]
                if len(raft["replicas"]) == 2 and all(one["current"] for one in raft["replicas"]):
                    name: str = raft["leader"]
                    return name
                await asyncio.sleep(0.1)


class Busy:
    """Calls a node at another gateway, and publishes there, again and again, until it is told to stop."""

    def __init__(self, caller: Client, publisher: Client) -> None:
        self.called: list[int] = []
        self.acknowledged: list[int] = []
        self.errors: set[tuple[str, str | None]] = set()
        self._stopped = False
        self._works = [
            asyncio.create_task(self._repeat(partial(self._call, caller), self.called)),
            asyncio.create_task(self._repeat(partial(self._publish, publisher), self.acknowledged)),
        ]

    async def _call(self, caller: Client, number: int) -> None:
        assert await caller.call("echo", [number]) == [number]

    async def _publish(self, publisher: Client, number: int) -> None:
        await publisher.call("event.publish", {"topic": TOPIC, "data": number})

    async def _repeat(self, what: Callable[[int], Coroutine[Any, Any, None]], done: list[int]) -> None:
        for number in itertools.count():
            if self._stopped:
                return
            try:
                await what(number)
                done.append(number)
            except CallError as error:
                self.errors.add((error.name, error.outcome))
            await asyncio.sleep(0.01)

    async def go_on(self) -> None:
        """Wait until both succeed again."""
        calls, events = len(self.called) + 5, len(self.acknowledged) + 5
        await until(lambda: len(self.called) > calls and len(self.acknowledged) > events, f"errors: {self.errors}")

    async def stop(self) -> None:
        """Stop both."""
        self._stopped = True
        await asyncio.gather(*self._works)


async def test_one_of_three_servers_is_killed_and_calls_and_events_go_on(folder: Folder, sized: Sized) -> None:
    """With `--full` each of the three is killed in turn, and so the one that leads the stream, too."""
    async with three_servers(folder) as servers, AsyncExitStack() as stack:
        urls = [one.server for one in servers]
        configs = [folder.config(urls[at:] + urls[:at], "ab"[at]) for at in range(2)]
        events_kept = {"events": {"history_count": 10_000}}  # all that is published meanwhile, so there is no gap
        gateways = [GatewayProcess(config | events_kept) for config in configs]
        await asyncio.gather(*map(stack.enter_async_context, gateways))
        caller, node = [
            await stack.enter_async_context(connect(one.url("/ws", websocket=True), folder.tokens.of(holder)))
            for one, holder in zip(gateways, (OP, PI), strict=True)
        ]
        node.method("echo")(lambda params, call: params)
        await node.serve("pi")
        events = aiter(await stack.enter_async_context(caller.subscribe(TOPIC)))
        busy = Busy(caller, node)
        await busy.go_on()
        leads = await leader(folder, servers)
        # One that a gateway is connected to. Without the leader events wait some seconds for another one.
        others = [one for one in servers[:2] if one.name != leads]
        for victim in (others[:1], servers)[sized(0, 1)]:
            victim.server.kill()
            await busy.go_on()
            await victim.server.start()
            await leader(folder, servers)
            await busy.go_on()
        await busy.stop()
        heard = [await take(events)]
        while heard[-1] < busy.acknowledged[-1]:
            heard.append(await take(events))
        assert heard == sorted(set(heard)) and set(busy.acknowledged) <= set(heard)
        assert {error for error, outcome in busy.errors if outcome == "unknown"} <= {"node_lost", "timeout"}
        assert {error for error, outcome in busy.errors} <= {"node_lost", "timeout", "unavailable", "method_not_found"}


async def take(events: AsyncIterator[Event | Gap]) -> int:
    """Return the next message. There is no gap."""
    event = await asyncio.wait_for(anext(events), WAIT)
    assert isinstance(event, Event)
    number: int = event.data
    return number


def user(server: NatsServer, name: str, password: str, **options: Any) -> NatsPeer:
    """A client of NATS."""
    return NatsPeer(server.url.replace("nats:", "tls:"), user=name, password=password, **options)


async def test_in_an_account_of_their_own_the_gateways_are_out_of_reach(folder: Folder) -> None:
    others = "accounts {\n  OTHERS { jetstream: enabled, users: [{ user: sensors, password: sensors }] }"
    tls = authority().client_context()
    async with (
        folder.server(SERVER.replace("accounts {", others)) as server,
        GatewayProcess(folder.config([server], "attic")) as gateway,
        user(server, "sensors", "sensors", tls=tls) as stranger,
        user(server, "gateway", folder.password, tls=tls) as insider,
    ):
        await stranger.hear(b"gateway.>")
        await insider.hear(b"gateway.beat")
        await until(lambda: bool(insider.messages), "there is no heartbeat")
        assert not stranger.messages
        _, answer = await stranger.nats.request(b"$JS.API.STREAM.INFO.gateway", b"", WAIT)
        assert json.loads(answer)["error"]["err_code"] == 10059, "it has no such stream"
        pretend(stranger)
        await stranger.nats.flush(WAIT)
        await insider.nats.flush(WAIT)
        assert b"stranger" not in b"".join(insider.payloads())
        assert not gateway.events("cluster.member_joined")
        assert not stranger.forbidden


def pretend(peer: NatsPeer, subject: bytes = b"gateway.beat") -> None:
    """Say that a gateway is there."""
    beat = {"from": "0badcafe_1", "instance": "0badcafe", "name": "stranger", "number": 1}
    peer.nats.publish(subject, json.dumps(beat).encode())


async def test_with_the_permissions_of_the_page_gateways_work_and_others_are_kept_out(folder: Folder) -> None:
    tls = authority().client_context()
    config = SERVER.replace(ACCOUNTS, SHARED_ACCOUNT)
    async with folder.server(config) as server, AsyncExitStack() as stack:
        enter = stack.enter_async_context
        first, second = [await enter(GatewayProcess(folder.config([server], name))) for name in ("attic", "cellar")]
        await first.wait_event("cluster.member_joined")
        async with (
            connect(first.url("/ws", websocket=True), folder.tokens.of(PI)) as node,
            connect(second.url("/ws", websocket=True), folder.tokens.of(OP)) as caller,
        ):
            node.method("attic.light")(lambda params, call: True)
            await node.serve("pi")
            await node.publish(TOPIC, "open")
            assert await caller.call("attic.light", node="pi", wait=WAIT) is True
        third = await enter(GatewayProcess(folder.config([server], "roof")))
        events = await third.wait_event("cluster.events_joined")
        assert events["caughtUp"] == events["offset"] > 0, "it may read what the stream has"

        stranger = await enter(user(server, "sensors", "sensors", tls=tls))
        pretend(stranger)
        for forbidden in (b"gateway.>", b"gateway.beat", b"gateway.inbox.>", b"$JS.API.>"):
            stranger.nats.subscribe(forbidden, stranger.note)
        for what in (b"STREAM.INFO.gateway", b"STREAM.DELETE.gateway", b"STREAM.MSG.GET.gateway", b"INFO"):
            stranger.nats.publish(b"$JS.API." + what, b"{}")
        stranger.nats.publish(b"gateway.event.1.door", b"")
        await stranger.hear(b"sensors.>")
        stranger.nats.publish(b"sensors.one", b"mine")
        await stranger.nats.flush(WAIT)
        assert [text.count("Violation") for text in stranger.forbidden] == [1] * 10
        assert stranger.payloads() == [b"mine"], "what is not the cluster's is its own"
        assert not any(one.events("cluster.forbidden") for one in (first, second, third))
        assert len(first.events("cluster.member_joined")) == 2, "the gateways, and no stranger"


async def test_who_may_use_jetstream_in_the_account_is_a_member(folder: Folder) -> None:
    """So the page denies that, too."""
    config = SERVER.replace(ACCOUNTS, SHARED_ACCOUNT.replace('["gateway.>", "$JS.>"]', '["gateway.>"]'))
    tls = authority().client_context()
    async with (
        folder.server(config) as server,
        GatewayProcess(folder.config([server], "attic")) as gateway,
        user(server, "sensors", "sensors", tls=tls) as stranger,
    ):
        async with connect(gateway.url("/ws", websocket=True), folder.tokens.of(PI)) as node:
            await node.publish(TOPIC, "secret")
        ask = stranger.nats.request
        _, kept = await ask(b"$JS.API.STREAM.MSG.GET.gateway", b'{"seq": 1, "next_by_subj": "gateway.>"}', WAIT)
        assert "error" not in json.loads(kept)
        stream = {"name": "mine", "subjects": ["mine"], "republish": {"src": "mine", "dest": "gateway.beat"}}
        await ask(b"$JS.API.STREAM.CREATE.mine", json.dumps(stream).encode(), WAIT)
        pretend(stranger, b"mine")
        line = await gateway.wait_event("cluster.member_joined")
        assert line["member"] == "stranger"


async def test_nginx_of_the_page_sends_a_client_to_the_same_gateway_again(folder: Folder) -> None:
    (text,) = blocks("nginx")
    choose, *servers = text.partition("{")[2].replace("}", "").strip().splitlines()
    assert len(servers) == 2
    (folder.path / "nginx").mkdir()
    async with AsyncExitStack() as stack:
        config: Config = {"server": {"trusted_proxies": ["127.0.0.1/32"]}}
        gateways = [await stack.enter_async_context(GatewayProcess(config)) for _ in servers]
        nginx = await stack.enter_async_context(Nginx(folder.path / "nginx", gateways, choose=choose))
        chosen: dict[str, set[str]] = {}
        for number in range(2 * 24):
            source = f"127.0.0.{2 + number % 24}"
            with await RawPeer.open(nginx.target, source=source) as peer:
                chosen.setdefault(source, set()).add((await peer.welcome())["server"]["instance"])
        assert all(len(instances) == 1 for instances in chosen.values())
        assert len(set.union(*chosen.values())) == 2
