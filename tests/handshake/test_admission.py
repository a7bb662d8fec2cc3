"""Those who are in: they refresh, expire and are revoked; and how many may be in, of whom and from where."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import pytest_asyncio

from gateway.auth.authenticators import AllowAny
from gateway.auth.credentials import Credential
from gateway.config import parse
from gateway.connections.connection import Connection
from gateway.handshake.admission import Admission
from gateway.handshake.upgrade import RefusedError
from gateway.rpc.steps import Steps
from gateway.rpc.work import Work
from gateway.status import Status
from gateway.telemetry.lines import REFRESHED, Lines
from tests.support.credentials import (
    HOUR,
    OLD,
    OP,
    PAGE,
    PI,
    Holder,
    KeySet,
    TokensFile,
    ask,
    assert_is,
    at_once,
    authenticate,
    bearer,
    connections,
    disconnects,
    discreet,
    entered,
    farewell,
    gains,
    own_address,
    refused,
    replace,
    scrape,
    secret,
    signed,
    text,
    texts,
)
from tests.support.fleet import ended, request
from tests.support.patience import SLACK, WAIT
from tests.support.peers import RawPeer
from tests.support.process import GatewayProcess, Line

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS: Final = {"methods": {"modules": ["tests.support.sample_methods"]}}
QUICK: Final = {"server": {"close_timeout": 0.5}}


# Refresh


async def test_a_refresh_keeps_the_connection_and_its_calls(tmp_path: Path) -> None:
    keys = KeySet(tmp_path / "keys.json", "rsa", "ec", "ed")
    async with discreet(METHODS | {"auth": keys.auth}) as where:
        with await RawPeer.open(where, headers=bearer(signed(OP, "rsa"))) as peer:
            conn = (await peer.welcome())["connId"]
            before = await scrape(where)
            await peer.send_json(ask(None, id="slow", method="wait", params=[]))
            await peer.send_json(ask(None, id="asked", method="ask", params=["?"]))
            asked = (await texts(peer, 1))[0]
            # By another key, with other scopes: the same principal all the same.
            fewer = OP._replace(scopes=("call:>", "admin"))
            reply = await authenticate(peer, signed(fewer, "ed"))
            assert (reply["result"]["name"], reply["result"]["scopes"]) == ("op", ["call:>", "admin"])
            for bad in (secret("jwt"), signed(OP._replace(lives=-1.0)), signed(OP, "ed-stranger")):
                assert (await authenticate(peer, bad))["error"]["code"] == -32001
            assert (await authenticate(peer, signed(PI, "ed")))["error"]["code"] == -32007
            await request(peer, "connection.get", connId=conn)
            seen = (await peer.recv_json())["result"]
            assert (seen["name"], seen["role"], seen["inFlight"]) == ("op", "operator", 3)
            await peer.send_json({"jsonrpc": "2.0", "id": asked["id"], "result": "!"})
            assert await peer.recv_json() == {"jsonrpc": "2.0", "id": "asked", "result": "!"}
            await peer.send_json({"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": "slow"}})
            assert (await peer.recv_json())["error"]["code"] == -32800
            assert await gains(where, before) == {}
            await peer.leave()
            await ended(where, peer, "client_close", 1000)
            assert len(where.events("connection.authenticated", connId=conn, principal="op")) == 1
            assert len(where.events("connection.opened", connId=conn)) == 1


async def test_requests_behind_a_refresh_have_the_new_scopes_at_once(tmp_path: Path) -> None:
    keys = KeySet(tmp_path / "keys.json", "ed")
    async with discreet(METHODS | {"auth": keys.auth}) as where:
        with await entered(where, signed(PAGE._replace(scopes=("subscribe:>",)))) as peer:
            echo = text(ask(None, id=2, method="echo", params=[]))
            await peer.send_raw(echo + text(ask(signed(PAGE))) + echo)
            replies = await texts(peer, 3)
            assert (replies[0]["error"]["code"], replies[1]["result"]["name"]) == (-32003, "page")
            assert replies[2] == {"jsonrpc": "2.0", "id": 2, "result": []}
            await peer.leave()


async def test_a_refresh_that_changes_nothing_is_neither_logged_nor_heeded(tmp_path: Path) -> None:
    """A peer that refreshed all the time once wrote thousands of lines a second."""
    keys = KeySet(tmp_path / "keys.json", "rsa", "ed")
    async with discreet(METHODS | {"auth": keys.auth}) as where:
        brought = signed(OP, "rsa")
        with await RawPeer.open(where, headers=bearer(brought)) as peer:
            conn = (await peer.welcome())["connId"]
            for _ in range(200):
                assert (await authenticate(peer, brought))["result"]["name"] == "op"
            assert not where.events("connection.authenticated", connId=conn)
            # One that changes something each time is sampled.
            for number in range(2 * REFRESHED.burst):
                scopes = ("call:>",) if number % 2 else ("call:>", "admin")
                reply = await authenticate(peer, signed(OP._replace(scopes=scopes)))
                assert reply["result"]["scopes"] == [*scopes]
            await peer.leave()
            await ended(where, peer, "client_close", 1000)
        lines = where.events("connection.authenticated", connId=conn)
        assert REFRESHED.burst <= len(lines) < 2 * REFRESHED.burst


# Expiry


async def test_an_expiry_is_announced_and_then_ends_it_with_4004(tmp_path: Path) -> None:
    await at_once(*(expire(mode, tmp_path) for mode in ("token", "jwt")))


async def expire(mode: str, tmp_path: Path) -> None:
    """One of three lives for ever, the others come with a credential that does not."""
    tokens = TokensFile(tmp_path / f"{mode}.toml", OP)
    keys = KeySet(tmp_path / f"{mode}.json", "ed")
    auth = (tokens if mode == "token" else keys).auth | {"expiry_notice": 1.0}
    async with discreet(QUICK | {"auth": auth}) as where:
        lives = 5.0
        brief = PAGE._replace(lives=lives)
        moment = time.time() + lives
        tokens.put(brief)
        await reload(where)
        credential = tokens.of(brief) if mode == "token" else signed(brief)
        lasting = tokens.of(OP) if mode == "token" else signed(OP)
        with (
            await entered(where, credential) as peer,
            await entered(where) as late,
            await entered(where, lasting) as op,
        ):
            result = (await authenticate(late, credential))["result"]
            for each in (peer, late):
                told = await each.recv_json()
                assert told["method"] == "gateway.expiring"
                assert told["params"]["expiresAt"] == result["expiresAt"]
                assert 0 <= told["params"]["leftMs"] <= 1000
            assert time.time() > moment - 1.1
            assert [await farewell(each) for each in (peer, late)] == [[], []]
            assert moment - 0.1 < time.time() < moment + SLACK
            for each in (peer, late):
                assert each.close_code == 4004
                await ended(where, each, "credential_expired", 4004)
            assert (await refused(where, bearer(credential)))[0] == 401
            await op.alive()
            assert (await scrape(where))[disconnects("credential_expired")] == 2
            await op.leave()


async def test_a_refresh_moves_the_expiry_either_way(tmp_path: Path) -> None:
    keys = KeySet(tmp_path / "keys.json", "ed")
    async with discreet(QUICK | {"auth": keys.auth | {"expiry_notice": 0.3}}) as where:
        with (
            await entered(where, signed(PI._replace(lives=3.0))) as later,
            await entered(where, signed(PAGE._replace(lives=HOUR))) as sooner,
        ):
            await authenticate(later, signed(PI._replace(lives=HOUR)))
            moment = time.time() + 3.0
            await authenticate(sooner, signed(PAGE._replace(lives=3.0)))
            assert (await sooner.recv_json())["method"] == "gateway.expiring"
            await farewell(sooner)
            assert sooner.close_code == 4004
            assert moment - 0.1 < time.time() < moment + SLACK
            await request(later, "gateway.ping", still="here")
            assert (await later.recv_json())["result"] == {"still": "here"}, "it was told of an expiry that has moved"
            await later.leave()
            assert not where.events("connection.closed", remote=later.local, cause="credential_expired")


# Revocation


async def reload(where: GatewayProcess, event: str = "server.reloaded") -> Line:
    """Send SIGHUP and wait for the outcome."""
    where.signal(signal.SIGHUP)
    return await where.wait_event(event)


async def assert_only(
    where: GatewayProcess, gone: list[RawPeer], alive: list[RawPeer], change: Callable[[], None]
) -> None:
    """Fail unless a change of the files ends these connections, and no others."""
    before = await scrape(where)
    for peer in alive:
        await peer.send_json(ask(None, id="held", method="wait", params=[]))
    change()
    line = await reload(where)
    await at_once(*map(farewell, gone))
    assert {peer.close_code for peer in gone} == {4503}
    for peer in gone:
        await ended(where, peer, "credential_revoked", 4503)
    assert line["revoked"] == len(gone)
    for peer in alive:
        await request(peer, "gateway.ping", still="here")
        assert (await peer.recv_json())["result"] == {"still": "here"}, "its call has ended"
    assert (await gains(where, before))[disconnects("credential_revoked")] == len(gone)


async def test_a_token_that_is_revoked_ends_its_connections_and_no_others(tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PI, PAGE, Holder("cam", "ui"))
    async with discreet(METHODS | QUICK | {"auth": tokens.auth}) as where:
        gone = [await entered(where, tokens.of(PI)) for _ in range(3)]
        gone.append(await entered(where))
        await authenticate(gone[-1], tokens.of(PI))
        alive = [await entered(where, tokens.of(holder)) for holder in (OP, OP, PAGE)]
        waiting = await entered(where)
        passed_on = await entered(where, tokens.of(Holder("cam", "ui")))

        def change() -> None:
            tokens.drop(PI)
            tokens.pass_on(Holder("cam", "ui"), Holder("cam2", "ui"))
            tokens.put(Holder("new", "ui"))

        await assert_only(where, [*gone, passed_on], alive, change)
        assert (await refused(where, bearer(tokens.of(PI)), own_address()))[0] == 401
        assert (await authenticate(alive[0], tokens.of(PI)))["error"]["code"] == -32001
        assert_is((await authenticate(waiting, tokens.of(Holder("new", "ui"))))["result"], Holder("new", "ui"))
        tokens.put(PI)
        await reload(where)
        for peer in (*alive, waiting, await entered(where, tokens.of(PI))):
            await peer.leave()


async def test_a_key_that_is_gone_ends_its_connections_and_no_others(tmp_path: Path) -> None:
    keys = KeySet(tmp_path / "keys.json", "rsa", "ec", "ed")
    async with discreet(METHODS | QUICK | {"auth": keys.auth}) as where:
        gone = [await entered(where, signed(holder, "ec")) for holder in (OP, PAGE)]
        alive = [await entered(where, signed(OP, kid)) for kid in ("rsa", "ed")]
        moved = await entered(where, signed(OP, "ec"))
        await authenticate(moved, signed(OP, "ed"))
        used = signed(PAGE, "ec")
        gone.append(await entered(where, used))
        await assert_only(where, gone, [*alive, moved], lambda: keys.put("rsa", "ed", "ec-new"))
        assert (await refused(where, bearer(used), own_address()))[0] == 401
        for peer in (*alive, moved, await entered(where, signed(PI, "ec-new"))):
            await peer.leave()


async def test_changes_of_a_token_take_effect_in_place(tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PAGE, PI)
    async with discreet(METHODS | QUICK | {"auth": tokens.auth | {"expiry_notice": 0.0}}) as where:
        with await entered(where, tokens.of(PAGE)) as page, await entered(where, tokens.of(PI)) as pi:
            assert await may(page, "echo")
            assert not await may(page, "connection.list")
            tokens.put(PAGE._replace(scopes=("admin",)))
            assert (await reload(where))["revoked"] == 0
            assert not await may(page, "echo")
            assert await may(page, "connection.list")
            tokens.put(Holder("page", "operator"), PI._replace(lives=-1.0))
            await reload(where)
            assert await may(page, "echo")
            await farewell(pi)
            assert pi.close_code == 4004
            await ended(where, pi, "credential_expired", 4004)
            assert (await scrape(where))[connections("operator")] == 1
            await page.leave()


async def may(peer: RawPeer, method: str) -> bool:
    """Whether this method, without parameters, is allowed."""
    await request(peer, method)
    reply = await peer.recv_json()
    assert "result" in reply or reply["error"]["code"] == -32003, reply
    return "result" in reply


BAD_FILES: Final[dict[str, Callable[[Path], object]]] = {
    "gone": lambda path: path.unlink(),
    "others may write it": lambda path: path.chmod(0o620),
    "no syntax": lambda path: replace(path, f"[[token]\nname = '{secret('payload')}'"),
    "not utf-8": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "an unknown key": lambda path: replace(path, path.read_text() + f'token = "{secret("token")}"\n'),
    "a token for a digest": lambda path: replace(
        path, path.read_text() + f'[[token]]\nname="x"\nrole="ui"\nsha256="{secret("token")}"\n'
    ),
    "a name twice": lambda path: replace(path, path.read_text() * 2),
}


async def test_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PI)
    async with discreet(QUICK | {"auth": tokens.auth}) as where:
        with await entered(where, tokens.of(OP)) as op, await entered(where, tokens.of(PI)) as pi:
            for spoil in BAD_FILES.values():
                tokens.put(OP)
                spoil(tokens.path)
                line = await reload(where, "server.reload_failed")
                assert str(tokens.path) in line["reason"] and "\n" not in line["reason"]
                await (await entered(where, tokens.of(OP))).leave()
                await at_once(op.alive(), pi.alive())
            assert not where.events("server.reloaded")
            tokens.drop(PI)
            assert (await reload(where))["revoked"] == 1
            await farewell(pi)
            await op.leave()


async def test_wrong_keys_change_nothing(tmp_path: Path) -> None:
    keys = KeySet(tmp_path / "keys.json", "ed")
    async with discreet(QUICK | {"auth": keys.auth}) as where:
        with await entered(where, signed(PI)) as peer:
            for content in ("", "{}", "[]", '{"keys": []}', '{"keys": [1]}', "{" * 100_000):
                replace(keys.path, content)
                line = await reload(where, "server.reload_failed")
                assert str(keys.path) in line["reason"] and len(line["reason"]) < 500
                await peer.alive()
                await (await entered(where, signed(OP))).leave()
            await peer.leave()


# How many

Come = tuple[str, Holder | None]
"""The address that somebody comes from, and who he is; None: the credential is still owed."""
LIMITS: Final = {
    "max_connections": 6,
    "reserved_for_admin": 0,
    "max_connections_per_address": 4,
    "max_connections_per_principal": 3,
    "max_unauthenticated": 3,
    "max_unauthenticated_per_address": 2,
}
A, B, C = "2001:db8:0:a::1", "192.0.2.2", "192.0.2.3"
A_TOO: Final = "2001:db8:0:a:ffff::2"
"""Another address of the same /64."""


class Full(NamedTuple):
    """Who is in, who is refused then, how and under which key; and somebody who is not, where there is one."""

    filling: Sequence[Come]
    refusal: Come
    status: int
    key: str
    other: Come | None = None


FULL: Final = {
    "in all": Full([(A, OP)] * 2 + [(B, PI)] * 3 + [(C, PAGE)], (C, PAGE), 503, "max_connections"),
    "in all, one who owes": Full([(A, OP)] * 3 + [(B, PI)] * 3, (C, None), 503, "max_connections"),
    "per address": Full([(A, OP)] * 2 + [(A, PI), (A, None)], (A, PAGE), 429, "max_connections_per_address", (B, PAGE)),
    "per /64": Full([(A, OP), (A_TOO, PI)] * 2, (A_TOO, PAGE), 429, "max_connections_per_address", (B, PAGE)),
    "per principal": Full([(A, OP), (B, OP), (C, OP)], (C, OP), 429, "max_connections_per_principal", (C, PI)),
    "who owe": Full([(A, None), (B, None), (C, None)], (C, None), 503, "max_unauthenticated", (C, PAGE)),
    "who owe, per address": Full([(A, None)] * 2, (A_TOO, None), 429, "max_unauthenticated_per_address", (B, None)),
}


class House:
    """A gateway with few places, and a proxy of its own through which people come from anywhere."""

    def __init__(self, where: GatewayProcess, tokens: TokensFile) -> None:
        self.where = where
        self.tokens = tokens
        self._conns: dict[str, str] = {}
        self.newest = ""
        """The connId of who has entered last."""

    def headers(self, come: Come) -> dict[str, str]:
        """What a proxy sends for somebody."""
        address, holder = come
        return {"X-Forwarded-For": address} | (bearer(self.tokens.of(holder)) if holder else {})

    async def enter(self, come: Come) -> RawPeer:
        """Let somebody in."""
        peer = await RawPeer.open(self.where, headers=self.headers(come))
        self.newest = self._conns[peer.local] = (await peer.welcome())["connId"]
        return peer

    async def leave(self, *peers: RawPeer) -> None:
        """Let these leave, and return when the gateway has seen the last of them."""
        await at_once(*(peer.leave() for peer in peers))
        for peer in peers:
            conn = self._conns.pop(peer.local)
            await self.where.wait_event("connection.closed", connId=conn, cause="client_close")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    tokens = TokensFile(tmp_path_factory.mktemp("house") / "tokens.toml", OP, PI, PAGE)
    server = {"trusted_proxies": ["127.0.0.0/8"], "handshake_timeout": 20.0} | QUICK["server"]
    async with discreet({"server": server, "limits": LIMITS, "auth": tokens.auth}) as where:
        yield House(where, tokens)


@pytest.mark.parametrize("full", FULL.values(), ids=FULL)
async def test_who_is_one_too_many_is_told_and_later_gets_in(house: House, full: Full) -> None:
    before = await scrape(house.where)
    peers = [await house.enter(come) for come in full.filling]
    for _ in range(2):  # a refusal takes no place
        answer, headers = await refused(house.where, house.headers(full.refusal))
        assert (answer, headers["retry-after"]) == (full.status, "5")
    await house.where.wait_event(
        "handshake.rejected",
        status=full.status,
        stage="request",
        where=lambda line: line["reason"].endswith(f"limits.{full.key}") and full.refusal[0] in line["remote"],
    )
    assert (await gains(house.where, before))['gateway_handshake_failures_total{stage="request"}'] == 2
    if full.other is not None:
        await house.leave(await house.enter(full.other))
    await house.leave(peers.pop())
    peers.append(await house.enter(full.refusal))
    await house.leave(*peers)
    # Every count is back, or there would be no room for as many again.
    await house.leave(*[await house.enter(come) for come in full.filling])


async def test_who_brings_a_credential_makes_room_for_another_who_owes(house: House) -> None:
    first, second = [await house.enter((A, None)) for _ in range(2)]
    assert (await refused(house.where, house.headers((A, None))))[0] == 429
    assert_is((await authenticate(first, house.tokens.of(OP)))["result"], OP)
    third = await house.enter((A, None))
    assert (await refused(house.where, house.headers((A, None))))[0] == 429
    assert (await authenticate(second, secret("token")))["error"]["code"] == -32001
    await farewell(second)
    await house.where.wait_event("connection.closed", cause="unauthenticated", code=4500)
    await house.leave(first, third)


async def test_of_one_principal_too_many_by_message_end_with_4003(house: House) -> None:
    peers = [await house.enter((address, PI)) for address in (A, B, C)]
    peer = await house.enter((A, None))
    conn = house.newest
    error = (await authenticate(peer, house.tokens.of(PI)))["error"]
    assert (error["code"], error["data"]["code"], error["data"]["retryAfterMs"]) == (-32009, "overloaded", 1000)
    await farewell(peer)
    assert peer.close_code == 4003
    line = await house.where.wait_event("handshake.rejected", connId=conn)
    assert (line["stage"], line["code"], line["cause"]) == ("authenticate", 4003, "flood")
    await house.where.wait_event("connection.closed", connId=conn, cause="flood", code=4003)
    # To refresh is not to come once more.
    assert_is((await authenticate(peers[0], house.tokens.of(PI)))["result"], PI)
    await house.leave(*peers)


# Places for admins

CROWD: Final = {"max_connections": 4, "reserved_for_admin": 1}


async def test_one_principal_cannot_keep_the_operator_out(tmp_path: Path) -> None:
    """All places but those that are reserved are its own; the operator comes with the request, or by message."""
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PI, PAGE)
    async with discreet(QUICK | {"limits": CROWD, "auth": tokens.auth}) as where, AsyncExitStack() as stack:
        for _ in range(2):
            stack.enter_context(await entered(where, tokens.of(PI)))
        last = stack.enter_context(await RawPeer.open(where, headers=bearer(tokens.of(PI))))
        conn = (await last.welcome())["connId"]
        for holder in (PI, PAGE):
            status, headers = await refused(where, bearer(tokens.of(holder)))
            assert (status, headers["retry-after"]) == (503, "5")
        line = await where.wait_event("handshake.rejected", status=503)
        assert line["reason"].endswith("limits.reserved_for_admin")
        for late in (False, True):
            op = await entered(where, None if late else tokens.of(OP))
            if late:
                assert_is((await authenticate(op, tokens.of(OP)))["result"], OP)
            assert (await refused(where, bearer(tokens.of(OP))))[0] == 503, "it is full now"
            if late:
                await request(op, "connection.close", connId=conn)
                assert (await op.recv_json())["result"] == {"closed": True}
                await farewell(last)
            await op.leave()
            await ended(where, op, "client_close", 1000)
        await (await entered(where, tokens.of(PAGE))).leave()


async def test_who_owes_a_credential_takes_no_place_and_gets_none_that_is_reserved(tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PI, PAGE)
    async with discreet(QUICK | {"limits": CROWD, "auth": tokens.auth}) as where, AsyncExitStack() as stack:
        owing = [stack.enter_context(await entered(where)) for _ in range(6)]
        crowd = [stack.enter_context(await entered(where, tokens.of(PI))) for _ in range(3)]
        error = (await authenticate(owing[0], tokens.of(PAGE)))["error"]
        assert (error["code"], error["data"]["retryAfterMs"]) == (-32009, 1000)
        await farewell(owing[0])
        assert owing[0].close_code == 4003
        assert_is((await authenticate(owing[1], tokens.of(OP)))["result"], OP)
        error = (await authenticate(owing[2], tokens.of(OP)))["error"]
        assert error["code"] == -32009, "the last place is taken"
        await farewell(owing[2])
        assert (await refused(where, {}))[0] == 503, "there is no place for anybody"
        await crowd[0].leave()
        await ended(where, crowd[0], "client_close", 1000)
        assert_is((await authenticate(owing[3], tokens.of(PAGE)))["result"], PAGE)


async def test_a_connection_that_loses_or_gets_the_scope_counts_as_what_it_is_now(tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PI, PAGE)
    async with discreet(QUICK | {"limits": CROWD, "auth": tokens.auth}) as where, AsyncExitStack() as stack:
        for _ in range(3):
            stack.enter_context(await entered(where, tokens.of(PI)))
        assert (await refused(where, bearer(tokens.of(PAGE))))[0] == 503
        tokens.put(PI._replace(scopes=("admin",)))
        await reload(where)
        stack.enter_context(await entered(where, tokens.of(PAGE)))
        tokens.put(PI)
        await reload(where)
        assert (await refused(where, bearer(tokens.of(OP))))[0] == 503, "all four are taken"


async def test_limits_hold_in_mode_none_too() -> None:
    """But nothing is reserved, and all are one principal."""
    limits = {"max_connections": 2, "max_connections_per_address": 1, "max_connections_per_principal": 1}
    async with discreet({"limits": limits | {"reserved_for_admin": 2}}) as where:
        with await entered(where, source="127.0.0.2") as first:
            assert (await refused(where, {}, "127.0.0.2"))[0] == 429
            with await entered(where, source="127.0.0.3") as second:
                assert (await refused(where, {}, "127.0.0.4"))[0] == 503
                await second.leave()
            await first.leave()
            await ended(where, first, "client_close", 1000)
        await (await entered(where, source="127.0.0.2")).leave()


# Wrong credentials


async def test_who_guesses_has_to_wait_longer_and_longer(tmp_path: Path) -> None:
    await at_once(guessing("127.0.0.1", tmp_path), guessing("::1", tmp_path))


async def guessing(address: str, tmp_path: Path) -> None:
    """Ten wrong ones are free; after that each makes the next wait longer, from this address."""
    tokens = TokensFile(tmp_path / f"{address}.toml", PI)
    async with AsyncExitStack() as stack:
        where = await stack.enter_async_context(
            discreet({"auth": tokens.auth, "server": {"host": address, "close_timeout": 0.5}})
        )
        inside = stack.enter_context(await entered(where, tokens.of(PI)))
        owing = stack.enter_context(await entered(where))
        for number in range(10):
            assert (await guess(where, by_message=number % 2 == 0))[0] == 401
        # No other one is looked at in the second that follows.
        by_header, by_message, *replies = await asyncio.gather(
            guess(where),
            guess(where, by_message=True),
            authenticate(inside, secret("guess")),
            authenticate(owing, secret("guess")),
        )
        assert by_header == (429, 1.0)
        assert (by_message[0], 0.0 < by_message[1] <= 1.0) == (429, True)
        for reply in replies:
            error = reply["error"]
            assert (error["code"], 0 < error["data"]["retryAfterMs"] <= 1000) == (-32002, True)
        await farewell(owing)
        assert owing.close_code == 4003
        await ended(where, owing, "flood", 4003)
        if ":" not in address:
            await (await entered(where, tokens.of(PI), own_address())).leave()
        begin = time.monotonic()
        while (await guess(where))[0] == 429:
            assert time.monotonic() - begin < WAIT
            await asyncio.sleep(0.1)
        assert await guess(where) == (429, 2.0), "the next wait is no longer"
        await inside.alive()
        await inside.leave()


async def guess(where: GatewayProcess, token: str | None = None, *, by_message: bool = False) -> tuple[int, float]:
    """Bring a credential, a wrong one unless it is given; returns 401 or 429, and the seconds to wait."""
    token = token or secret("guess")
    if not by_message:
        status, headers = await refused(where, bearer(token))
        return status, float(headers.get("retry-after", 0))
    with await entered(where) as peer:
        error = (await authenticate(peer, token))["error"]
        await farewell(peer)
    assert (error["code"], peer.close_code) in [(-32001, 4500), (-32002, 4003)]
    return (401 if error["code"] == -32001 else 429), error["data"].get("retryAfterMs", 0) / 1000


async def test_a_right_token_is_in_at_once_however_many_guess_from_its_address(tmp_path: Path) -> None:
    """A digest tells that it is right, so guesses of a neighbour keep nobody out; an expired one waits like a guess."""
    tokens = TokensFile(tmp_path / "tokens.toml", PI, OLD)
    async with discreet(QUICK | {"auth": tokens.auth}) as where:
        with await entered(where, tokens.of(PI)) as inside:
            await lock_out(where, secret)
            with await entered(where) as owing, await entered(where, tokens.of(PI)) as newcomer:
                for peer in (inside, owing, newcomer):
                    assert_is((await authenticate(peer, tokens.of(PI)))["result"], PI)
                assert (await guess(where, tokens.of(OLD)))[0] == 429, "the wait is over, so this has shown nothing"
                await at_once(*(peer.leave() for peer in (inside, owing, newcomer)))


async def test_a_jwt_that_was_verified_before_is_in_at_once_and_any_other_waits(tmp_path: Path) -> None:
    keys = KeySet(tmp_path / "keys.json", "ed")
    async with discreet(QUICK | {"auth": keys.auth}) as where:
        seen = signed(PI)
        await (await entered(where, seen)).leave()
        await lock_out(where, lambda _: signed(PI, "ed-stranger"))
        with await entered(where, seen) as peer:
            assert_is((await authenticate(peer, seen))["result"], PI)
            assert (await authenticate(peer, signed(PI)))["error"]["code"] == -32002
            assert (await guess(where, signed(PI)))[0] == 429, "the wait is over, so this has shown nothing"
            await (await entered(where, signed(PI), own_address())).leave()
            await peer.leave()


async def lock_out(where: GatewayProcess, wrong: Callable[[str], str]) -> None:
    """Guess until the address has to wait for some eight seconds."""
    failed = 0
    async with asyncio.timeout(4 * WAIT):
        while failed < 13:
            status, wait = await guess(where, wrong("guess"))
            failed += status == 401
            await asyncio.sleep(wait / 4 if status == 429 else 0)


async def test_one_message_has_no_more_than_two_credentials_verified(tmp_path: Path) -> None:
    """A batch is one message, and each JWT that was not seen before costs a signature; one that was costs none."""
    keys = KeySet(tmp_path / "keys.json", "ed")
    async with discreet(QUICK | {"auth": keys.auth}) as where:
        seen = signed(PI)
        with await entered(where, seen) as peer:
            await peer.send_json([ask(signed(PI), id=number) for number in range(40)])
            replies = await peer.recv_json()
            refused_ = [reply["error"] for reply in replies if "error" in reply]
            assert len(replies) - len(refused_) == 2
            assert {(error["code"], error["data"]["retryAfterMs"]) for error in refused_} == {(-32002, 100)}
            await peer.send_json([ask(seen, id=number) for number in range(40)])
            assert all("result" in reply for reply in await peer.recv_json())
            assert_is((await authenticate(peer, signed(PI)))["result"], PI)
            await peer.leave()


async def test_a_bearer_of_more_than_16_kib_is_refused_before_it_is_looked_at() -> None:
    """Where a server lets so long a header through; the gateway's own answers 400 from 8,190 bytes on."""
    looked: list[str] = []

    class Watching(AllowAny):
        asks = True

        def verify(self, token: str, now: float) -> Credential:
            looked.append(token)
            return super().verify(token, now)

        known = verify

    def nothing(connection: Connection) -> Work[None]:
        yield

    status = Status("instance", time.monotonic)
    status.ready()
    admission = Admission(
        parse({}),
        status,
        Watching(),
        nothing,
        Lines(),
        at_once=lambda connection: True,
        steps=Steps(),
    )
    with pytest.raises(RefusedError) as refusal:
        admission.at_upgrade([f"Bearer {'x' * 16_385}"], "192.0.2.1:5")
    assert (refusal.value.status, str(refusal.value), looked) == (401, "a credential has at most 16384 bytes", [])
    admission.at_upgrade([f"Bearer {'x' * 16_384}"], "192.0.2.1:5")
    assert len(looked) == 1


async def test_wrong_credentials_of_one_network_are_counted_together(house: House) -> None:
    wrong = {"X-Forwarded-For": "2001:db8:0:b::1"} | bearer(secret("guess"))
    for number in range(10):
        assert (await refused(house.where, wrong | {"X-Forwarded-For": f"2001:db8:0:b::{number}"}))[0] == 401
    assert (await refused(house.where, wrong | {"X-Forwarded-For": "2001:db8:0:b:9::9"}))[0] == 429
    assert (await refused(house.where, wrong | {"X-Forwarded-For": "2001:db8:0:c::1"}))[0] == 401
    await house.leave(await house.enter((B, PI)))
