"""`python -m gateway members`, and what the other lists show of a cluster."""

import asyncio
import json
import re

import pytest

from tests.support.clustered import clustered, nats_for_gateways
from tests.support.command import Ended
from tests.support.process import StartGateway
from tests.support.remote import misused, on_a_terminal, run, serving


async def test_a_gateway_alone(gateway: StartGateway) -> None:
    where = await gateway()
    assert await run(where, "members") == Ended(0, "this gateway is alone\n", "")
    assert await run(where, "members", "--json") == Ended(0, "[]\n", "")


async def test_members(gateway: StartGateway) -> None:
    async with nats_for_gateways() as server:
        here, there = await asyncio.gather(gateway(clustered(server, "attic")), gateway(clustered(server, "küche")))
        await here.wait_event("cluster.member_joined")
        (started,) = there.events("server.started")
        async with serving(there, "disk.free=df"):
            listed = await run(there, "members")
            nodes = await run(there, "nodes")
            connections = await run(here, "connections")
            told = json.loads((await run(here, "members", "--json")).stdout)
        heading, first, second = listed.stdout.splitlines()
        assert (listed.status, listed.stderr) == (0, "")
        assert heading.split() == ["NAME", "INSTANCE", "VERSION", "SINCE", "NODES", "CONNECTIONS", "HERE"]
        assert re.fullmatch(r"attic +\S{8} +\S+ +\ds +0 +0", first)
        assert re.fullmatch(rf"küche +{started['instance'][:8]} +\S+ +\ds +1 +2 +yes", second)
        assert [one["member"] for one in told] == ["attic", "küche"]
        heading, node = nodes.stdout.splitlines()
        assert heading.split()[-2:] == ["MEMBER", "METHODS"]
        assert node.split()[-2:] == ["küche", "disk.free"]
        heading, *rows = connections.stdout.splitlines()
        assert heading.split()[-1] == "MEMBER"
        assert sorted(row.split()[-1] for row in rows) == ["attic", "küche"]
        ended = await run(here, "connections", "--history")
        assert ended.stdout.splitlines()[0].endswith("REASON  MEMBER")
        assert {row.split()[-1] for row in ended.stdout.splitlines()[1:]} == {"attic", "küche"}


async def test_one_member_is_asked_alone(gateway: StartGateway) -> None:
    async with nats_for_gateways() as server:
        here, there = await asyncio.gather(gateway(clustered(server, "attic")), gateway(clustered(server, "küche")))
        await here.wait_event("cluster.member_joined")
        async with serving(there, "disk.free=df"):
            await there.wait_event("node.online")
            for member, name in (("küche", ["kitchen-pi"]), ("attic", [])):
                listed = json.loads((await run(here, "nodes", "--member", member, "--json")).stdout)
                assert [one["name"] for one in listed] == name
            (node,) = json.loads((await run(here, "connections", "--member", "küche", "--json")).stdout)
            assert (node["member"], node["name"]) == ("küche", "anonymous")
            assert (await run(here, "connections", "close", node["connId"][:8], "--member", "attic")).status == 1
            closed = await run(here, "connections", "close", node["connId"][:8], "--member", "küche")
            assert closed == Ended(0, f"closed {node['connId']}\n", "")
        await there.wait_event("connection.closed", cause="closed_by_operator")
        ended = json.loads((await run(here, "connections", "--history", "--member", "küche", "--json")).stdout)
        assert [one["cause"] for one in ended] == ["closed_by_operator"]
        unknown = await run(here, "nodes", "--member", "cellar")
        assert unknown == Ended(
            1, "", "error -32004 not_found: No such connection, node or topic: no gateway 'cellar' in the cluster\n"
        )


async def test_eighty_columns_are_enough(gateway: StartGateway) -> None:
    """Even with the names that gateways have by themselves, of which nothing is cut."""
    async with nats_for_gateways() as server:
        here = await gateway(clustered(server))
        name = f"127.0.0.1:{here.port}"
        async with serving(here, *(f"kitchen.method{number}=true" for number in range(9)), name="kitchen-pi"):
            lists = [await on_a_terminal(here, command) for command in ("members", "nodes", "connections")]
        lists.append(await on_a_terminal(here, "connections", "--history"))
    for shown in lists:
        heading, first, *_ = lines = shown.splitlines()
        assert max(map(len, lines)) <= 80, shown
        assert name in first
        assert "MEMBER" in heading or (heading.startswith("NAME  ") and heading.endswith("HERE"))


async def test_who_does_not_answer_is_named(gateway: StartGateway) -> None:
    async with nats_for_gateways() as server:
        here, there = await asyncio.gather(gateway(clustered(server, "a")), gateway(clustered(server, "b")))
        await here.wait_event("cluster.member_joined")
        server.end()
        await here.wait_event("cluster.lost")
        said = "no answer of b: what they have is not listed\n"
        without = "this gateway is without NATS, and so without the others\n"
        for command in (["members"], ["nodes"], ["connections"], ["connections", "--history"]):
            ended = await run(here, *command)
            assert (ended.status, ended.stderr) == (0, without + said if command == ["members"] else said), command
            assert ended.stdout, "the own is"
        assert there.events("cluster.member_joined")


@pytest.mark.parametrize("arguments", [["extra"], ["--history"], ["--url"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    misused(capsys, "members", *arguments)
