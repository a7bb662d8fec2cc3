"""The client behind a proxy that cuts, delays and drops: every call ends with the right outcome, no event is lost."""

import asyncio
import contextlib
import gc
import inspect
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from gateway.client import Backoff, CallError, Client, Event, Gap, ServedCall, State, connect
from tests.support.both_ways import Side
from tests.support.command import run
from tests.support.faulty_proxy import FaultyProxy
from tests.support.fleet import until
from tests.support.kept import is_kept
from tests.support.patience import START, WAIT, Sized
from tests.support.process import ROOT, EventLoopName, GatewayProcess, StartGateway

SEED = 20261123


def quick() -> Backoff:
    """Pauses that take no time."""
    return Backoff(0.001, 0.005)


@asynccontextmanager
async def through_proxy(process: GatewayProcess, **options: Any) -> AsyncIterator[tuple[FaultyProxy, Client]]:
    """A client that comes back at once, and the proxy before it."""
    async with (
        FaultyProxy(process.host, process.port) as proxy,
        connect(proxy.url(), backoff=quick(), **options) as client,
    ):
        yield proxy, client


class Ledger:
    """What became of each call, and how often the node has run it."""

    def __init__(self) -> None:
        self.begun = 0
        self.runs: Counter[int] = Counter()
        self.ends: dict[int, str] = {}

    async def serve(self, params: dict[str, int], call: ServedCall) -> int:
        """The node's method."""
        self.runs[params["number"]] += 1
        await asyncio.sleep(params["number"] % 3 / 1000)
        return params["number"]

    async def ask(self, client: Client, going: Callable[[], bool]) -> None:
        """Call and note the end, as long as it goes."""
        while going():
            self.begun += 1
            number = self.begun
            try:
                answer = await client.call("work.do", {"number": number}, timeout=WAIT, retry=number % 2 == 0)
                self.ends[number] = "answered" if answer == number else "another's answer"
            except CallError as error:
                self.ends[number] = str(error.outcome)

    def check(self) -> None:
        """No call without an end, and none whose end is not true."""
        assert len(self.ends) == self.begun
        for number, end in self.ends.items():
            runs = self.runs[number]
            assert runs in {"answered": (1,), "not_delivered": (0,), "unknown": (0, 1)}[end], (number, end, runs)


class Follower:
    """Reads a subscription and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Event | Gap] = []

    async def read(self, client: Client, topics: str) -> None:
        async for item in client.subscribe(topics):
            self.told.append(item)

    def last(self) -> Any:
        """What was published last."""
        return next((item.data for item in reversed(self.told) if isinstance(item, Event)), None)

    def check(self, first: int) -> int:
        """In order, each once, and what is missing was told. Returns how many gaps there were."""
        expected, gaps = first, 0
        for item in self.told:
            if isinstance(item, Gap):
                gaps += 1
                expected = 0
            else:
                assert expected in (0, item.data), (expected, item)
                expected = item.data + 1
        return gaps


async def harm(proxies: list[FaultyProxy], chance: random.Random, cuts: int, stall: float = 0.0) -> None:
    """Cut, reset, delay and swallow, until there were enough cuts. What is delayed may ``stall`` for some seconds."""
    while sum(proxy.cuts for proxy in proxies) < cuts:
        proxy = chance.choice(proxies)
        match chance.randrange(6):
            case 0:
                proxy.cut_after(chance.randrange(1, 400))
            case 1:
                proxy.swallow = True
                await asyncio.sleep(0.002)
                proxy.cut("reset")
            case 2:
                proxy.delay = max(0.002, chance.random() * stall)
            case 3:
                proxy.cut("reset")
            case _:
                proxy.cut()
        await asyncio.sleep(chance.random() * 0.008)
        proxy.swallow, proxy.delay = False, 0.0
    for proxy in proxies:
        proxy.heal()


async def test_many_cuts_without_keeping(gateway: StartGateway, sized: Sized) -> None:
    process = await gateway()
    ledger, follower, chance = Ledger(), Follower(), random.Random(SEED)
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(through_proxy(process, keep=False)) for _ in range(4)]
        (_, node), *others = pairs
        node.method("work.do")(ledger.serve)
        await node.serve("worker")
        publisher = await stack.enter_async_context(connect(process.url("/ws", websocket=True)))
        following = asyncio.create_task(follower.read(others[0][1], "count.*"))
        tasks = [asyncio.create_task(harm([proxy for proxy, _ in pairs], chance, sized(100, 1000)))]

        async def publish() -> int:
            count = 0
            while not tasks[0].done():
                count += 1
                await publisher.publish("count.up", count)
                await asyncio.sleep(0.01)
            return count

        asking = [ledger.ask(client, lambda: not tasks[0].done()) for _, client in others for _ in range(3)]
        count, *_ = await asyncio.gather(publish(), *tasks, *asking)
        await until(lambda: follower.last() == count, "the last event never came")
        following.cancel()
        await asyncio.wait([following])
        await answers(others[1][1], "work.do", {"number": 0})
    ledger.check()
    gaps = follower.check(follower.told[0].data if isinstance(follower.told[0], Event) else 0)
    ends = Counter(ledger.ends.values())
    assert ends["answered"] and ends["unknown"], ends
    print(ends, "runs", sum(ledger.runs.values()), "events", len(follower.told), "gaps", gaps)


async def hears(follower: Follower, publisher: Client) -> int:
    """Publish until the follower hears it, and so has begun; return how much."""
    count = 0
    async with asyncio.timeout(WAIT):
        while follower.last() is None:
            count += 1
            await publisher.publish("count.up", count)
            await asyncio.sleep(0.01)
    return count


@pytest.mark.parametrize(("seed", "loop"), [(1, "uvloop"), (2, "asyncio")])
async def test_a_kept_connection_loses_and_repeats_nothing(
    gateway: StartGateway, sized: Sized, seed: int, loop: EventLoopName
) -> None:
    process = await gateway(loop=loop)
    follower, chance, calls = Follower(), random.Random(seed), sized(150, 10_000)
    async with (
        through_proxy(process) as (first, left),
        through_proxy(process) as (second, right),
        connect(process.url("/ws", websocket=True)) as publisher,
    ):
        sides = Side(left, "left", "right"), Side(right, "right", "left")
        for side in sides:
            await side.serve()
            await is_kept(side.client)
        names = left.welcome["connId"], right.welcome["connId"]
        following = asyncio.create_task(follower.read(left, "count.*"))
        heard = await hears(follower, publisher)
        harming = asyncio.create_task(harm([first, second], chance, sized(12, 500), sized(0, 2)))

        def going(number: int) -> bool:
            return number < calls or not harming.done()

        async def publish() -> int:
            count = heard
            while not harming.done():
                count += 1
                await publisher.publish("count.up", count)
                await asyncio.sleep(0.01)
            return count

        count, *_ = await asyncio.gather(publish(), harming, *(side.work(going) for side in sides))
        await until(lambda: follower.last() == count, "the last event never came")
        following.cancel()
        await asyncio.wait([following])
        # A notification has no answer: all have come when what was sent after them has.
        for side, other in (sides, sides[::-1]):
            await side.client.call(f"{other.name}.do", {"number": -1, "reports": 0}, timeout=WAIT)
            assert other.ran.pop() == -1
        assert (left.welcome["connId"], right.welcome["connId"]) == names
    sides[0].check(sides[1])
    sides[1].check(sides[0])
    assert (follower.check(0), follower.last()) == (0, count)
    resumed = len(process.events("connection.resumed"))
    assert resumed
    print("sent", [len(side.sent) for side in sides], "resumed", resumed, "events", len(follower.told))


async def answers(client: Client, method: str, params: Any) -> Any:
    """Call until the node is back and answers."""
    async with asyncio.timeout(WAIT):
        while True:
            try:
                return await client.call(method, params, retry=True)
            except CallError as error:
                if error.name not in ("method_not_found", "node_lost"):
                    raise
                await asyncio.sleep(0.01)


async def come_and_go(client: Client, publisher: Client, topic: str, going: Callable[[], bool]) -> int:
    """Leave a subscription and begin another to the same topic at once, as long as it goes. Each one hears.

    A few come when it is over: a link that is cut would hide that one is deaf.
    """
    heard, calm = 0, 3
    while going() or calm:
        calm -= not going()
        async with asyncio.timeout(WAIT), client.subscribe(topic) as events:
            await publisher.publish(topic, heard)
            async for item in events:
                if isinstance(item, Gap) or item.data == heard:  # told that something is missing, it could ask
                    break
        heard += 1
    return heard


async def change_its_mind(client: Client, large: str, going: Callable[[], bool]) -> int:
    """Cancel calls, in every state that they may be in, and send large messages between them, as long as it goes."""
    rounds = 0
    while going():
        calls = [asyncio.create_task(client.call("work.do", {"number": 0, "large": large})) for _ in range(20)]
        for _ in range(rounds % 5):
            await asyncio.sleep(0)
        for call in calls[rounds % 3 :]:
            call.cancel()
        await asyncio.wait(calls, timeout=WAIT)
        assert all(call.done() for call in calls)
        rounds += 1
    return rounds


def held() -> Counter[str]:
    """What there is of clients: their objects, by type, and their tasks. The log that pytest keeps has the ends."""
    gc.collect()
    types = [type(one) for one in gc.get_objects()]
    tasks = [task.get_coro() for task in asyncio.all_tasks()]
    found = Counter(one.__name__ for one in types if str(one.__module__).startswith("gateway.client"))
    coroutines = [work for work in tasks if inspect.iscoroutine(work)]
    found.update(work.__qualname__ for work in coroutines if "gateway/client" in work.cr_code.co_filename)
    del found["End"]
    return found


async def forgets(before: Counter[str]) -> None:
    """Wait until clients hold no more than ``before``, whatever has gone on."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT):
            while not held() <= before:
                await asyncio.sleep(0.1)
    assert held() - before == Counter()


async def test_subscriptions_that_come_and_go_and_calls_that_are_cancelled_through_cuts(
    gateway: StartGateway, sized: Sized
) -> None:
    process = await gateway({"limits": {"max_in_flight": 8}})
    ledger, chance = Ledger(), random.Random(SEED)
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(through_proxy(process)) for _ in range(3)]
        node = await stack.enter_async_context(connect(process.url("/ws", websocket=True)))
        node.method("work.do")(ledger.serve)
        await node.serve("worker")
        for _, client in pairs:
            await is_kept(client)
        before = held()
        tasks = [asyncio.create_task(harm([proxy for proxy, _ in pairs], chance, sized(40, 500)))]

        def going() -> bool:
            return not tasks[0].done()

        work = [come_and_go(client, node, f"count.{number}", going) for number, (_, client) in enumerate(pairs)]
        work += [change_its_mind(client, "x" * 100_000, going) for _, client in pairs]
        asking = [ledger.ask(client, going) for _, client in pairs for _ in range(3)]
        done, _ = await asyncio.gather(asyncio.gather(*work), asyncio.gather(*asking))
        await tasks[0]
        assert all(done), "everything had its turn"
        await until(lambda: node.serving_calls == 0, "some calls were not cancelled")
        await forgets(before)
    ledger.check()


async def test_cancelling_a_task_cancels_at_the_node(gateway: StartGateway) -> None:
    process = await gateway()
    cancelled = asyncio.Event()
    async with through_proxy(process) as (_, caller), through_proxy(process) as (_, node):

        @node.method("work.long")
        async def long(params: Any, call: ServedCall) -> None:
            try:
                await call.progress("begun")
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        await node.serve("worker")
        running = caller.start("work.long")
        assert await anext(running) == "begun"
        waiting = asyncio.create_task(_result(running))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait_for(cancelled.wait(), WAIT)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await process.wait_event("call.failed", error="cancelled")


async def _result(running: Awaitable[Any]) -> Any:
    return await running


async def test_a_call_in_flight_fails_at_once_when_the_connection_breaks(gateway: StartGateway) -> None:
    process = await gateway()
    begun, ended = asyncio.Event(), asyncio.Event()
    async with (
        through_proxy(process, keep=False) as (proxy, caller),
        connect(process.url("/ws", websocket=True)) as node,
    ):

        @node.method("work.long")
        async def long(params: Any, call: ServedCall) -> None:
            begun.set()
            try:
                await asyncio.sleep(600)
            finally:
                ended.set()

        await node.serve("worker")
        calling = asyncio.create_task(caller.call("work.long", retry=True))
        await asyncio.wait_for(begun.wait(), WAIT)
        proxy.cut("reset")
        with pytest.raises(CallError) as failed:
            await asyncio.wait_for(calling, WAIT)
        assert (failed.value.name, failed.value.outcome, failed.value.temporary) == ("connection_lost", "unknown", True)
        await asyncio.wait_for(ended.wait(), WAIT)
        assert await caller.call("gateway.ping", [1]) == [1]


async def test_a_dead_gateway_is_noticed_by_the_heartbeat(gateway: StartGateway) -> None:
    process = await gateway()
    async with through_proxy(process, heartbeat=1.0, connect_timeout=10.0, keep=False) as (proxy, client):
        proxy.swallow = True
        with pytest.raises(CallError) as failed:
            await client.call("gateway.ping", timeout=WAIT)
        assert failed.value.outcome == "unknown"
        assert "does not answer" in client.why
        proxy.heal()
        assert await client.call("gateway.ping", [2], timeout=WAIT) == [2]


async def test_what_was_swallowed_by_a_dead_link_is_sent_again(gateway: StartGateway) -> None:
    process = await gateway()
    async with through_proxy(process, heartbeat=0.4) as (proxy, client):
        await is_kept(client)
        proxy.swallow = True
        calling = asyncio.create_task(client.call("gateway.ping", [1], timeout=WAIT))
        await until(lambda: client.state is State.AWAY, "the heartbeat did not notice")
        assert "does not answer" in client.why
        proxy.heal()
        assert await calling == [1]


async def test_a_client_that_was_closed_by_an_operator_while_it_was_away(gateway: StartGateway) -> None:
    process = await gateway()
    async with (
        through_proxy(process) as (proxy, client),
        connect(process.url("/ws", websocket=True)) as operator,
    ):
        await is_kept(client)
        proxy.refuse = True
        proxy.cut()
        held = await process.wait_event("connection.held")
        calling = asyncio.create_task(client.call("gateway.ping", timeout=WAIT))
        await operator.call("connection.close", {"connId": held["connId"]})
        proxy.heal()
        assert [state async for state in client.states()][-1] is State.CLOSED
        assert client.why == "4501 closed_by_operator"
        with pytest.raises(CallError) as failed:
            await calling
        assert (failed.value.name, failed.value.outcome) == ("connection_lost", "not_delivered")


async def test_a_client_that_was_suspended_fails_no_call(gateway: StartGateway) -> None:
    """Suspended for longer than either heartbeat: its call, and the call to it, succeed."""
    process = await gateway({"heartbeat": {"interval": 0.2, "timeout": 0.2}})
    begun, goes_on = asyncio.Event(), asyncio.Event()
    async with connect(process.url("/ws", websocket=True)) as here:

        @here.method("here.wait")
        async def wait(params: Any, call: ServedCall) -> str:
            begun.set()
            await goes_on.wait()
            return "answered"

        await here.serve("here")
        arguments = (sys.executable, "-c", SUSPENDED, process.url("/ws", websocket=True))
        there = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(START):
                await begun.wait()
                there.send_signal(signal.SIGSTOP)
                await process.wait_event("connection.held", cause="heartbeat_timeout")
                call = asyncio.create_task(here.call("there.do", [7], timeout=WAIT))
                goes_on.set()
                await asyncio.sleep(0.5)
                there.send_signal(signal.SIGCONT)
                assert await call == [7]
                assert (await there.communicate())[0] == b"answered\n"
            assert process.events("connection.resumed", cause="heartbeat_timeout")
        finally:
            if there.returncode is None:
                there.kill()
                await there.wait()


SUSPENDED = """
import asyncio, sys
from gateway.client import connect

async def main():
    async with connect(sys.argv[1], heartbeat=0.2) as client:
        called = asyncio.Event()

        @client.method("there.do")
        def do(params, call):
            called.set()
            return params

        await client.serve("there")
        await client.call("gateway.ping")  # behind the acknowledgement, without which nothing is held
        print(await client.call("here.wait"))
        await called.wait()
        await client.call("gateway.ping")  # behind the reply

asyncio.run(main())
"""


async def test_calls_wait_for_the_connection_within_their_time(gateway: StartGateway) -> None:
    process = await gateway()
    async with through_proxy(process) as (proxy, client):
        proxy.refuse = True
        proxy.cut()
        await until(lambda: client.state is not State.OPEN, "the loss was not noticed")
        with pytest.raises(CallError) as failed:
            await client.call("gateway.ping", timeout=0.1)
        assert (failed.value.name, failed.value.outcome) == ("timeout", "not_delivered")
        waiting = asyncio.create_task(client.call("gateway.ping", [3]))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        proxy.refuse = False
        assert await waiting == [3]


async def test_what_is_gone_is_told_and_what_is_kept_is_made_up_for(gateway: StartGateway) -> None:
    process = await gateway({"events": {"history_count": 3}})
    async with (
        through_proxy(process) as (proxy, client),
        connect(process.url("/ws", websocket=True)) as publisher,
        client.subscribe("a.*") as subscription,
    ):
        events = aiter(subscription)
        await publisher.publish("a.many", 0)
        assert _told(await anext(events)) == ("a.many", 0)
        proxy.refuse = True
        proxy.cut()
        await until(lambda: client.state is not State.OPEN, "the loss was not noticed")
        for number in range(1, 6):
            await publisher.publish("a.many", number)
        for number in range(2):
            await publisher.publish("a.new", number)
        proxy.refuse = False
        assert _told(await anext(events)) == ("a.many", None)
        assert [_told(await anext(events)) for _ in range(2)] == [("a.new", 0), ("a.new", 1)]
        await publisher.publish("a.many", 6)
        assert _told(await anext(events)) == ("a.many", 6)


def _told(item: Event | Gap) -> tuple[str, Any]:
    return item.topic, item.data if isinstance(item, Event) else None


async def _for_ever(begun: asyncio.Event) -> None:
    begun.set()
    await asyncio.sleep(600)


async def test_a_gateway_that_was_started_again(gateway: StartGateway) -> None:
    first = await gateway()
    async with FaultyProxy(first.host, first.port) as proxy, connect(proxy.url(), backoff=quick()) as client:
        client.method("work.do")(lambda params, call: params)
        await client.serve("worker")
        async with client.subscribe("a.b") as subscription:
            await client.publish("a.b", 1)
            events = aiter(subscription)
            assert _told(await anext(events)) == ("a.b", 1)
            second = await gateway()
            begun = asyncio.Event()
            client.method("work.long")(lambda params, call: _for_ever(begun))
            await until(lambda: bool(first.events("node.online", serves=2)), "the method was not registered")
            calling = asyncio.create_task(client.call("work.long"))
            await asyncio.wait_for(begun.wait(), WAIT)
            proxy.turn_to(second.host, second.port)
            proxy.cut()
            with pytest.raises(CallError) as failed:
                await asyncio.wait_for(calling, WAIT)
            assert (failed.value.name, failed.value.outcome) == ("connection_lost", "unknown")
            assert _told(await anext(events)) == ("a.b", None)
            await client.publish("a.b", 2, retry=True)
            assert _told(await anext(events)) == ("a.b", 2)
            assert await answers(client, "work.do", [7]) == [7]


def test_nothing_is_left_behind() -> None:
    """In an interpreter of its own with all its checks on: no task, no transport, no error that nobody retrieves."""
    ended = run(program=LEFT_BEHIND)
    assert (ended.status, ended.stdout.split()[:3], ended.stderr) == (0, ["1", "lost", "[]"], ""), ended


LEFT_BEHIND = """
import asyncio, gc, logging, sys, threading, warnings

warnings.simplefilter("error")
logging.getLogger("gateway.client.connection").setLevel(logging.ERROR)  # it warns of what is refused
from gateway.client import Backoff, CallError, connect
known = {"gateway.errors", "gateway.rpc", "gateway.rpc.jsonrpc"}
assert not {name for name in sys.modules if name.startswith("gateway.")} - {
    name for name in sys.modules if name.startswith("gateway.client")} - known
from tests.support.faulty_proxy import FaultyProxy
from tests.support.process import GatewayProcess

async def main():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 60.0  # a busy machine is no defect
    async with GatewayProcess() as process, FaultyProxy(process.host, process.port) as proxy:
        tasks, threads = asyncio.all_tasks(), threading.active_count()
        quick = Backoff(0.001, 0.002)
        async with connect(proxy.url(), backoff=quick) as node, connect(proxy.url(), keep=False) as caller:
            @node.method("work.long")
            async def long(params, call):
                await asyncio.sleep(30)
            await node.serve("worker")
            async with node.subscribe("a") as events:
                await caller.publish("a", 1)
                async for event in events:
                    print(event.data)
                    break
            nobody_waits = caller.start("work.long")
            await asyncio.sleep(0.1)
            proxy.cut("reset")
            try:
                await nobody_waits
            except CallError:
                print("lost")
            node.start("work.long")
            await asyncio.sleep(0.1)
            proxy.refuse = True  # it is away when it is closed
            proxy.cut("reset")
            async with asyncio.timeout(30):
                while node.state.value != "away":
                    await asyncio.sleep(0.01)
        # The proxy ends its connections by itself.
        left = [task for task in asyncio.all_tasks() - tasks if "faulty_proxy" not in repr(task)]
        print(left + [threading.active_count() - threads] * (threading.active_count() > threads))

asyncio.run(main(), debug=True)
gc.collect()
"""
