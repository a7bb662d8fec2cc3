"""Gateways behind a real nginx with TLS: whose connection it is, and that no client can say otherwise."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.fleet import until
from tests.support.nginx import ADDED_FORWARDED, FORWARDED, X_FORWARDED_FOR, Nginx
from tests.support.peers import Opcode, RawPeer, Response, Target
from tests.support.process import Config, GatewayProcess

PROXY: Final = "127.0.0.1/32"
"""Where nginx calls the gateways from. The clients' own loopback addresses are outside of it."""

FIRST, SECOND = "127.0.0.2", "127.0.0.3"
STRANGER: Final = "203.0.113.9"
BEHIND: Final[Config] = {"server": {"trusted_proxies": [PROXY]}}

Headers = dict[str, str]

CLAIMS: Final[tuple[Headers, ...]] = (
    {},
    {"X-Forwarded-For": STRANGER},
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": f"{STRANGER}, 127.0.0.1"},
    {"X-Forwarded-For": "unknown"},
    {"x-forwarded-for": f"[2001:db8::1]:80, {STRANGER}:47011,"},
    {"Forwarded": f"for={STRANGER}"},
    {"Forwarded": f'for="{STRANGER}:80";proto=https, for=127.0.0.1'},
    {"Forwarded": f"for={STRANGER}", "X-Forwarded-For": STRANGER},
    {"X-Real-IP": STRANGER},
    # A quote that is left open would swallow what the proxy adds.
    {"Forwarded": f'for={STRANGER};by="'},
    {"Forwarded": f'for={STRANGER};by="\\'},
)
"""What clients say of themselves, honest and otherwise."""


@asynccontextmanager
async def behind_nginx(
    directory: Path, *configs: Config, headers: str = X_FORWARDED_FOR
) -> AsyncIterator[tuple[Target, list[GatewayProcess]]]:
    """Start a gateway for each of these configurations, and nginx before them; gives where clients connect."""
    async with AsyncExitStack() as stack:
        gateways = [GatewayProcess(config) for config in configs]
        await asyncio.gather(*map(stack.enter_async_context, gateways))
        nginx = await stack.enter_async_context(Nginx(directory, gateways, headers=headers))
        yield nginx.target, gateways


async def come_and_go(where: Target | GatewayProcess, source: str, headers: Headers | None = None) -> tuple[str, str]:
    """Open a connection and end it; returns its connId and the client's address and port."""
    with await RawPeer.open(where, source=source, headers=headers) as peer:
        conn_id: str = (await peer.welcome())["connId"]
        await peer.leave()
    return conn_id, peer.local


async def ask(where: Target, source: str, headers: Headers | None = None) -> Response:
    """Ask for an upgrade that is refused; returns the answer."""
    with await RawPeer.connect(where, source=source) as peer:
        await peer.send_raw(peer.upgrade_head(headers=headers))
        return await peer.read_response()


async def logged(gateways: list[GatewayProcess], conn_ids: Iterable[str]) -> list[dict[str, str]]:
    """Wait for the end of these connections; returns what each gateway has logged: remote by connId, oldest first."""
    wanted = set(conn_ids)

    def are_over() -> bool:
        return wanted <= {line["connId"] for gateway in gateways for line in gateway.events("connection.closed")}

    await until(are_over, "a connection's end is not in the log")
    for gateway in gateways:
        for line in gateway.events("connection.closed"):
            assert gateway.events("connection.opened", connId=line["connId"], remote=line["remote"]), line
    return [{line["connId"]: line["remote"] for line in gateway.events("connection.opened")} for gateway in gateways]


# Whose connection it is


@pytest.mark.parametrize(
    "headers",
    [X_FORWARDED_FOR, FORWARDED, ADDED_FORWARDED],
    ids=["x-forwarded-for", "forwarded", "added-forwarded"],
)
async def test_both_processes_log_the_clients_own_address_whatever_it_claims(tmp_path: Path, headers: str) -> None:
    async with behind_nginx(tmp_path, BEHIND, BEHIND, headers=headers) as (where, gateways):
        came: dict[str, tuple[Headers, str]] = {}
        for claim in CLAIMS:
            for source in (FIRST, FIRST, SECOND, SECOND):  # the gateways take turns: each gets both
                conn_id, _ = await come_and_go(where, source, claim)
                came[conn_id] = claim, source
        seen = await logged(gateways, came)
        assert [len(remotes) for remotes in seen] == [2 * len(CLAIMS)] * 2
        wrong = {
            (str(came[conn_id][0]), remote)
            for remotes in seen
            for conn_id, remote in remotes.items()
            if remote != f"{came[conn_id][1]}:0"  # nginx does not tell the port
        }
        assert wrong == set()
        for gateway in gateways:
            assert STRANGER not in json.dumps(gateway.lines)


async def test_who_is_no_trusted_proxy_is_logged_with_its_own_address(tmp_path: Path) -> None:
    claims: Headers = {"X-Forwarded-For": STRANGER, "Forwarded": f"for={STRANGER}"}
    async with behind_nginx(tmp_path, BEHIND, {}) as (where, gateways):
        direct = [await come_and_go(gateway, FIRST, claims) for gateway in gateways]
        passed_on = [await come_and_go(where, SECOND) for _ in gateways]
        as_proxy = await come_and_go(gateways[0], "127.0.0.1", claims)
        trusting, wary = await logged(gateways, [conn_id for conn_id, _ in (*direct, *passed_on, as_proxy)])
        assert list(trusting.values()) == [direct[0][1], f"{SECOND}:0", f"{STRANGER}:0"]
        own, of_nginx = wary.values()
        assert own == direct[1][1]
        assert re.fullmatch(r"127\.0\.0\.1:[1-9][0-9]*", of_nginx)


async def test_over_unix_sockets_the_proxy_is_believed_where_unix_is_trusted(tmp_path: Path) -> None:
    configs: list[Config] = [
        {"server": {"unix_socket": str(tmp_path / f"{name}.sock"), "trusted_proxies": trusted}}
        for name, trusted in (("a", ["unix"]), ("b", [PROXY]))
    ]
    async with behind_nginx(tmp_path, *configs) as (where, gateways):
        came = [
            await come_and_go(where, source, {"X-Forwarded-For": STRANGER}) for source in (FIRST, FIRST, SECOND, SECOND)
        ]
        seen = await logged(gateways, [conn_id for conn_id, _ in came])
        assert [list(remotes.values()) for remotes in seen] == [[f"{FIRST}:0", f"{SECOND}:0"], ["unix", "unix"]]


# What is decided by it


async def test_the_bound_on_connections_counts_the_client_and_not_the_proxy(tmp_path: Path) -> None:
    config = {**BEHIND, "limits": {"max_connections_per_address": 2}}
    async with behind_nginx(tmp_path, config) as (where, [gateway]):
        with ExitStack() as stack:
            peers = [stack.enter_context(await RawPeer.open(where, source=FIRST)) for _ in range(2)]
            for claim in ({}, {"X-Forwarded-For": STRANGER}):
                answer = await ask(where, FIRST, claim)
                assert (answer.status, answer.headers["retry-after"]) == (429, "5")
                line = await gateway.wait_event("handshake.rejected")
                assert (line["status"], line["remote"]) == (429, f"{FIRST}:0")
            # Neither the proxy nor anybody else behind it has to pay for that.
            for _ in range(2):
                peer = stack.enter_context(await RawPeer.open(where, source=SECOND))
                await peer.alive()
            await peers[0].leave()
            await gateway.wait_event("connection.closed", remote=f"{FIRST}:0")
            await come_and_go(where, FIRST)


async def test_the_page_that_nginx_serves_over_tls_has_the_origin_of_the_gateway(tmp_path: Path) -> None:
    public: Config = {"server": {"trusted_proxies": [PROXY], "allowed_hosts": ["gateway.example", "127.0.0.1"]}}
    async with behind_nginx(tmp_path, public) as (where, [gateway]):
        own = f"127.0.0.1:{where.port}"
        for host, origin in (
            ("gateway.example", "https://gateway.example"),
            ("gateway.example:8443", "https://gateway.example:8443"),
            (own, f"https://{own}"),
        ):
            await come_and_go(where, FIRST, {"Host": host, "Origin": origin})
        for host, origin, status in (
            ("gateway.example", "https://evil.example", 403),
            ("gateway.example", "https://gateway.example:8443", 403),
            ("gateway.example", "null", 403),
            (own, "https://127.0.0.1", 403),
            ("evil.example", "https://evil.example", 421),
        ):
            assert (await ask(where, FIRST, {"Host": host, "Origin": origin})).status == status
            line = await gateway.wait_event("handshake.rejected")
            assert (line["status"], line["remote"]) == (status, f"{FIRST}:0"), (host, origin)


# Drain


async def test_when_one_gateway_drains_its_clients_move_to_the_other(tmp_path: Path) -> None:
    async with behind_nginx(tmp_path, BEHIND, BEHIND) as (where, [leaving, staying]):
        with ExitStack() as stack:
            peers = [stack.enter_context(await RawPeer.open(where, source=FIRST)) for _ in range(4)]
            instances = [(await peer.welcome())["server"]["instance"] for peer in peers]
            old = leaving.events("server.started")[0]["instance"]
            moving = [peer for peer, instance in zip(peers, instances, strict=True) if instance == old]
            kept = [peer for peer in peers if peer not in moving]
            assert (len(moving), len(kept)) == (2, 2)

            leaving.terminate()
            for peer in moving:
                assert (await peer.recv_json())["method"] == "gateway.draining"
                assert (await peer.recv_frame()).opcode == Opcode.CLOSE
                assert peer.close_code == 1001
            # The one still listens, for nobody has answered its close frame, and refuses: nginx asks the other.
            for _ in moving:
                await assert_served_by(staying, where, stack)
            await leaving.wait_event("handshake.rejected", status=503, remote=f"{FIRST}:0")
            await asyncio.gather(*(peer.leave() for peer in moving))
            assert await leaving.wait() == 0
            # Nobody listens there any more.
            for _ in moving:
                await assert_served_by(staying, where, stack)
            for peer in kept:
                await peer.alive()


async def assert_served_by(gateway: GatewayProcess, where: Target, stack: ExitStack) -> None:
    """Fail unless a new client gets to this gateway, which knows its address."""
    peer = stack.enter_context(await RawPeer.open(where, source=FIRST))
    conn_id = (await peer.welcome())["connId"]
    assert (await gateway.wait_event("connection.opened", connId=conn_id))["remote"] == f"{FIRST}:0"
