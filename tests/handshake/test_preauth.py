"""A credential at the door: each mode, each way to bring it, right and wrong: the wire, the log and the metrics.

What becomes of a connection that is in is in test_admission.py.
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import pytest
import pytest_asyncio
from aiohttp import web

from gateway.app import create_app
from gateway.config import parse
from tests.support.credentials import (
    DESKS,
    FAILURE,
    OP,
    OPENED,
    PAGE,
    PI,
    SERVER,
    Desk,
    Holder,
    TokensFile,
    ask,
    assert_is,
    assert_untold,
    at_once,
    authenticate,
    bearer,
    connections,
    deflated,
    disconnects,
    discreet,
    entered,
    farewell,
    fragments,
    gains,
    leave,
    own_address,
    padded,
    refused,
    scrape,
    secret,
    text,
    texts,
)
from tests.support.fleet import ended, request, until
from tests.support.patience import TICK, WAIT
from tests.support.peers import Frame, Opcode, RawPeer, Target, frame
from tests.support.process import GatewayProcess, Line

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIRST: Final = 64 * 1024
LIMIT: Final = 3.0
"""Seconds that a handshake may take where that is little."""
"""Bytes that the first message may have."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=DESKS)
async def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        yield await DESKS[request.param](stack, tmp_path_factory.mktemp(request.param))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_house() -> AsyncIterator[GatewayProcess]:
    """Mode none, where a handshake has little time."""
    async with discreet({"server": SERVER | {"handshake_timeout": LIMIT}}) as where:
        yield where


# On the upgrade


@pytest.mark.parametrize("holder", [OP, PI, PAGE], ids=lambda holder: cast(Holder, holder).name)
async def test_a_right_bearer_is_in_with_its_welcome(desk: Desk, holder: Holder) -> None:
    before = await scrape(desk.where)
    scheme = "bEARER " if holder is PI else "Bearer"  # RFC 9110 section 11.1
    with await RawPeer.open(desk.where, headers={"Authorization": f"{scheme} {desk.right[holder.name]}"}) as peer:
        welcome = await peer.welcome()
        assert_is(welcome["principal"], holder)
        await assert_in(desk, peer, holder, welcome["connId"], before, told=["connection.opened"])


@pytest.mark.parametrize("bad", ["wrong", "expired", "revoked"])
async def test_a_bearer_that_is_not_right_gets_401(desk: Desk, bad: str) -> None:
    await assert_401(desk, bearer(desk.bad[bad])["Authorization"])


MALFORMED_HEADERS: Final = {
    "basic": "Basic {right}",
    "no scheme": "{right}",
    "empty": "",
    "no token": "Bearer",
    "blank token": "Bearer   ",
    "twice": "Bearer {right}\r\nAuthorization: Bearer {right}",
    "a word more": "Bearer {right} {right}",
    "not ascii": "Bearer \xff\xfe{right}",
}


@pytest.mark.parametrize("value", MALFORMED_HEADERS.values(), ids=MALFORMED_HEADERS)
async def test_a_malformed_authorization_gets_401(desk: Desk, value: str) -> None:
    await assert_401(desk, value.format(right=desk.right["pi"]))


async def assert_401(desk: Desk, authorization: str) -> None:
    """Fail unless this header is answered, logged and counted as no credential, and opens nothing."""
    where, before = desk.where, await scrape(desk.where)
    with await RawPeer.connect(where, source=own_address()) as peer:
        # What comes by message does not mend it.
        await peer.send_raw(peer.upgrade_head(headers={"Authorization": authorization}) + text(ask(desk.right["pi"])))
        answer = await peer.read_response()
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer ")
        await peer.wait_closed()
        line = await where.wait_event("handshake.rejected", remote=peer.local)
    assert (line["stage"], line["status"]) == ("authenticate", 401)
    assert line["reason"] in answer.body.decode()
    assert await gains(where, before) == {FAILURE: 1}
    assert not where.events("connection.opened", remote=peer.local)
    assert_untold(where)


# By the first message


class First(NamedTuple):
    """First messages that are refused. `id` is that of the error reply, "silent" where there is none."""

    frames: Callable[[Desk], list[bytes]]
    id: Any = "silent"
    end: tuple[int, str] = (4500, "unauthenticated")


PAYLOAD: Final = secret("payload")
DEFLATE: Final = {"Sec-WebSocket-Extensions": "permessage-deflate"}
MORE: Final = frame(Opcode.CONTINUATION, b" " * 1000, fin=False)
TOO_BIG: Final = (1009, "message_too_big")
REFUSED: Final[dict[str, First]] = {
    "wrong": First(lambda desk: [text(ask(desk.bad["wrong"]))], 1),
    "expired": First(lambda desk: [text(ask(desk.bad["expired"]))], 1),
    "revoked": First(lambda desk: [text(ask(desk.bad["revoked"]))], 1),
    "with the word bearer": First(lambda desk: [text(ask(f"Bearer {desk.right['pi']}"))], 1),
    "not json": First(lambda desk: [text(PAYLOAD.encode())], None),
    "nothing": First(lambda desk: [text(b"")], None),
    "nested deeply": First(lambda desk: [text(b"[" * 60_000)], None),
    "a batch": First(lambda desk: [text([ask(desk.right["pi"])])], None),
    "another method": First(lambda desk: [text(ask(None, id="x", method="echo", params=[PAYLOAD]))], "x"),
    "no such method": First(lambda desk: [text(ask(None, method=PAYLOAD))], 1),
    "a notification": First(lambda desk: [text(ask(None, id=None, method="update", params=[PAYLOAD]))]),
    "wrong with null for an id": First(lambda desk: [text(ask(desk.bad["wrong"]) | {"id": None})], None),
    "wrong by notification": First(lambda desk: [text(ask(desk.bad["wrong"], id=None))]),
    "a reply": First(lambda desk: [text({"jsonrpc": "2.0", "id": 1, "result": PAYLOAD})], 1),
    "no params": First(lambda desk: [text(ask(None, params=None))], 1),
    "no token": First(lambda desk: [text(ask(None, params={}))], 1),
    "a token and more": First(lambda desk: [text(ask(None, params={"token": desk.right["pi"], PAYLOAD: 1}))], 1),
    "params a string": First(lambda desk: [text(ask(None, params=desk.right["pi"]))], 1),
    "a number for a token": First(lambda desk: [text(ask(42))], 1),
    "an object for an id": First(lambda desk: [text(ask(desk.right["pi"], id={}))], None),
    "a fraction for an id": First(lambda desk: [text(ask(desk.right["pi"], id=1.5))], None),
    "jsonrpc 1.0": First(lambda desk: [text(ask(desk.right["pi"], jsonrpc="1.0"))], None),
    "binary": First(
        lambda desk: [frame(Opcode.BINARY, json.dumps(ask(desk.right["pi"])).encode())], end=(1003, "unsupported_data")
    ),
    "a byte too many": First(lambda desk: [text(padded(desk, FIRST + 1))], end=TOO_BIG),
    "a megabyte": First(lambda desk: [text(padded(desk, 1_000_000))], end=TOO_BIG),
    "too big in fragments": First(lambda desk: fragments(padded(desk, FIRST + 1), 8192), end=TOO_BIG),
    "fragments without an end": First(lambda desk: [frame(1, b"", fin=False), *[MORE] * 80], end=TOO_BIG),
    "too big when inflated": First(lambda desk: [deflated(padded(desk, FIRST + 1))], end=TOO_BIG),
    "a deflate bomb": First(lambda desk: [deflated(b" " * 5_000_000)], end=TOO_BIG),
    "bad utf-8": First(lambda desk: [text(b'{"\xff":1}')], end=(1007, "invalid_utf8")),
    "reserved bits": First(lambda desk: [frame(Opcode.TEXT, b"{}", rsv=2)], end=(1002, "protocol_error")),
    "unmasked": First(lambda desk: [frame(Opcode.TEXT, b"{}", mask=False)], end=(1002, "protocol_error")),
}


@pytest.mark.parametrize("first", REFUSED.values(), ids=REFUSED)
async def test_any_other_first_message_ends_it(desk: Desk, first: First) -> None:
    where, before = desk.where, await scrape(desk.where)
    with await RawPeer.open(where, headers=DEFLATE, source=own_address()) as peer:
        conn = (await peer.welcome())["connId"]
        await peer.send_raw(b"".join([*first.frames(desk), text(ask(desk.right["pi"], id=2))]))
        replies = await farewell(peer)
    code, cause = first.end
    told = [(reply["id"], reply["error"]["code"], reply["error"]["data"]) for reply in replies]
    data = {"code": "unauthenticated", "temporary": False}
    assert told == ([] if first.id == "silent" else [(first.id, -32001, data)])
    assert peer.close_code == code
    rejected = await where.wait_event("handshake.rejected", connId=conn)
    fields = ("remote", "stage", "code", "cause")
    assert [rejected[name] for name in fields] == [peer.local, "authenticate", code, cause]
    line = await ended(where, peer, cause, code)
    assert (line["connId"], line["principal"]) == (conn, "")
    assert await gains(where, before) == {FAILURE: 1, disconnects(cause): 1}
    assert not where.events("connection.opened", connId=conn)
    assert not where.events("connection.authenticated", connId=conn)
    assert_untold(where)


ACCEPTED: Final[dict[str, tuple[Callable[[Desk], list[bytes]], Any]]] = {
    "plain": (lambda desk: [text(ask(desk.right["pi"]))], 1),
    "a string for an id": (lambda desk: [text(ask(desk.right["pi"], id="x"))], "x"),
    "null for an id": (lambda desk: [text(ask(desk.right["pi"]) | {"id": None})], None),
    "by notification": (lambda desk: [text(ask(desk.right["pi"], id=None))], "silent"),
    "by position": (lambda desk: [text(ask(None, params=[desk.right["pi"]]))], 1),
    "as big as can be": (lambda desk: [text(padded(desk, FIRST))], 1),
    "fragmented": (lambda desk: fragments(padded(desk, FIRST), 8192), 1),
    "compressed": (lambda desk: [deflated(padded(desk, FIRST))], 1),
}


@pytest.mark.parametrize(("frames", "identity"), ACCEPTED.values(), ids=ACCEPTED)
async def test_a_right_first_message_is_in(desk: Desk, frames: Callable[[Desk], list[bytes]], identity: object) -> None:
    before = await scrape(desk.where)
    with await RawPeer.open(desk.where, headers=DEFLATE) as peer:
        conn = (await peer.welcome())["connId"]
        await peer.send_raw(b"".join(frames(desk)))
        if identity != "silent":
            reply = await texts(peer, 1)
            assert reply[0]["id"] == identity
            assert_is(reply[0]["result"], PI)
        await assert_in(desk, peer, PI, conn, before, told=["connection.opened", "connection.authenticated"])


async def assert_in(desk: Desk, peer: RawPeer, holder: Holder, conn: str, before: Any, *, told: list[str]) -> None:
    """Fail unless this connection is open as this holder's, on the wire, in the log (`told`) and in the metrics."""
    where = desk.where
    await request(peer, "gateway.ping", here=1)
    assert (await texts(peer, 1))[0]["result"] == {"here": 1}
    assert await gains(where, before) == {OPENED: 1, connections(holder.role): 1}
    for event in told:
        line = await where.wait_event(event, connId=conn)
        assert [line[name] for name in ("remote", "principal", "role")] == [peer.local, holder.name, holder.role]
    order = [line["event"] for line in where.lines if line.get("connId") == conn]
    assert order == told
    await peer.leave()
    assert (await ended(where, peer, "client_close", 1000))["principal"] == holder.name
    assert await gains(where, before) == {OPENED: 1, disconnects("client_close"): 1}
    assert_untold(where)


# Both ways


async def test_a_credential_of_more_than_16_kib_is_not_looked_at(desk: Desk, open_house: GatewayProcess) -> None:
    """It is refused in every mode before anything else; one of exactly 16 KiB is only wrong."""
    too_long, longest = "x" * 16_385, "x" * 16_384
    source = own_address()
    for _ in range(12):  # they are no guesses, so the address need not wait
        with await entered(desk.where, source=source) as peer:
            assert_too_long(await authenticate(peer, too_long))
            await farewell(peer)
            assert peer.close_code == 4500
            await desk.where.wait_event("connection.closed", remote=peer.local, code=4500, cause="unauthenticated")
    with await entered(desk.where, desk.right["pi"], source) as peer:
        assert_too_long(await authenticate(peer, "ü" * 8_193))
        assert (await authenticate(peer, longest))["error"]["code"] == -32001
        assert_is((await authenticate(peer, desk.right["pi"]))["result"], PI)
        await leave(desk.where, peer)
    with await entered(open_house) as peer:
        assert_too_long(await authenticate(peer, too_long))
        assert (await authenticate(peer, longest))["result"]["name"] == "anonymous"
        await leave(open_house, peer)


def assert_too_long(reply: Any) -> None:
    """Fail unless the reply names the parameter and the bound."""
    assert reply["error"]["code"] == -32602
    assert reply["error"]["message"] == "Invalid parameters: token: a credential has at most 16384 bytes"


async def test_after_a_right_bearer_a_wrong_message_ends_nothing(desk: Desk) -> None:
    source, before = own_address(), await scrape(desk.where)
    with await RawPeer.open(desk.where, headers=bearer(desk.right["pi"]), source=source) as peer:
        await peer.welcome()
        for bad in desk.bad.values():
            assert (await authenticate(peer, bad))["error"]["code"] == -32001
        assert (await authenticate(peer, desk.right["op"]))["error"]["code"] == -32007
        assert_is((await authenticate(peer, desk.right["pi"]))["result"], PI)
        assert await gains(desk.where, before) == {OPENED: 1, connections("node"): 1}
        await leave(desk.where, peer)


# Before and behind the first message


async def test_requests_in_the_same_segment_are_answered_after_it(desk: Desk) -> None:
    with await entered(desk.where) as peer:
        sizes = (10, 20, 30, 900_000)  # a message behind the first may be as big as ever
        requests = [text(ask(None, id=size, method="gateway.ping", params=["x" * size])) for size in sizes]
        await peer.send_raw(text(ask(desk.right["pi"])) + b"".join(requests) + text(ask(None, id=9, method="none")))
        replies = await texts(peer, 6)
        assert_is(replies[0]["result"], PI)
        assert [len(reply["result"][0]) for reply in replies[1:5]] == list(sizes)
        assert (replies[5]["id"], replies[5]["error"]["code"]) == (9, -32601)
        await leave(desk.where, peer)


async def test_pings_are_answered_meanwhile(desk: Desk) -> None:
    with await entered(desk.where) as peer:
        await peer.send_frame(Opcode.PING, b"payload")
        assert await peer.recv_frame() == Frame(True, Opcode.PONG, b"payload")
        assert_is((await authenticate(peer, desk.right["pi"]))["result"], PI)
        await leave(desk.where, peer)


async def test_who_owes_a_credential_is_on_no_list(desk: Desk) -> None:
    with await entered(desk.where, desk.right["op"]) as admin, await RawPeer.open(desk.where) as peer:
        welcome = await peer.welcome()
        conn = welcome["connId"]
        assert welcome["principal"] is None

        async def listed() -> list[str]:
            await request(admin, "connection.list")
            return [each["connId"] for each in (await admin.recv_json())["result"]["connections"]]

        assert conn not in await listed()
        assert (await scrape(desk.where))[connections("operator")] == 1
        assert not desk.where.events("connection.opened", connId=conn)
        await request(admin, "connection.get", connId=conn)
        assert (await admin.recv_json())["error"]["code"] == -32004
        await request(admin, "gateway.info")
        assert (await admin.recv_json())["result"]["counts"]["connections"] == 1
        await authenticate(peer, desk.right["pi"])
        assert conn in await listed()
        await leave(desk.where, peer, admin)


# Late


async def test_who_is_late_gets_4001_when_the_rest_of_its_time_is_over(tmp_path: Path) -> None:
    await at_once(*(be_late(mode, tmp_path) for mode in DESKS))


async def be_late(mode: str, tmp_path: Path) -> None:
    """All at the same gateway, where each has the same time."""
    async with AsyncExitStack() as stack:
        desk = await DESKS[mode](stack, tmp_path, handshake_timeout=LIMIT, close_timeout=0.3)
        before = await scrape(desk.where)
        await at_once(silent(desk), slow_upgrade(desk), dribbling(desk), pinging(desk), in_time(desk))
        causes = {disconnects("handshake_timeout"): 4, disconnects("client_close"): 1, OPENED: 1, FAILURE: 4}
        assert await gains(desk.where, before) == causes


async def silent(desk: Desk) -> None:
    """Says nothing; and a credential behind the close frame is not acted upon."""
    begin = time.monotonic()
    with await entered(desk.where) as peer:
        while peer.close_code is None:
            await peer.recv_frame()
        took = time.monotonic() - begin
        await peer.send_json(ask(desk.right["pi"]))
        assert (await peer.recv_until_closed()).frames == []
        await assert_late(desk, peer)
        assert took > LIMIT - TICK


async def slow_upgrade(desk: Desk) -> None:
    """Has little left when it is welcome."""
    begin = time.monotonic()
    with await RawPeer.connect(desk.where) as peer:
        head = peer.upgrade_head()
        await peer.send_raw(head[:-2])
        await asyncio.sleep(0.5 * LIMIT)  # the handshake's time is what is measured
        await peer.send_raw(head[-2:])
        await peer.read_response()
        await peer.welcome()
        await farewell(peer)
        line = await assert_late(desk, peer)
        assert time.monotonic() - begin > LIMIT - TICK
        assert line["duration"] < LIMIT, "it was given the whole time again"


async def dribbling(desk: Desk) -> None:
    """Sends its first message so slowly that it is not complete in time."""
    with await entered(desk.where) as peer:
        reading = asyncio.create_task(farewell(peer))
        with suppress(OSError):
            for byte in text(ask(desk.right["pi"])):
                await peer.send_raw(bytes([byte]))
                await asyncio.sleep(0.1)
        assert await reading == []
        await assert_late(desk, peer)


async def pinging(desk: Desk) -> None:
    """Is alive, which does not help."""
    with await entered(desk.where) as peer:
        while peer.close_code is None:
            await peer.send_frame(Opcode.PING)
            await peer.recv_frame()
            await asyncio.sleep(0.1)
        await farewell(peer)
        await assert_late(desk, peer)


async def in_time(desk: Desk) -> None:
    """Has authenticated in time: the deadline is over."""
    with await entered(desk.where) as peer:
        await authenticate(peer, desk.right["pi"])
        await asyncio.sleep(LIMIT + 0.2)  # longer than a handshake may take
        await peer.alive()
        await leave(desk.where, peer)


async def assert_late(desk: Desk, peer: RawPeer) -> Line:
    """Fail unless it was told and logged; returns the line of its end."""
    assert peer.close_code == 4001
    line = await ended(desk.where, peer, "handshake_timeout", 4001)
    late = await desk.where.wait_event("handshake.timeout", remote=peer.local)
    assert [late[name] for name in ("stage", "timeout", "connId")] == ["authenticate", LIMIT, line["connId"]]
    assert not desk.where.events("handshake.rejected", remote=peer.local)
    assert not desk.where.events("connection.opened", remote=peer.local)
    return line


async def test_e8_a_gateway_that_was_stopped_goes_on_with_its_handshakes(tmp_path: Path) -> None:
    """It is stopped for longer than a handshake may take, with one in each stage. Its grace is ten seconds."""
    async with AsyncExitStack() as stack:
        desk = await DESKS["token"](stack, tmp_path, handshake_timeout=LIMIT)
        owing = stack.enter_context(await entered(desk.where))
        asking = stack.enter_context(await RawPeer.connect(desk.where))
        head = asking.upgrade_head()
        await asking.send_raw(head[:20])
        await asyncio.sleep(0.3)
        desk.where.signal(signal.SIGSTOP)
        await asking.send_raw(head[20:])
        await asyncio.sleep(LIMIT + 0.5)  # longer than a handshake may take
        desk.where.signal(signal.SIGCONT)
        await authenticate(owing, desk.right["pi"])
        await asking.read_response()
        await asking.welcome()
        await authenticate(asking, desk.right["op"])
        await asking.alive()
        assert not desk.where.events("handshake.timeout")


# The end without a verdict


async def test_who_leaves_unheard_is_released(desk: Desk) -> None:
    where, before = desk.where, await scrape(desk.where)
    sockets = where.sockets()
    polite, rude, half = [await entered(desk.where) for _ in range(3)]
    await polite.leave()
    rude.rst()
    await half.send_raw(text(ask(desk.right["pi"]))[:20])
    half.close()
    await ended(where, polite, "client_close", 1000)
    for peer in (rude, half):
        await ended(where, peer, "transport_lost", 1006)
    assert await gains(where, before) == {FAILURE: 3, disconnects("client_close"): 1, disconnects("transport_lost"): 2}
    await until(lambda: where.sockets() <= sockets, "a socket is still open")


async def test_a_drain_ends_those_who_wait_with_1001(tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", PI)
    async with discreet({"auth": tokens.auth, "server": {"close_timeout": 1.0, "drain_timeout": 100.0}}) as where:
        waiting = [await entered(where) for _ in range(3)]
        with await entered(where) as deaf, await entered(where) as sulking:  # neither answers its close frame
            await authenticate(sulking, PAYLOAD)
            begin = time.monotonic()
            where.terminate()
            await at_once(*map(farewell, waiting))
            assert [peer.close_code for peer in waiting] == [1001] * 3
            assert await where.wait() == 0
            assert time.monotonic() - begin < WAIT
            for peer in (*waiting, deaf):
                await ended(where, peer, "shutdown", 1001)
            await ended(where, sulking, "unauthenticated", 4500)


# In another runner


async def test_in_a_bare_runner_the_registry_has_only_those_who_are_in(tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", PI)
    app = create_app(parse({"server": {"handshake_timeout": LIMIT, "close_timeout": 0.3}, "auth": tokens.auth}))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    where = Target(runner.addresses[0][1])
    with await entered(where) as late, await RawPeer.open(where) as peer:
        conn = (await peer.welcome())["connId"]
        assert dict(app["connections"]) == {}
        await authenticate(peer, tokens.of(PI))
        assert list(app["connections"]) == [conn]
        await farewell(late)
        assert late.close_code == 4001
        await peer.alive()
        await peer.leave()
    await runner.cleanup()


# Mode none


@pytest.mark.parametrize("value", ["Bearer {right}", *MALFORMED_HEADERS.values()])
async def test_in_mode_none_everybody_is_in_whatever_the_header(open_house: GatewayProcess, value: str) -> None:
    before = await scrape(open_house)
    headers = {"Authorization": value.format(right=PAYLOAD)}
    with await RawPeer.open(open_house, headers=headers) as peer:
        welcome = await peer.welcome()
        assert welcome["principal"] == {"name": "anonymous", "role": "operator", "scopes": ["*"], "expiresAt": None}
        assert await gains(open_house, before) == {OPENED: 1, connections("operator"): 1}
        await open_house.wait_event("connection.opened", connId=welcome["connId"], principal="anonymous")
        await leave(open_house, peer)
    assert not open_house.events("connection.authenticated")


async def test_in_mode_none_nothing_is_owed(open_house: GatewayProcess) -> None:
    before = await scrape(open_house)
    with await entered(open_house) as peer:
        await request(peer, "gateway.ping", first=1)
        assert (await peer.recv_json())["result"] == {"first": 1}
        assert (await authenticate(peer, PAYLOAD))["result"]["name"] == "anonymous"
        await asyncio.sleep(LIMIT + 0.2)  # longer than a handshake may take
        await peer.alive()
        await leave(open_house, peer)
    assert await gains(open_house, before) == {OPENED: 1, disconnects("client_close"): 1}


# IPv6


async def test_over_ipv6_it_is_the_same(tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", PI)
    async with discreet({"auth": tokens.auth, "server": SERVER | {"host": "::1"}}) as where:
        assert (await refused(where, bearer(PAYLOAD)))[0] == 401
        line = await where.wait_event("handshake.rejected", status=401)
        assert line["remote"].startswith("[::1]:")
        with await entered(where) as peer:
            assert (await authenticate(peer, PAYLOAD))["error"]["code"] == -32001
            await farewell(peer)
            await where.wait_event("handshake.rejected", remote=peer.local, code=4500)
        with await entered(where) as peer:
            assert_is((await authenticate(peer, tokens.of(PI)))["result"], PI)
            await where.wait_event("connection.opened", remote=peer.local, principal="pi")
            await peer.leave()
