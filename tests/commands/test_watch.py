"""`python -m gateway watch`."""

import json
import re
import signal

import pytest

from tests.support.patience import START
from tests.support.process import GatewayProcess, StartGateway
from tests.support.remote import Command, misused, run


async def publish(where: GatewayProcess, topic: str, data: object) -> None:
    params = json.dumps({"topic": topic, "data": data})
    assert (await run(where, "call", "event.publish", params)).status == 0


async def test_events_a_line_each(gateway: StartGateway) -> None:
    where = await gateway()
    async with Command("watch", "a.*", "b.>", where=where) as watch:
        while not watch.stdout:
            await publish(where, "b.ready", None)
        await publish(where, "a.b", {"text": "küche\x1b[31m"})
        await publish(where, "c", 1)
        await publish(where, "b.c.d", "last")
        await watch.until(lambda watch: "last" in watch.stdout)
        ended = await watch.end(signal.SIGINT)
    assert (ended.status, ended.stderr) == (130, "")
    lines = [line for line in ended.stdout.splitlines() if "b.ready" not in line]
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(time + r"  a\.b  \{\"text\": \"küche\\u001b\[31m\"\}", lines[0])
    assert re.fullmatch(time + r'  b\.c\.d  "last"', lines[1])
    assert len(lines) == 2


async def test_events_for_programs(gateway: StartGateway) -> None:
    where = await gateway()
    async with Command("watch", "--json", "a", where=where) as watch:
        while not watch.stdout:
            await publish(where, "a", [1])
    event = json.loads(watch.stdout.splitlines()[0])
    assert event.keys() == {"topic", "offset", "epoch", "time", "data"}
    assert (event["topic"], event["data"]) == ("a", [1])


async def test_a_connection_that_is_lost_comes_back(gateway: StartGateway) -> None:
    first = await gateway()
    async with Command("watch", "a", where=first) as watch:
        while not watch.stdout:
            await publish(first, "a", 1)
        first.signal(signal.SIGKILL)
        await first.wait()
        await watch.until(lambda watch: "; trying again\n" in watch.stderr)
        second = await gateway({"server": {"port": first.port}})
        await watch.until(lambda watch: "connected\n" in watch.stderr.rpartition("; trying again\n")[2])
        while "second" not in watch.stdout:
            await publish(second, "a", "second")
    assert "gap: messages of a are gone\n" in watch.stderr


async def test_one_that_must_not_come_back(gateway: StartGateway) -> None:
    where = await gateway()
    async with Command("watch", "a", where=where) as watch:
        opened = await where.wait_event("connection.opened", timeout=START)
        while not watch.stdout:
            await publish(where, "a", 1)
        await run(where, "connections", "close", opened["connId"], "--reason", "go")
        ended = await watch.end()
    assert (ended.status, ended.stderr) == (3, f"{where.url('/ws', websocket=True)}: 4501 go\n")


async def test_a_topic_that_is_none(gateway: StartGateway) -> None:
    ended = await run(await gateway(), "watch", "a..b")
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error -32602 invalid_params: ")


@pytest.mark.parametrize("arguments", [[], ["a", "--since", "b"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    misused(capsys, "watch", *arguments)
