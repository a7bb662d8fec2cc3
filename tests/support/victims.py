"""A peer that others press upon: it reads 2 MB/s, and asks for `gateway.ping` all the time.

It has a process of its own, in which the attackers do not keep it waiting: `python -m tests.support.victims VICTIM PORT
PID`, with its token on standard input. It says `{}` when it is ready, and when standard input ends, as JSON, for how
long it has waited each time. `PID` is the gateway's; `tests.support.fair` says what that is for.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

from tests.support.credentials import Holder, bearer
from tests.support.fair import Begun, Fair
from tests.support.peers import Opcode, PeerClosed, RawPeer, Target

PACE: Final = 2_000_000
"""Bytes a second that a victim reads."""
EVERY: Final = 0.02
"""Seconds between two pings of a victim."""
RECEIVE_BUFFER: Final = 64 * 1024
"""Bytes for which it asks the kernel, which takes twice as many."""
VICTIM: Final = Holder("victim", "operator", ("admin", "call:>", "serve:>", "subscribe:>", "publish:>"))


async def until_lost(work: Coroutine[Any, Any, None]) -> None:
    """Do this until it is done, or the connection is gone."""
    with suppress(PeerClosed, OSError, TimeoutError):
        await work


def request(method: str, params: object, identity: object = 1) -> dict[str, object]:
    """A request."""
    return {"jsonrpc": "2.0", "id": identity, "method": method, "params": params}


class Slow:
    """A peer that reads at its pace, and hands each message to ``heard``. Its pings are measured."""

    def __init__(self, peer: RawPeer, fair: Fair, pace: int = PACE) -> None:
        self.peer = peer
        self._fair = fair
        self._pace = pace
        self._buffer = bytearray()
        self._asked: dict[str, Begun] = {}
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.heard: Callable[[Any], Awaitable[None]] = self._ignore
        self._tasks: list[asyncio.Task[None]] = []

    async def _ignore(self, message: Any) -> None:
        """Do nothing with it."""

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let this go on for as long as the process does."""
        self._tasks.append(asyncio.create_task(until_lost(work)))

    async def read(self) -> None:
        """Read until the gateway ends the connection, or this is cancelled."""
        due = time.monotonic()
        while data := await self.peer.wire.recv():
            self._buffer += data
            due = max(due, time.monotonic() - 1) + len(data) / self._pace
            await self._take_messages()
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _take_messages(self) -> None:
        while len(self._buffer) >= 2:
            opcode, size = self._buffer[0] & 15, self._buffer[1]
            start = {126: 4, 127: 10}.get(size, 2)
            if size > 125:
                size = int.from_bytes(self._buffer[2:start], "big")
            if len(self._buffer) < start + size:
                return
            payload = bytes(self._buffer[start : start + size])
            del self._buffer[: start + size]
            if opcode == Opcode.PING:
                await self.peer.send_frame(Opcode.PONG, payload)
            elif opcode == Opcode.TEXT:
                await self._take(json.loads(payload))

    async def _take(self, message: Any) -> None:
        asked = self._asked.pop(str(message.get("id")), None) if isinstance(message, dict) else None
        if asked is not None:
            self._fair.end(asked)
        elif isinstance(message, dict) and "method" not in message:
            self.replies.put_nowait(message)
        else:
            await self.heard(message)

    async def ask(self, method: str, params: object) -> Any:
        """Send a request, and return its reply. Needs `read`."""
        await self.peer.send_json({"jsonrpc": "2.0", "id": method, "method": method, "params": params})
        return await self.replies.get()

    async def ping(self) -> None:
        """Ask for `gateway.ping` again and again."""
        number = 0
        while True:
            number += 1
            self._asked[f"ping {number}"] = self._fair.begin()
            await self.peer.send_json({"jsonrpc": "2.0", "id": f"ping {number}", "method": "gateway.ping"})
            await asyncio.sleep(EVERY)


async def _idle(victim: Slow) -> None:
    """Do nothing."""


async def _serve(victim: Slow) -> None:
    """Be a node, which answers each call."""

    async def answer(message: Any) -> None:
        if message["method"] == "victim.does" and "id" in message:
            await victim.peer.send_json({"jsonrpc": "2.0", "id": message["id"], "result": None})

    victim.heard = answer
    await victim.ask("node.register", {"methods": [{"name": "victim.does"}]})


async def _call(victim: Slow) -> None:
    """Call the attacker, which is a node, again and again."""

    async def call() -> None:
        while True:
            for number in range(20):
                await victim.peer.send_json(request("evil.does", [], f"call {number}"))
            for _ in range(20):
                await victim.replies.get()

    victim.begin(call())


async def _hear(victim: Slow) -> None:
    await victim.ask("event.subscribe", {"topics": [">"]})


async def _watch(victim: Slow) -> None:
    """Hear what the gateway tells of others, as the console does."""
    await victim.ask("event.subscribe", {"topics": ["gateway.>"]})


VICTIMS: Final[Mapping[str, Callable[[Slow], Awaitable[None]]]] = {
    "idle": _idle,
    "serve": _serve,
    "call": _call,
    "hear": _hear,
    "watch": _watch,
}


async def suffer(does: str, port: int, pid: int) -> None:
    """Be a victim of the gateway with this port and process, until standard input ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    token, fair = (await lines.readline()).decode().strip(), Fair(pid)
    with await RawPeer.open(Target(port), headers=bearer(token), rcvbuf=RECEIVE_BUFFER) as peer:
        victim = Slow(peer, fair)
        victim.begin(victim.read())
        await VICTIMS[does](victim)
        print("{}", flush=True)
        victim.begin(victim.ping())
        await lines.read()
    print(json.dumps(fair.waits), flush=True)


def main() -> int:
    """Be a victim."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.victims")
    parser.add_argument("does", choices=VICTIMS)
    parser.add_argument("port", type=int)
    parser.add_argument("pid", type=int, help="the gateway's")
    options = parser.parse_args()
    asyncio.run(suffer(options.does, options.port, options.pid))
    return 0


if __name__ == "__main__":
    sys.exit(main())
