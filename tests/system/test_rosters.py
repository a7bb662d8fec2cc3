"""Rosters of several processes with a real NATS: many nodes that a newcomer has to learn, and one name for all at once.

With `-s` the tests print how long it took, and for how much processor time the event loops stood still.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from gateway import errors
from gateway.cluster.natslink import NatsError
from tests.support.fleet import until
from tests.support.forks import Forked, start_python
from tests.support.nats import NatsServer
from tests.support.nats_peer import NatsPeer
from tests.support.patience import START, WAIT, Sized

Report = dict[str, Any]
Process = asyncio.subprocess.Process | Forked


class Control:
    """Asks the members for what they are to do."""

    def __init__(self, peer: NatsPeer) -> None:
        self._nats = peer.nats

    async def ask(self, member: str, **what: object) -> Report:
        """Ask one of them. Waits for the answer."""
        _, answer = await self._nats.request(f"control.{member}".encode(), msgspec.json.encode(what), START)
        found: Report = msgspec.json.decode(answer)
        return found

    async def agreed(self, *names: str) -> list[Report]:
        """Wait until all of them know the same, and return the last reports."""
        longest = dict.fromkeys(names, 0.0)
        async with asyncio.timeout(WAIT):
            while True:
                reports = [await self.ask(name, report=1) for name in names]
                for name, report in zip(names, reports, strict=True):
                    longest[name] = report["stalled"] = max(longest[name], report["stalled"])
                if len({report["digest"] for report in reports}) == 1 and all(report["known"] for report in reports):
                    return reports
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running(server: NatsServer, name: str) -> AsyncIterator[Process]:
    """Start a member in a process of its own."""
    process = await start_python("tests.support.rostered", server.url, name)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), WAIT)


@contextlib.asynccontextmanager
async def three() -> AsyncIterator[tuple[NatsServer, Control, Process]]:
    """Three members that know each other, and the process of the last one."""
    async with NatsServer() as server, NatsPeer(server.url) as peer, contextlib.AsyncExitStack() as stack:
        await peer.hear(b"test.beat")
        for name in "abc":
            process = await stack.enter_async_context(running(server, name))
        await until(lambda: len({msgspec.json.decode(one)["name"] for one in peer.payloads()}) == 3, "one is missing")
        yield server, Control(peer), process


async def test_a_newcomer_knows_all_nodes_of_the_others(sized: Sized) -> None:
    nodes, methods = sized(100, 3334), 20
    async with three() as (server, control, last):
        await control.agreed(*"abc")
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(control.ask(name, register=nodes, methods=methods, prefix=name) for name in "abc"))
        reports = await control.agreed(*"abc")
        took = asyncio.get_running_loop().time() - began
        print(f"\n{3 * nodes} nodes are known to all after {took:.2f} s; loops stood still for {stalls(reports)}")
        async with running(server, "d"):
            await until_heard(control, "d")
            reports = await control.agreed(*"abcd")
            assert {report["nodes"] for report in reports} == {3 * nodes}
            assert {report["methods"] for report in reports} == {3 * nodes * methods}
            print(f"a newcomer knows all after {reports[-1]['known']:.2f} s; loops stood still for {stalls(reports)}")
        reports = await control.agreed(*"abc")
        assert {report["nodes"] for report in reports} == {3 * nodes}
        last.kill()
        async with asyncio.timeout(WAIT):
            while {report["nodes"] for report in reports} != {2 * nodes}:
                reports = await control.agreed(*"ab")
        print(f"one with {nodes} nodes is lost; loops stood still for {stalls(reports)}")


async def test_of_many_registrations_of_one_name_at_several_gateways_one_has_it(sized: Sized) -> None:
    each = sized(20, 167)
    async with three() as (_, control, _):
        await control.agreed(*"abc")
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(control.ask(name, race=each, name="pi") for name in "abc"))
        reports = await control.agreed(*"abc")
        took = asyncio.get_running_loop().time() - began
        ended = [code for report in reports for code in report["ended"]]
        assert [report["nodes"] for report in reports] == [1, 1, 1]
        assert ended == [errors.REPLACED.code] * (3 * each - 1)
        print(f"\n{3 * each} registrations: all agree after {took:.2f} s; loops stood still for {stalls(reports)}")


async def until_heard(control: Control, name: str) -> None:
    """Wait until a member answers."""
    async with asyncio.timeout(START):
        while True:
            with contextlib.suppress(NatsError):
                await control.ask(name)
                return
            await asyncio.sleep(0.05)


def stalls(reports: list[Report]) -> str:
    """For how long the event loops stood still."""
    return ", ".join(f"{report['stalled'] * 1000:.1f} ms" for report in reports)
