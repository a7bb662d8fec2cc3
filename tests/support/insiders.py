"""Attacks by peers that have a credential, and what they take from others. `tests.support.attacks` runs them by hand.

Each returns what came of it, and the tests say what that has to be.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gateway.client import CallError, Client, ServedCall, connect
from tests.support.credentials import OP, PI, Holder, TokensFile
from tests.support.process import Config, GatewayProcess

ROGUE: Final = Holder("rogue", "node")
"""A node like any other, by its token."""
AT_ONCE: Final = 50
"""How many requests of an attack are in flight."""


@asynccontextmanager
async def inside(*holders: Holder, config: Config | None = None) -> AsyncIterator[list[Client]]:
    """Start a gateway in mode token, and connect these holders."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        tokens = TokensFile(Path(directory) / "tokens.toml", *holders)
        where = await stack.enter_async_context(GatewayProcess({**(config or {}), "auth": tokens.auth}))
        url = where.url("/ws", websocket=True)
        yield [await stack.enter_async_context(connect(url, token=tokens.of(each))) for each in holders]


async def refusal(client: Client, method: str, **params: object) -> int:
    """The code with which a request is refused, 0 if it is not."""
    try:
        await client.call(method, params)
    except CallError as error:
        return error.code
    return 0


@dataclass
class Taken:
    """What a rogue node got. answers: who answered, and how often. codes: how the gateway refused what it tried."""

    answers: Counter[str] = field(default_factory=Counter)
    codes: dict[str, int] = field(default_factory=dict)
    schema: Any = None


async def rogue(calls: int) -> Taken:
    """A node registers the method of another, to answer its calls at once; it raises its alarm, and listens to all."""
    found = Taken()
    async with inside(OP, PI, ROGUE) as (operator, node, thief):

        @node.method("disk.free", params={"type": "object"})
        async def honest(_: Any, call: ServedCall) -> str:
            await asyncio.sleep(0.01)
            return "pi"

        await node.serve()
        stolen = {"name": "disk.free", "summary": "mine", "params": {"type": "array"}}
        found.codes["register"] = await refusal(thief, "node.register", methods=[stolen])

        @thief.method("disk.free", params={"type": "array"})
        async def dishonest(_: Any, call: ServedCall) -> str:
            return "rogue"

        try:
            await thief.serve()
        except CallError as error:
            found.codes["serve"] = error.code
        found.codes["alarm"] = await refusal(thief, "event.publish", topic="pi.alarm", data=1)
        found.codes["listen"] = await refusal(thief, "event.subscribe", topics=[">"])
        found.codes["own topic"] = await refusal(thief, "event.publish", topic="rogue.alarm", data=1)
        for _ in range(0, calls, AT_ONCE):
            answers = await asyncio.gather(*(operator.call("disk.free", {}) for _ in range(AT_ONCE)))
            found.answers.update(answers)
        shown = await operator.call("rpc.discover")
        (method,) = (each for each in shown["methods"] if each["name"] == "disk.free")
        found.schema = method["x-params"] if "x-params" in method else method["params"]
    return found


@dataclass
class Kept:
    """What a principal has left after a flood. recovered: by topic, whether all that was published before is there."""

    recovered: dict[str, bool] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)


async def hoarder(topics: int, config: Config | None = None, size: int = 1_000_000, large: int = 68) -> Kept:
    """A node publishes to so many topics, and large messages besides; another has published a little before.

    The bounds are the gateway's own, unless ``config`` has others. There are ``large`` messages of ``size`` bytes.
    """
    found = Kept()
    async with inside(OP, PI, ROGUE, config=config) as (operator, quiet, flood):
        first = {
            topic: await quiet.call("event.publish", {"topic": topic, "data": number})
            for number, topic in enumerate(f"pi.{number}" for number in range(10))
        }
        for topic in first:
            await quiet.call("event.publish", {"topic": topic, "data": "second"})
        for begin in range(0, topics, AT_ONCE):
            names = [f"rogue.{number}" for number in range(begin, min(begin + AT_ONCE, topics))]
            await asyncio.gather(*(flood.call("event.publish", {"topic": name, "data": 1}) for name in names))
        for number in range(large):
            await flood.call("event.publish", {"topic": f"rogue.{number % 3}", "data": "x" * size})
        since = {topic: {"epoch": at["epoch"], "offset": at["offset"]} for topic, at in first.items()}
        told = await operator.call("event.subscribe", {"topics": list(first), "since": since})
        found.recovered = {topic: state["recovered"] for topic, state in told["topics"].items()}
        found.codes["a new topic"] = await refusal(quiet, "event.publish", topic="pi.new", data=1)
        found.codes["a newcomer's"] = await refusal(operator, "event.publish", topic="op.new", data=1)
    return found


INSIDERS: Final[dict[str, Callable[[int], Coroutine[Any, Any, object]]]] = {"rogue": rogue, "hoarder": hoarder}
"""By name: an attack, for which `--count` says how large it is."""
