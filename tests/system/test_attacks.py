"""What attacks come to: each has the end that the contract says and a bounded cost, and others are answered meanwhile.

How long the others wait is told by `python -m tests.support.attacks`.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from gateway.telemetry import lines
from gateway.telemetry.lines import CLOSED, OFFLINE, ONLINE, REJECTED
from tests.support.attacks import (
    FLAPS,
    FOREIGN_CODES,
    GUESS,
    HOLD,
    KEPT_ALIVE,
    KIB,
    MIB,
    UPGRADES,
    Outcome,
    Siege,
    Storm,
    crowd,
    siege,
)
from tests.support.credentials import FAILURE, OP, OPENED, PI, TokensFile, bearer, disconnects, farewell, scrape
from tests.support.fleet import FLOOD_SERVER, ended, request, until
from tests.support.insiders import hoarder, rogue
from tests.support.patience import WAIT, Sized
from tests.support.peers import Opcode, PeerClosed, RawPeer, frame
from tests.support.process import EventLoopName, GatewayProcess, Line, StartGateway

REFUSED = 'gateway_handshake_failures_total{stage="request"}'
LOGGED = REJECTED.burst
"""Rejections of one address that are logged in ten seconds."""
FULL = {"limits": {"max_connections": 101}}
ROOM = 100
"""Handshakes that may be under way."""


@asynccontextmanager
async def asking(where: GatewayProcess, tokens: TokensFile, **options: Any) -> AsyncIterator[Siege]:
    """A siege of a gateway that asks for credentials; who measures has one."""
    async with siege(where, headers=bearer(tokens.of(OP)), **options) as under:
        yield under


@pytest.fixture
def tokens(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens.toml", OP)


def sampled(lines: list[Line], seconds: float) -> None:
    """Fail unless the lines are few for what happened, in so many seconds, from one address."""
    assert 0 < len(lines) <= LOGGED * (1 + seconds // 10), len(lines)


# Refused before they are WebSockets


class Refused(NamedTuple):
    """A kind of attack and what all of its connections get. `end` "400 reset": what was not read may reset it."""

    kind: str
    end: str
    config: Mapping[str, Any] = MappingProxyType({})
    hold: int = 0


FOREIGN = (Refused("cross-site", "403"), Refused("rebinding", "421"))
MALFORMED = (
    Refused("two-hosts", "400"),
    Refused("body", "400"),
    Refused("chunked", "400"),
    Refused("two-lengths", "400"),
    Refused("http-1.0", "400"),
)
HEADERS = (
    Refused("many-headers", "400"),
    Refused("large-headers", "400 reset"),
    Refused("endless-headers", "400 reset"),
)
TOO_MANY = (Refused("upgrades", "503", FULL, 100), Refused("upgrades", "429", UPGRADES, HOLD))


@pytest.mark.parametrize("refusals", [FOREIGN, MALFORMED, HEADERS], ids=["foreign", "malformed", "headers"])
async def test_upgrades_that_are_refused_cost_others_nothing(
    gateway: StartGateway, refusals: tuple[Refused, ...], sized: Sized
) -> None:
    process = await gateway()
    for source, refused in enumerate(refusals, 2):
        await refuse(process, refused, Storm(refused.kind, source=source, count=sized(200, 2000)))


@pytest.mark.parametrize("refused", TOO_MANY, ids=lambda each: each.end)
async def test_upgrades_for_which_there_is_no_room_cost_others_nothing(gateway: StartGateway, refused: Refused) -> None:
    await refuse(await gateway(refused.config), refused, Storm(refused.kind, hold=refused.hold))


async def test_all_kinds_of_refusals_at_once_on_the_other_loop(gateway: StartGateway, sized: Sized) -> None:
    kinds = {each.kind: each.end for each in (*FOREIGN, *MALFORMED, *HEADERS)}
    storm = Storm(",".join(kinds), count=sized(400, 5000))
    outcome = await refuse(await gateway(loop="asyncio"), Refused(storm.kinds, "403 421 400 reset"), storm)
    for kind, end in kinds.items():
        assert 0 < outcome.ends[kind].total() == sum(outcome.ends[kind][each] for each in end.split()), kind


async def refuse(process: GatewayProcess, refused: Refused, storm: Storm) -> Outcome:
    """All are refused, as they should be, and counted; few are logged, and none is a connection."""
    async with siege(process) as under:
        outcome = await under.attack(storm)
    ends = outcome.all()
    assert ends.keys() <= set(refused.end.split())
    assert ends.total() == storm.count and ends.keys() != {"reset"}
    assert outcome.retry_after == (outcome.count if refused.config else 0)
    assert under.gains[REFUSED] == under.failures() == outcome.count
    assert under.gains.get(OPENED, 0) == storm.hold
    lines = [
        line for line in process.events("handshake.rejected") if line["remote"].startswith(f"127.0.0.{storm.source}:")
    ]
    sampled(lines, outcome.seconds)
    assert {str(line["status"]) for line in lines} <= set(refused.end.split())
    return outcome


async def test_upgrades_without_end_from_one_address(gateway: StartGateway, sized: Sized) -> None:
    """The log tells how many it has left out, with the next that is logged or in a line of its own."""
    process = await gateway(UPGRADES)
    async with siege(process) as under:
        outcome = await under.attack(Storm("upgrades", count=sized(500, 10_000), hold=HOLD))
        await asyncio.sleep(REJECTED.window)
        await under.attack(Storm("upgrades", count=1, hold=HOLD))
    assert outcome.all() == {"429": outcome.count}
    assert outcome.retry_after == outcome.count
    assert under.gains[REFUSED] == outcome.count + 1
    lines = process.events("handshake.rejected")
    sampled(lines, outcome.seconds + REJECTED.window)
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert told(process.lines, "handshake.rejected") == outcome.count + 1


# Who says nothing


@pytest.mark.parametrize("stage", ["request", "tls"])
async def test_the_silent_make_room_for_those_who_speak(gateway: StartGateway, stage: str) -> None:
    """Handshakes under way have a bound: where it is reached, the oldest goes."""
    process = await gateway(
        {"limits": {"max_http_connections": ROOM}, "server": {"handshake_timeout": 100.0}}, tls=stage == "tls"
    )
    async with siege(process):
        with ExitStack() as stack:
            mute = [stack.enter_context(await RawPeer.connect(process, tls=False)) for _ in range(ROOM + 10)]
            for peer in mute[:10]:
                await peer.wait_closed()
            for oldest in mute[10:15]:
                with await RawPeer.open(process) as peer:
                    await peer.welcome()
                    await oldest.wait_closed()
                    await peer.leave()
                # A place is free now; this one takes it.
                stack.enter_context(await RawPeer.connect(process, tls=False))
            for peer in mute[15:]:
                await peer.send_raw(b"!")  # it is there still
            lines = [await process.wait_event("handshake.rejected", remote=peer.local) for peer in mute[:15]]
    assert {(line["reason"], line["stage"]) for line in lines} == {
        ("too many HTTP connections; see limits.max_http_connections", stage)
    }


# Who stays plain HTTP


async def test_kept_alive_connections_without_end(gateway: StartGateway, loop: EventLoopName, sized: Sized) -> None:
    """They hold a bounded number of descriptors, and who upgrades gets in meanwhile.

    That one may have to come again: here a handful of accepts are as many as there may be.
    """
    config = {"limits": {"max_http_connections": ROOM}} | KEPT_ALIVE
    process = await gateway(config, loop=loop, nofile=8192)
    count = sized(400, 2000)
    async with siege(process) as under:
        attack = asyncio.create_task(under.attack(Storm("kept-alive", count=count, at_once=count)))
        most, entries, before = 0, 0, process.sockets()
        while not attack.done():
            with suppress(PeerClosed, ConnectionError), await RawPeer.open(process) as peer:
                await peer.welcome()
                entries += 1
                most = max(most, process.sockets())
                await peer.leave()
            await asyncio.sleep(0.05)
        ends = (await attack).all()
    assert entries > 0
    # Some go before they are answered: the storm is quicker than the gateway.
    assert ends.keys() <= {"200", "eof", "reset"} and ends.total() == count
    # Besides, those that the event loop has dropped and not closed yet, of one round of accepts.
    assert ROOM / 2 < most - before <= 2 * ROOM
    assert under.failures() >= count - 2 * ROOM
    sampled(process.events("handshake.rejected"), 60.0)


async def test_requests_whose_responses_are_never_read(
    gateway: StartGateway, loop: EventLoopName, sized: Sized
) -> None:
    """Each asks for half a gigabyte in files."""
    count = sized(60, 300)
    process = await gateway({"server": {"handshake_timeout": 2.0}}, loop=loop)
    async with siege(process, growth=count * 512 * KIB) as under:
        outcome = await under.attack(Storm("unread", count=count, at_once=count))
    assert outcome.all() == {"reset": count}
    assert under.gains['gateway_handshake_failures_total{stage="response"}'] == count
    lines = process.events("handshake.timeout")
    assert 0 < len(lines) <= count and {line["stage"] for line in lines} == {"response"}


# Who never authenticates


async def test_sockets_that_never_authenticate(gateway: StartGateway, tokens: TokensFile, sized: Sized) -> None:
    """Half of them from one address. Who has a credential comes in meanwhile."""
    count = sized(500, 5000)
    most, of_one = count // 5, count // 50
    limits = {"max_unauthenticated": most, "max_unauthenticated_per_address": of_one}
    process = await gateway({"auth": tokens.auth, "limits": limits}, nofile=8192)
    async with asking(process, tokens) as under:
        crowded = under.attack(Storm("silent", count=count // 2, at_once=count // 2, source=2))
        attacks = asyncio.gather(crowded, many_others(process, under, count // 2))
        while not attacks.done():
            with await RawPeer.open(process, headers=bearer(tokens.of(OP))) as peer:
                assert (await peer.welcome())["principal"]["name"] == OP.name
                await peer.leave()
            await asyncio.sleep(0.1)
        crowd, many = await attacks
    both = crowd.all() + many.all()
    assert both.keys() == {"101 4001", "429", "503"} and both.total() == count
    # More than these only where the first have to go before the last have come.
    assert both["101 4001"] == under.gains[FAILURE] == under.gains[disconnects("handshake_timeout")] >= most
    assert crowd.all()["101 4001"] >= of_one
    assert crowd.all()["429"] > 0 and many.all().keys() == {"101 4001", "503"}
    assert both["429"] + both["503"] == crowd.retry_after + many.retry_after == under.gains[REFUSED]
    late = process.events("handshake.timeout")
    assert 0 < len(late) <= both["101 4001"] and {line["stage"] for line in late} == {"authenticate"}
    assert len(process.events("handshake.rejected")) <= LOGGED * 16 * (1 + max(crowd.seconds, many.seconds) // 10)


async def many_others(process: GatewayProcess, under: Siege, count: int) -> Outcome:
    """The other half, as soon as the one address is full."""
    async with asyncio.timeout(WAIT):
        while not (await scrape(process))[REFUSED]:
            await asyncio.sleep(0.02)
    return await under.attack(Storm("silent", count=count, at_once=count, source=3, sources=15))


# Who takes all places


async def test_one_token_that_takes_all_places_leaves_the_operators(gateway: StartGateway, tmp_path: Path) -> None:
    tokens = TokensFile(tmp_path / "tokens.toml", OP, PI)
    process = await gateway({"auth": tokens.auth, "limits": {"max_connections": ROOM}})
    async with asking(process, tokens) as under:
        outcome, entries = await crowd(process, under, tokens, 2 * ROOM)
    assert entries == 10
    places = ROOM - 16
    assert outcome.all() == {"101 4503": places, "503": 2 * ROOM - places}
    assert outcome.retry_after == 2 * ROOM - places


# Who guesses


@pytest.mark.parametrize(("kind", "either"), [("bearer", ("401", "429")), ("guess", ("101 4500", "101 4003"))])
async def test_guesses_without_end(
    gateway: StartGateway, tokens: TokensFile, sized: Sized, kind: str, either: tuple[str, str]
) -> None:
    wrong, too_many = either
    process = await gateway({"auth": tokens.auth})
    async with asking(process, tokens) as under:
        outcome = await under.attack(Storm(kind, count=sized(300, 3000)))
    ends = outcome.all()
    assert ends.keys() == {wrong, too_many}
    # Ten are looked at, then one after a second, and after that it takes longer and longer.
    assert 10 <= ends[wrong] <= 11 + outcome.seconds
    if kind == "bearer":
        assert outcome.retry_after == ends[too_many]
    else:
        assert outcome.errors == {"-32001": ends[wrong], "-32002": ends[too_many]}
    assert under.failures() == outcome.count
    sampled(process.events("handshake.rejected"), outcome.seconds)
    assert len(process.events("connection.closed")) <= LOGGED * (1 + outcome.seconds // 10) + 1
    assert GUESS not in str(process.lines) + process.stderr


# Who sends too much, too early


@pytest.mark.parametrize(("kind", "end"), [("oversized", "101 1009"), ("swollen", "101 4001")])
async def test_first_messages_take_64_kib_each_at_most(
    gateway: StartGateway, tokens: TokensFile, sized: Sized, kind: str, end: str
) -> None:
    """With all else it is less than 256. The swollen ones send 64 KiB, and then no more."""
    at_once, seconds = sized(100, 500), 2.0 if kind == "swollen" else 60.0
    process = await gateway({"auth": tokens.auth, "server": {"handshake_timeout": seconds}})
    async with asking(process, tokens, growth=at_once * 256 * KIB) as under:
        outcome = await under.attack(Storm(kind, count=at_once, at_once=at_once, sources=16))
    assert outcome.all() == {end: at_once}
    assert under.gains[FAILURE] == at_once
    assert under.gains.get(OPENED, 0) == 0


async def test_first_messages_in_very_many_fragments(gateway: StartGateway, tokens: TokensFile, sized: Sized) -> None:
    """A byte each: 64 KiB of them cost a hundred times what a message costs."""
    process = await gateway({"auth": tokens.auth, "server": {"handshake_timeout": 60.0}})
    async with asking(process, tokens) as under:
        outcome = await under.attack(Storm("crumbs", count=sized(100, 1000), sources=2))
    assert outcome.all() == {"101 4003": outcome.count}
    assert under.gains[FAILURE] == outcome.count


@pytest.mark.parametrize("first", [True, False], ids=["as-first-message", "authenticated"])
async def test_deflate_bombs(gateway: StartGateway, loop: EventLoopName, tokens: TokensFile, first: bool) -> None:
    auth = tokens.auth if first else {}
    process = await gateway({"server": {"compression": True, "handshake_timeout": 60.0}, "auth": auth}, loop=loop)
    async with siege(process, growth=64 * MIB, headers=bearer(tokens.of(OP))) as under:
        outcome = await under.attack(Storm("bomb", count=64 if first else 16, at_once=64 if first else 8))
    assert outcome.all() == {"101 1009": outcome.count}
    assert under.gains[disconnects("message_too_big")] == outcome.count
    assert under.gains.get(OPENED, 0) == (0 if first else outcome.count)


# Smuggling


async def test_a_second_request_behind_the_upgrade_is_frames(gateway: StartGateway, loop: EventLoopName) -> None:
    process = await gateway(loop=loop)
    async with siege(process) as under:
        outcome = await under.attack(Storm("smuggled"))
    assert outcome.all() == {"101 1002": outcome.count}
    assert under.gains[OPENED] == under.gains[disconnects("protocol_error")] == outcome.count


UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def before(fields: str, body: str = UPGRADE) -> str:
    """A request with these headers in front of something."""
    return f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}\r\n\r\n{body}"


CHUNKED = "Transfer-Encoding: chunked"
WHOLE = f"{len(UPGRADE):x}\r\n{UPGRADE}\r\n0\r\n\r\n"
SMUGGLED: dict[str, tuple[str, list[int]]] = {
    "an upgrade behind a request": (before("Accept: */*"), [200, 101]),
    "an upgrade in a body": (before(f"Content-Length: {len(UPGRADE)}", UPGRADE * 2), [200, 101]),
    "an upgrade in a chunk": (before(CHUNKED, WHOLE + UPGRADE), [200, 101]),
    "both lengths": (before(f"{CHUNKED}\r\nContent-Length: 5", "0\r\n\r\n" + UPGRADE), [400]),
    "both lengths, the other way round": (before(f"Content-Length: 5\r\n{CHUNKED}", "0\r\n\r\n" + UPGRADE), [400]),
    "two lengths": (before("Content-Length: 0\r\nContent-Length: 5"), [400]),
    "a list of lengths": (before("Content-Length: 0, 0"), [400]),
    "a length with a sign": (before("Content-Length: +0"), [400]),
    "a length in words": (before("Content-Length: none"), [400]),
    "chunked twice": (before(f"{CHUNKED}, chunked", "0\r\n\r\n" + UPGRADE), [400]),
    "chunked, then not": (before(f"{CHUNKED}, identity", "0\r\n\r\n" + UPGRADE), [400]),
    "an unknown encoding": (before("Transfer-Encoding: xchunked", "0\r\n\r\n" + UPGRADE), [400]),
    "a folded header": (before(f"X-A: b\r\n {CHUNKED}", UPGRADE), [400]),
    "a blank before the colon": (before("Content-Length : 5"), [400]),
    "a bare line feed": (before(f"X-A: b\n{CHUNKED}"), [400]),
    "a chunk of no size": (before(CHUNKED, "-1\r\n" + UPGRADE), [400]),
}


async def test_no_length_hides_a_request(gateway: StartGateway, loop: EventLoopName) -> None:
    """A proxy in front may read lengths differently: what is ambiguous ends the connection, and nothing behind it runs.

    One connection has one handler for its upgrade: what follows a 101 is frames.
    """
    process = await gateway(loop=loop)
    addresses = {}
    for name, (data, statuses) in SMUGGLED.items():
        with await RawPeer.connect(process) as peer:
            addresses[name] = peer.local
            await peer.send_raw((data + UPGRADE).encode())
            assert [(await peer.read_response()).status for _ in statuses] == statuses, name
            if statuses[-1] == 101:
                await peer.recv_until_closed()
                assert peer.close_code == 1002, name
            else:
                await peer.wait_closed()
    opened = (await scrape(process))[OPENED]
    await until(lambda: len(process.events("connection.opened")) == opened, "not each connection has its line")
    for name, (_, statuses) in SMUGGLED.items():
        assert len(process.events("connection.opened", remote=addresses[name])) == statuses.count(101), name


# Floods of those who are in


@pytest.mark.parametrize("kind", ["ping", "pong", "empty"])
async def test_a_flood_of_control_frames_ends_with_4003(gateway: StartGateway, loop: EventLoopName, kind: str) -> None:
    process = await gateway(loop=loop)
    async with siege(process) as under:
        outcome = await under.attack(Storm(kind, count=16, at_once=8))
    assert outcome.all() == {"101 4003": outcome.count}
    assert under.gains[disconnects("flood")] == under.gains[OPENED] == outcome.count


@pytest.mark.parametrize(("opcode", "fin"), [(Opcode.PING, True), (Opcode.PONG, True), (Opcode.CONTINUATION, False)])
async def test_ten_seconds_worth_of_control_frames_may_come_at_once(
    gateway: StartGateway, opcode: Opcode, fin: bool
) -> None:
    process = await gateway({"limits": {"control_rate": 10}})
    with await RawPeer.open(process) as peer:
        await peer.welcome()
        if not fin:
            await peer.send_frame(Opcode.TEXT, b"[", fin=False)
        await peer.send_raw(frame(opcode, fin=fin) * 99)
        await peer.alive()
        await peer.send_raw(frame(opcode, fin=fin) * 99)
        await farewell(peer)
        assert peer.close_code == 4003
        await ended(process, peer, "flood", 4003)


async def test_a_flood_of_bad_close_codes(gateway: StartGateway, loop: EventLoopName) -> None:
    process = await gateway(loop=loop)
    async with siege(process) as under:
        outcome = await under.attack(Storm(",".join(f"close-{code}" for code in FOREIGN_CODES)))
    assert outcome.all() == {"101 1002": outcome.count}
    assert under.gains[disconnects("protocol_error")] == under.gains[OPENED] == outcome.count


@pytest.mark.parametrize(("kind", "at_once"), [("tiny", 8), ("mebibyte", 1)])
async def test_who_ignores_the_rate_is_told_and_then_ended(
    gateway: StartGateway, loop: EventLoopName, kind: str, at_once: int
) -> None:
    """The other peer keeps to the rate."""
    process = await gateway({"limits": {"rate": 10, "burst": 10}}, loop=loop)
    async with siege(process, growth=64 * MIB, every=0.15) as under:
        outcome = await under.attack(Storm(kind, count=2 * at_once, at_once=at_once))
    assert outcome.all() == {"101 4003": outcome.count}
    # Ten times the burst is refused before the end, and is told so.
    assert outcome.errors.keys() == {"-32002"}
    assert outcome.errors["-32002"] >= 100 * outcome.count
    assert under.gains[disconnects("flood")] == under.gains[OPENED] == outcome.count


# Who has a credential, and wants what is another's


async def test_a_rogue_node_gets_no_call_of_another_and_raises_no_alarm_for_it(sized: Sized) -> None:
    """It answers at once, so it would have the fewest calls in flight, and nearly all of them."""
    calls = sized(300, 10_000)
    found = await rogue(calls)
    assert found.answers == {"pi": calls}
    assert found.codes == {"register": -32007, "serve": -32007, "alarm": -32003, "listen": -32003, "own topic": 0}
    assert found.schema == {"type": "object"}, "and its description is not the method's"


async def test_a_flood_of_one_principal_erases_no_history_and_takes_no_topic_of_another(sized: Sized) -> None:
    """More topics than there may be, and more bytes than are kept."""
    topics, bound = sized(301, 10_001), sized(300, 10_000)
    size, octets = sized(20_000, 1_000_000), sized(1 << 20, 1 << 26)
    found = await hoarder(topics, {"events": {"max_topics": bound, "history_bytes": octets}}, size, 68)
    assert found.recovered == {f"pi.{number}": True for number in range(10)}
    assert found.codes == {"a new topic": 0, "a newcomer's": 0}


# Who fills the log


class Filling(NamedTuple):
    """What fills the log, and how often each connection does it, with the kinds of lines that come of it."""

    kind: str
    times: int
    lines: tuple[lines.Line, ...]


FILLING = (
    Filling("same-node", 1, (ONLINE, OFFLINE)),
    Filling("flapping-node", FLAPS, (ONLINE, OFFLINE)),
    Filling("visits", 1, (lines.OPENED, CLOSED)),
)


@pytest.mark.parametrize("filling", FILLING, ids=lambda each: each.kind)
async def test_who_fills_the_log_has_few_lines_and_all_others_have_theirs(
    gateway: StartGateway, tokens: TokensFile, sized: Sized, filling: Filling
) -> None:
    """A peer that came, went or registered all the time once wrote 7,000 lines a second."""
    bystander = PI._replace(name="bystander")
    tokens.put(PI, bystander)
    process = await gateway({"auth": tokens.auth})
    count, at_once = (sized(3000, 20_000), 64) if filling.kind == "visits" else (sized(20, 200), 1)
    async with asking(process, tokens) as under:
        with await RawPeer.open(process, headers=bearer(tokens.of(bystander))) as other:
            conn_id = (await other.welcome())["connId"]
            outcome = await under.attack(Storm(filling.kind, count=count, at_once=at_once, token=tokens.of(PI)))
            await request(other, "node.register", methods=[{"name": "a"}])
            await other.recv_json()
            await process.wait_event("node.online", connId=conn_id)
            await other.leave()
            await ended(process, other, "client_close", 1000)
        with await RawPeer.open(process, headers=bearer(tokens.of(OP))) as admin:
            await admin.welcome()
            await request(admin, "connection.history", connId=conn_id)
            (past,) = (await admin.recv_json())["result"]["connections"]
            assert past["name"] == "bystander"
    assert outcome.all() == {"101 1000": count}
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    for line in filling.lines:
        written = [each for each in process.events(line.event) if each["remote"].startswith("127.0.0.2:")]
        assert 0 < len(written) <= line.burst * (2 + outcome.seconds // line.window), line.event
        others = 3 if line in {lines.OPENED, CLOSED} else 1
        assert told(process.lines, line.event) == filling.times * count + others, line.event


def told(lines: list[Line], event: str) -> int:
    """How many lines of an event there were, those included that were left out."""
    written = [line for line in lines if event in {line["event"], line.get("of")}]
    return sum((line["event"] == event) + line.get("leftOut", 0) for line in written)


# Who does not read


async def test_readers_of_tls_that_never_read(loop: EventLoopName) -> None:
    """Each asks for 64 MiB; the bound of an outbox is 4 MiB, twice that at once."""
    async with GatewayProcess(loop=loop, tls=True, module=FLOOD_SERVER) as process:
        async with siege(process, growth=4 * 20 * MIB) as under:
            await asyncio.gather(*(never_read(process) for _ in range(4)))
        assert under.gains[disconnects("slow_consumer")] == 4


async def never_read(process: GatewayProcess) -> None:
    with await RawPeer.open(process, rcvbuf=4096) as peer:
        await peer.welcome()
        await request(peer, "test.send", count=64, size=MIB, every=0.05)
        peer.stop_reading()
        await ended(process, peer, "slow_consumer", 4002)
