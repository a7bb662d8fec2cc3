"""`python -m tests.support.rostered URL NAME`: a member of a cluster with a registry and a roster, and no gateway.

It does what requests on the subject `control.NAME` ask for, each JSON, and answers:

    {"register": 3333, "methods": 20, "prefix": "a"}    nodes with so many methods each; a part in each iteration
    {"race": 167, "name": "pi"}                        registrations of one name, by one connection after another
    {"report": 1}                                      what it knows, and for how long its event loop stood still
    {}                                                 nothing

It ends with SIGTERM.
"""

import asyncio
import gc
import hashlib
import signal
import sys
import time
from typing import Any

import msgspec
import uvloop

from gateway import errors
from gateway.cluster.members import Members
from gateway.nodes.registry import Nodes
from gateway.nodes.roster import Roster
from gateway.rpc.steps import Steps
from gateway.server import GC_THRESHOLDS
from tests.support.members import Fellow
from tests.support.roster import Far, described
from tests.support.rpc import NodeListing

SLICE = 20
"""Nodes that are registered in one iteration."""


class Stalls:
    """The processor time of the longest time that the event loop did not turn, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._forgiven = False
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            if not self._forgiven:
                self.longest = max(self.longest, time.thread_time() - before)
            self._forgiven = False

    def take(self) -> float:
        """Return the longest so far, and begin again after this iteration, which does not count."""
        longest, self.longest, self._forgiven = self.longest, 0.0, True
        return longest


class Rostered:
    """The member."""

    def __init__(self, url: str, name: str) -> None:
        self.fellow = Fellow(url, name)
        self.name = name
        self.nodes = Nodes(lambda node, change: None, lambda node: None)
        self.peers: list[NodeListing] = []
        members: Members = self.fellow.members
        self.roster = Roster(
            self.nodes,
            members,
            Steps(),
            make_peer=lambda member, name, conn_id, remote, principal: Far(member, conn_id, remote, principal),
            arrived=lambda name: None,
            lost_link=lambda peer: None,
            lines=self.fellow.lines,
        )
        self.began = 0.0
        self.known = 0.0

    async def run(self) -> None:
        """Be there until SIGTERM."""
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        self.began = time.monotonic()
        self.stalls = Stalls()
        self.fellow.nats.subscribe(f"control.{self.name}".encode(), self._asked)
        async with self.fellow:
            watching = asyncio.create_task(self._watch())
            await over.wait()
            watching.cancel()

    async def _watch(self) -> None:
        while not self.roster.is_known:
            await asyncio.sleep(0.005)
        self.known = time.monotonic() - self.began

    def _asked(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        asked: dict[str, Any] = msgspec.json.decode(payload)
        if "report" in asked:
            self._answer(reply, self._report())
        elif "race" in asked:
            for _ in range(asked["race"]):
                self._register(asked["name"], ["pi.snap"])
            self._answer(reply, {})
        elif not asked:
            self._answer(reply, {})
        else:
            self._tasks = asyncio.create_task(self._fill(reply, **asked))

    async def _fill(self, reply: bytes, register: int, methods: int, prefix: str) -> None:
        for number in range(register):
            name = f"{prefix}{number:05}"
            self._register(name, [f"{name}.method{one:02}" for one in range(methods)])
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        self._answer(reply, {})

    def _register(self, name: str, methods: list[str]) -> None:
        peer = NodeListing()
        self.peers.append(peer)
        peer.conn_id = f"{self.name}-{len(self.peers)}"
        replaced = self.nodes.register(peer, name, map(described, methods), False)
        if replaced is not None:
            replaced.peer.end(errors.REPLACED)

    def _report(self) -> dict[str, Any]:
        """Return what is known, as far as it may be the same everywhere, and figures."""
        stalled = self.stalls.take()
        digest = hashlib.sha256()
        for node in self.nodes.after(""):
            member = self.fellow.members.instance if node.member is None else node.member.instance
            digest.update(repr((node.name, node.peer.conn_id, node.stamp, member, sorted(node.methods))).encode())
        ended = [peer.ended.code for peer in self.peers if peer.ended is not None]
        return {
            "nodes": len(self.nodes),
            "methods": len(self.nodes.methods()),
            "digest": digest.hexdigest(),
            "known": self.known,
            "ended": ended,
            "stalled": stalled,
        }

    def _answer(self, reply: bytes, answer: dict[str, Any]) -> None:
        self.fellow.nats.publish(reply, msgspec.json.encode(answer))


if __name__ == "__main__":
    gc.set_threshold(*GC_THRESHOLDS)
    uvloop.run(Rostered(*sys.argv[1:]).run())
