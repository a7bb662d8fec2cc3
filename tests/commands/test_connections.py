"""`python -m gateway connections`."""

import json
import re

import pytest

from gateway.client import connect
from tests.support.command import Ended
from tests.support.faulty_proxy import FaultyProxy
from tests.support.kept import is_kept
from tests.support.peers import RawPeer
from tests.support.process import StartGateway
from tests.support.remote import misused, on_a_terminal, run, serving


async def test_the_open_ones(gateway: StartGateway) -> None:
    where = await gateway()
    with await RawPeer.open(where) as peer:
        welcome = await peer.welcome()
        table = await run(where, "connections")
        listed = json.loads((await run(where, "connections", "list", "--json")).stdout)
    heading, *rows = table.stdout.splitlines()
    assert (table.status, table.stderr, len(rows)) == (0, "", 2), "the peer, and the command itself"
    assert heading.split() == ["CONNID", "NAME", "ROLE", "REMOTE", "OPEN", "SEEN", "IN", "OUT", "CALLS", "OUTBOX"]
    assert re.fullmatch(
        rf"{welcome['connId'][:8]}  anonymous  operator  {re.escape(peer.local)} +\ds +\ds +0 +1 +0 +0", rows[0]
    )
    assert listed[0]["connId"] == welcome["connId"]


async def test_one_that_is_held(gateway: StartGateway) -> None:
    where = await gateway()
    async with FaultyProxy(where.host, where.port) as proxy, connect(proxy.url()) as node:
        node.method("a.b")(lambda params, call: None)
        await node.serve("pi")
        await is_kept(node)
        proxy.refuse = True
        proxy.cut()
        await where.wait_event("connection.held")
        table = (await run(where, "connections")).stdout.splitlines()
        nodes = (await run(where, "nodes")).stdout.splitlines()
    assert re.search(r" held +\d+ +\d+ +0 +0$", table[1]), table
    assert table[0].index("SEEN") == table[1].index("held"), "and is no wider than before"
    assert re.fullmatch(r"pi +held +0 +\S+ +a\.b", nodes[1])


async def test_eighty_columns_are_enough(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "a=true", name="kitchen-pi"):
        open_ones = (await on_a_terminal(where, "connections")).splitlines()
        await run(where, "connections", "close", open_ones[1].split()[0], "--reason", "r" * 60)
        ended = (await on_a_terminal(where, "connections", "--history")).splitlines()
    assert max(map(len, [*open_ones, *ended])) <= 80
    assert open_ones[0].split()[:4] == ["CONNID", "NAME", "ROLE", "REMOTE"]
    assert re.search(r"  127\.0\.0\.1:\d+  ", open_ones[1]), "nothing of the address is cut"
    assert re.search(r"  [a-z_]+  r+…", "\n".join(ended)), "the reason alone is cut"


async def test_more_than_a_page(gateway: StartGateway) -> None:
    where = await gateway()
    peers = [await RawPeer.open(where) for _ in range(201)]
    listed = json.loads((await run(where, "connections", "--json")).stdout)
    assert len({one["connId"] for one in listed}) == 202
    assert listed == sorted(listed, key=lambda one: str(one["openedAt"])), "the oldest first"
    for peer in peers:
        peer.close()


async def test_closing_one_and_why_it_has_ended(gateway: StartGateway) -> None:
    where = await gateway()
    with await RawPeer.open(where) as peer, await RawPeer.open(where) as other:
        conn_id, kept = (await peer.welcome())["connId"], (await other.welcome())["connId"]
        ended = await run(where, "connections", "close", conn_id[:18], "--reason", "küche \x1b[31m")
        assert ended == Ended(0, f"closed {conn_id}\n", "")
        await peer.recv_until_closed()
        assert (peer.close_code, peer.close_reason) == (4501, "küche \x1b[31m")
        ended = await run(where, "connections", "close", kept, "--json")
        assert (ended.status, json.loads(ended.stdout)) == (0, {"closed": kept})
    table = (await run(where, "connections", "--history")).stdout.splitlines()
    assert table[0].split() == ["CONNID", "NAME", "REMOTE", "ENDED", "OPEN", "CODE", "CAUSE", "REASON"]
    (row,) = [row for row in table if row.startswith(conn_id[:8])]
    assert re.search(r" \ds ago +\ds +4501 +closed_by_operator +küche \\x1b\[31m$", row)
    history = json.loads((await run(where, "connections", "--history", "--json")).stdout)
    assert next(one["reason"] for one in history if one["connId"] == conn_id) == "küche \x1b[31m"


async def test_which_one_is_to_be_clear(gateway: StartGateway) -> None:
    where = await gateway()
    peers = [await RawPeer.open(where) for _ in range(17)]
    firsts = [(await peer.welcome())["connId"][0] for peer in peers]
    shared = next(first for first in firsts if firsts.count(first) > 1)
    error = "error -32004 not_found: "
    many = await run(where, "connections", "close", shared)
    assert many == Ended(1, "", f"{error}more than one open connection begins with '{shared}'\n")
    none = await run(where, "connections", "close", "zzz")
    assert none == Ended(1, "", f"{error}no open connection begins with 'zzz'\n")
    unknown = await run(where, "connections", "close", "0" * 36)
    assert (unknown.status, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith(error)
    for peer in peers:
        peer.close()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["close"], "CONNID"),
        (["open"], "open"),
        (["list", "abc"], "CONNID"),
        (["--reason", "no"], "--reason"),
        (["close", "abc", "--history"], "--history"),
        (["close", "abc", "def"], "def"),
        (["close", ""], "CONNID"),
    ],
)
def test_wrong_usage(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in misused(capsys, "connections", *arguments)
