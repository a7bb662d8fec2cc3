"""Callers and nodes that write down what became of each call: when it was sent, begun and answered, and how often.

All of them are in the process of the test, so that one clock times what happens at different gateways.
"""

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from aiohttp import ClientSession, ClientWebSocketResponse

from gateway.errors import NOT_DELIVERED
from tests.support.fleet import until
from tests.support.patience import WAIT
from tests.support.process import GatewayProcess

MARK: Final = 0.01
"""Seconds from one sign of life of the event loop to the next."""

Take = Callable[[dict[str, Any]], None]


class Told(NamedTuple):
    """What a caller was told, and when: `ok`, or the error's name, and its outcome if there is one."""

    at: float
    verdict: str
    outcome: str


@dataclass
class Account:
    """What happened to one call. `begun` are the earliest moments at which a node can have got it."""

    sent: float
    told: list[Told] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)


class Ledger:
    """What happened to all calls, by their ids. Use it with `async with`.

    A node's message is read somewhat later than it came. So what is written down is when the loop was last seen to have
    nothing left to read, and a call that seems to have begun too late has really done so.
    """

    def __init__(self) -> None:
        self.calls: dict[str, Account] = {}
        self._marks = deque([time.monotonic()] * 3, maxlen=3)  # reading takes up to two iterations of the loop
        self._marking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._marking = asyncio.create_task(self._mark())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._marking is not None
        self._marking.cancel()

    async def _mark(self) -> None:
        while True:
            await asyncio.sleep(MARK)
            self._marks.append(time.monotonic())

    def begun(self, call: str) -> None:
        """Note that a node has got a call."""
        self.calls[call].begun.append(self._marks[0])

    def told(self, call: str, reply: dict[str, Any]) -> None:
        """Note that a caller is answered."""
        data = reply.get("error", {}).get("data", {"code": "ok"})
        self.calls[call].told.append(Told(time.monotonic(), data["code"], data.get("outcome", "")))

    def open(self) -> list[str]:
        """Return the calls that are not answered yet."""
        return [call for call, account in self.calls.items() if not account.told]

    async def settled(self) -> None:
        """Wait until all calls are answered."""
        await until(lambda: not self.open(), f"not answered: {self.open()[:9]}")

    def worst(self, since: float) -> float:
        """Return how many seconds the slowest answer took, of the calls that were open at this moment or came later."""
        waits = [one.told[0].at - max(one.sent, since) for one in self.calls.values() if one.told]
        return max(waits, default=0.0)

    def verdicts(self) -> Counter[str]:
        """Return how often which answer was given."""
        return Counter(one.told[0].verdict for one in self.calls.values() if one.told)

    def check(self) -> None:
        """Fail if a call was not answered exactly once, was run twice, or has begun in spite of what was told."""
        for call, account in self.calls.items():
            assert len(account.told) == 1, f"{call} was answered {len(account.told)} times: {account}"
            assert len(account.begun) <= 1, f"{call} was run twice: {account}"
            (told,) = account.told
            assert account.begun or told.verdict != "ok", f"{call} was never run: {account}"
            assert not account.begun or told.outcome != NOT_DELIVERED, f"{call} was delivered: {account}"
            late = [begun - told.at for begun in account.begun if begun > told.at]
            assert not late, f"{call} has begun {late[0]:.3f} s after its caller was told: {account}"


class Party:
    """One WebSocket connection. `take` gets each message but the answers to `ask`."""

    def __init__(self, ws: ClientWebSocketResponse, take: Take) -> None:
        self._ws = ws
        self._take = take
        self._asked: dict[object, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def join(cls, session: ClientSession, where: GatewayProcess, take: Take) -> Self:
        """Connect to a gateway."""
        return cls(await session.ws_connect(where.url("/ws", websocket=True), max_msg_size=0), take)

    async def _read(self) -> None:
        async for message in self._ws:
            taken = json.loads(message.data)
            asked = self._asked.pop(taken.get("id"), None) if "method" not in taken else None
            if asked is None:
                self._take(taken)
            else:
                asked.set_result(taken)

    async def send(self, **message: object) -> None:
        """Send a message."""
        await self._ws.send_str(json.dumps({"jsonrpc": "2.0", **message}))

    async def ask(self, method: str, params: object = None) -> Any:
        """Return the result of a method of the gateway."""
        key = f"asked {len(self._asked)} {time.monotonic()}"
        answer = self._asked[key] = asyncio.get_running_loop().create_future()
        await self.send(id=key, method=method, **({} if params is None else {"params": params}))
        return (await asyncio.wait_for(answer, WAIT))["result"]

    async def leave(self) -> None:
        """Close it."""
        await self._ws.close()
        await self._reading


class Registrar:
    """A node that writes down when it gets a call. It answers `work` at once, and `wait` when it is told so."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._answers: set[asyncio.Task[None]] = set()
        self._waiting: list[object] = []
        self.party: Party

    async def serve(self, session: ClientSession, where: GatewayProcess, name: str) -> None:
        """Connect to a gateway, and serve."""
        self._waiting.clear()
        self.party = await Party.join(session, where, self._take)
        methods = [{"name": "work"}, {"name": "wait"}]
        await self.party.ask("node.register", {"name": name, "methods": methods})

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message and "method" in message:
            self._ledger.begun(message["params"][0])
            if message["method"] == "work":
                self._answer(message["id"])
            else:
                self._waiting.append(message["id"])

    def _answer(self, call: object) -> None:
        answer = asyncio.create_task(self.party.send(id=call, result=None))
        self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)

    def go_on(self) -> None:
        """Answer all that waits."""
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            self._answer(call)


class Bookkeeper:
    """A caller that writes down what it calls, and what it is told."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self._ledger = ledger
        self._name = name
        self._number = 0
        self.party: Party

    async def join(self, session: ClientSession, where: GatewayProcess) -> None:
        """Connect to a gateway."""
        self.party = await Party.join(session, where, self._take)

    def _take(self, message: dict[str, Any]) -> None:
        if "method" not in message:
            self._ledger.told(message["id"], message)

    async def call(self, method: str) -> str:
        """Send a call, and return its id."""
        self._number += 1
        call = f"{self._name}{self._number}"
        self._ledger.calls[call] = Account(time.monotonic())
        await self.party.send(id=call, method=method, params=[call])
        return call

    async def flow(self, pause: float) -> None:
        """Call on and on, whatever is answered. Cancel it."""
        while True:
            await self.call("work")
            await asyncio.sleep(pause)

    async def knows(self, name: str) -> None:
        """Wait until its gateway knows a node with this name."""
        async with asyncio.timeout(WAIT):
            while name not in {node["name"] for node in (await self.party.ask("node.list"))["nodes"]}:
                await asyncio.sleep(0.02)
