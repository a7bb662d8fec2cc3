"""The JavaScript client whose connection outlives its links: tests/js/keeping.mjs, in one Node for each kind of server.

Each test looks at what the trial of its name has found.
"""

import asyncio
import json
import random
import signal
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.support.command import run_node
from tests.support.faulty_proxy import FaultyProxy
from tests.support.patience import START, Sized
from tests.support.process import ROOT, Config, EventLoopName, GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM: Final = str(ROOT / "tests" / "js" / "run.mjs")
BACK: Final = ["connecting", "open", "away", "resumed", "closed"]
ANEW: Final = ["connecting", "open", "away", "connecting", "open", "closed"]
UNKEPT: Final = ["connecting", "open", "waiting", "connecting", "open"]
UNKNOWN: Final = ("connection_lost", "unknown")

Found = dict[str, Any]


async def _trials(kind: str, timeout: float = 2 * START, **given: object) -> Any:
    return await run_node(PROGRAM, kind, json.dumps(given), timeout=timeout)


async def _with_gateway(kind: str, config: Config) -> Any:
    async with GatewayProcess(config) as gateway:
        return await _trials(kind, url=gateway.url("/ws", websocket=True))


def told(call: Found) -> tuple[str, str | None]:
    """The name of a call's error, and what it says of the call."""
    return call["name"], call["outcome"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def found() -> Found:
    """What the promises have come to, with a gateway that keeps at most 128 KiB for a connection."""
    outcome: Found = await _with_gateway(
        "outlives", {"limits": {"max_message_bytes": 65_536, "max_held_bytes": 131_072}}
    )
    return outcome


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impostors() -> Found:
    """What has come of servers that are scripted."""
    outcome: Found = await _trials("impostors")
    return outcome


async def test_a_call_survives_many_links_of_both_sides(found: Found) -> None:
    trial = found["survives"]
    assert (trial["result"], trial["begun"], trial["stopped"]) == ("over", 1, 0)
    assert trial["values"] == [0, 1, 2, "from afar"]
    assert (trial["isSame"], trial["ping"]) == (True, [1])
    assert trial["states"] == ["connecting", "open", *["away", "resumed"] * 3, "closed"]
    assert trial["methods"][:3] == ["connection.resume", "rpc.progress", ""]
    assert "node.register" not in trial["methods"]


async def test_what_is_new_waits_for_the_link(found: Found) -> None:
    trial = found["waits"]
    assert (trial["waiting"], trial["unwanted"], trial["noted"], trial["news"]) == ([2], "gone", "while away", "missed")
    assert told(trial["late"]) == ("timeout", "not_delivered")
    assert (trial["code"], trial["isEager"]) == (1006, True)
    assert trial["states"] == ["connecting", "open", "resumed", "closed"]


async def test_a_lost_reply_to_keep_leaves_an_ordinary_loss(found: Found) -> None:
    trial = found["keepReplyIsLost"]
    assert told(trial) == UNKNOWN
    assert trial["states"] == [*UNKEPT, *BACK[2:]]


async def test_a_resume_that_is_cut_before_its_reply_is_tried_again(found: Found) -> None:
    trial = found["resumeIsCut"]
    assert (trial["result"], trial["begun"], trial["attempts"]) == ("once", 1, 8)
    assert trial["states"] == ["connecting", "open", "resumed", "closed"]
    assert trial["last"] >= 4


async def test_what_ended_the_session_meanwhile_is_heeded_as_a_close_frame(found: Found) -> None:
    trial = found["closedWhileAway"]
    assert (trial["code"], trial["reason"], told(trial["call"])) == (4501, "closed_by_operator", UNKNOWN)


async def test_it_keeps_nothing_if_it_is_told_so(found: Found) -> None:
    trial = found["isUnkept"]
    assert (told(trial["call"]), trial["asked"], trial["states"]) == (UNKNOWN, ["plain.wait"], UNKEPT)


async def test_more_than_may_be_kept_ends_the_session(found: Found) -> None:
    trial = found["overruns"]
    assert trial["refused"] == ["overloaded", "not_delivered"]
    assert trial["isAway"] == [True, False]
    assert told(trial["call"]) == ("node_lost", "unknown")
    assert "resumed" not in trial["states"]


async def test_it_can_be_closed_while_it_is_away(found: Found) -> None:
    assert found["closesWhileAway"]["states"] == ["connecting", "open", "closed"]


async def test_it_gives_up_when_it_was_away_for_too_long() -> None:
    trial = await _with_gateway("isTooLate", {"server": {"hold_timeout": 0.5}})
    assert (told(trial["found"]), trial["pong"]) == (UNKNOWN, [1])
    assert trial["state"] in ("waiting", "connecting")
    assert "resumed" not in trial["states"]
    assert trial["states"][:3] == ANEW[:3]


async def test_a_gateway_that_keeps_nothing_is_used_without() -> None:
    assert await _with_gateway("isOld", {"server": {"hold_timeout": 0}}) == {"states": UNKEPT, "errors": []}


async def test_after_a_restart_of_the_gateway_everything_begins_anew() -> None:
    async with GatewayProcess() as first, GatewayProcess() as second, FaultyProxy("127.0.0.1", first.port) as proxy:
        trying = asyncio.create_task(_trials("restarts", url=proxy.url()))
        await first.wait_event("node.online", node="flag")
        proxy.turn_to("127.0.0.1", second.port)
        first.signal(signal.SIGKILL)
        trial = await trying
    assert (told(trial["call"]), trial["again"], trial["news"], trial["stopped"]) == (UNKNOWN, "here", "fresh", 1)
    assert trial["states"] == ANEW


async def test_a_gateway_that_drains_gets_no_resume(impostors: Found) -> None:
    trial = impostors["drains"]
    assert (told(trial["call"]), trial["second"]) == (UNKNOWN, "connection.keep")
    assert trial["states"] == [*UNKEPT, "closed"]


async def test_a_gateway_that_has_drained_meanwhile_is_heeded_as_one_that_drains(impostors: Found) -> None:
    trial = impostors["drainsMeanwhile"]
    assert (told(trial["call"]), trial["code"], trial["reason"]) == (UNKNOWN, 1001, "shutdown")
    assert trial["first"] == ["connection.keep", "connection.resume", "connection.keep"]
    assert trial["states"] == ["connecting", "open", "away", "waiting", "connecting", "open", "closed"]


async def test_what_the_gateway_has_not_had_is_sent_again_in_order(impostors: Found) -> None:
    trial = impostors["sendsAgain"]
    assert trial["first"] == ["connection.keep", "connection.ack", 1, 2, 3, 4, 5]
    assert trial["second"] == ["connection.resume", 3, 4, 5, 6]
    assert trial["answers"] == [3, 4]
    assert (trial["resume"]["session"], trial["resume"]["attempt"]) == ("s", 1)


async def test_messages_that_count_are_acknowledged_in_time(impostors: Found) -> None:
    assert impostors["acknowledges"] == [0, 64, 128, 130]


async def test_a_message_that_ends_every_link_does_not_do_so_for_ever(impostors: Found) -> None:
    assert (told(impostors["poisons"]["call"]), impostors["poisons"]["links"]) == (UNKNOWN, True)


async def test_a_lost_link_that_cannot_be_cut_is_left_open_until_the_connection_has_another(impostors: Found) -> None:
    trial = impostors["leavesOpen"]
    assert trial["isResumed"] is True
    assert 0 <= trial["order"][0] < trial["order"][1]


async def test_numbers_that_cannot_be_end_the_connection(impostors: Found) -> None:
    assert impostors["lies"] == {
        "resume": [1002, "9 messages have come to the gateway, 0 were sent"],
        "ack": [1002, "message 9 was acknowledged, 0 were sent"],
    }


async def test_whatever_the_links_do_each_call_is_run_and_answered_once(loop: EventLoopName, sized: Sized) -> None:
    calls, cuts = sized(300, 5_000), sized(12, 100)
    config = {"heartbeat": {"interval": 0.5, "timeout": 0.5}, "limits": {"max_in_flight": 64}}
    async with GatewayProcess(config, loop=loop) as gateway, FaultyProxy("127.0.0.1", gateway.port) as proxy:
        torturing = asyncio.create_task(_trials("torture", 10 * START, url=proxy.url(), calls=calls, cuts=cuts))
        for node in ("rack", "back"):
            await gateway.wait_event("node.online", node=node)
        harming = asyncio.create_task(_harm(proxy, random.Random(loop), stall=sized(1, 4) * 0.5))
        try:
            trial = await torturing
        finally:
            harming.cancel()
        print(proxy.cuts, trial["resumed"], trial["next"], trial["sent"], trial["gaps"], trial["states"])
    assert (trial["wrong"], trial["pending"]) == ([], ["last"])
    numbers = range(trial["next"])
    assert trial["ran"] == [number for number in numbers if number % 10 != 9]
    assert sorted(trial["answers"]) == [[number, number] for number in numbers]
    assert trial["notes"] == list(range(trial["sent"]))
    assert trial["cancelled"] == ["enough"] * trial["sent"]
    assert trial["news"] == list(range(trial["sent"]))
    assert trial["gaps"] == 0
    assert min(trial["resumed"]) >= cuts
    assert set(trial["states"]) == {*BACK}


async def _harm(proxy: FaultyProxy, chance: random.Random, stall: float) -> None:
    """Cut, stall for up to ``stall`` seconds, and swallow, until cancelled."""
    while True:
        await asyncio.sleep(chance.uniform(0.02, 0.2))
        how = chance.random()
        if how < 0.05:
            proxy.swallow = True
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            proxy.swallow = False  # the connections that have lost something are never whole again
        elif how < 0.1:
            proxy.delay = chance.uniform(0.0, stall)
            await asyncio.sleep(proxy.delay)
            proxy.delay = 0.0
        elif how < 0.4:
            proxy.cut_after(chance.randrange(1, 3000))
        else:
            proxy.cut("fin" if how < 0.7 else "reset")
