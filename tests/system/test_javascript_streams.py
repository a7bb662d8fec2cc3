"""Streams of the JavaScript client: tests/js/streaming.mjs, in one Node for each kind of server.

Each test looks at what the trial of its name has found.
"""

import asyncio
import json
import random
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.support.command import run_node
from tests.support.faulty_proxy import FaultyProxy
from tests.support.patience import START, Sized
from tests.support.process import ROOT, GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROGRAM: Final = str(ROOT / "tests" / "js" / "run.mjs")
LIMITS: Final = {"max_message_bytes": 65_536, "max_held_bytes": 131_072}
CREDIT: Final = 16
"""That a client gives by default."""

Found = dict[str, Any]


async def _trials(kind: str, timeout: float = 2 * START, **given: object) -> Any:
    return await run_node(PROGRAM, kind, json.dumps(given), timeout=timeout)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def found() -> Found:
    """What has come of streams through a gateway that keeps at most 128 KiB for a connection."""
    async with GatewayProcess({"limits": LIMITS}) as gateway:
        outcome: Found = await _trials("streams", url=gateway.url("/ws", websocket=True))
        return outcome


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def floods() -> Found:
    """What has come of servers that are scripted."""
    outcome: Found = await _trials("floods")
    return outcome


async def test_a_node_is_ahead_of_a_slow_reader_by_the_credit_at_most(found: Found) -> None:
    by_credit, one_by_one, by_bytes = found["slowReader"]
    for trial in found["slowReader"]:
        assert (trial["values"], trial["result"]) == (list(range(20)), "done")
    assert (by_credit["ahead"], one_by_one["ahead"], by_bytes["ahead"]) == (4, 1, 3)


async def test_a_caller_is_ahead_of_a_slow_node_by_the_credit_at_most(found: Found) -> None:
    trial = found["slowNode"]
    assert (trial["values"], trial["late"]) == (list(range(50)), "closed")
    assert 1 < trial["ahead"] <= CREDIT + 1


async def test_values_flow_both_ways_in_order_and_are_granted_in_steps(found: Found) -> None:
    trial = found["echoes"]
    assert (trial["error"], trial["count"], trial["same"]) == (None, 200, True)
    assert trial["grants"] == [66, 198, True]


async def test_a_method_that_does_not_wait_loses_no_value(found: Found) -> None:
    trial = found["hasty"]
    assert (trial["few"], trial["result"]) == ({"values": list(range(100)), "error": None}, "done")
    assert trial["refused"] == [[259, "overloaded"], 41]
    assert trial["many"] == 259


async def test_leaving_the_loop_cancels(found: Found) -> None:
    trial = found["left"]
    assert trial["node"] == ["cancelled", True, True]
    assert (trial["result"]["name"], trial["result"]["outcome"]) == ("cancelled", "unknown")
    assert (trial["next"], trial["send"]) == ("cancelled", "cancelled")


async def test_a_stream_that_is_cancelled_ends_everywhere_with_the_reason(found: Found) -> None:
    trial = found["cancelled"]
    assert trial["cancel"] == ["cancelled"] * 3
    assert trial["signal"] == ["Error"] * 3
    assert trial["node"] == ["cancelled", True, True]


async def test_an_error_of_the_method_comes_after_its_values(found: Found) -> None:
    trial = found["failed"]
    assert trial["result"] == [7, "out of paper"]
    assert (trial["values"], trial["error"]) == ([1, 2], {"name": "error", "code": 7, "outcome": None})
    assert trial["send"] == "error"


async def test_a_value_that_cannot_be_sent_costs_nothing(found: Found) -> None:
    trial = found["unsendable"]
    assert trial["seen"] == ["TypeError", "TypeError", "message_too_big"]
    assert (trial["values"], trial["error"]) == (["fine"], None)


async def test_a_stream_needs_a_node_that_knows_streams(found: Found) -> None:
    refused = {"name": "invalid_params", "code": -32602, "outcome": "not_delivered"}
    trial = found["unknown"]
    assert (trial["old"], trial["result"]) == ({"values": [], "error": refused}, refused)
    assert trial["plain"] == [True, True]
    assert trial["wrong"] == [*["RangeError"] * 3, "TypeError"]


async def test_a_stream_waits_for_its_node(found: Found) -> None:
    trial = found["waits"]
    assert trial == {"values": ["here"], "error": None, "timeLeftMs": 30_000, "late": "closed"}


async def test_a_loss_ends_both_loops_with_the_reason(found: Found) -> None:
    lost = {"name": "connection_lost", "code": -32000, "outcome": "unknown"}
    caller, node = found["lost"]["caller"], found["lost"]["node"]
    assert (caller["error"], caller["node"], caller["send"]) == (lost, ["cancelled", True, True], "connection_lost")
    assert (node["error"]["name"], node["error"]["outcome"]) == ("node_lost", "unknown")
    assert node["node"] == ["connection_lost", True, True]


async def test_values_wait_rather_than_overfill_what_is_kept(found: Found) -> None:
    trial = found["muchIsKept"]
    assert trial["read"] == [list(range(40))] * 3
    assert (trial["results"], trial["states"]) == ("sent", ["connecting", "open", "away", "resumed", "closed"])


async def test_values_wait_while_the_connection_is_away(found: Found) -> None:
    assert found["fromAfar"] == {"sent": [["node", "open"], ["caller", "open"]], "values": [1, 2]}


async def test_values_wait_while_very_much_waits_for_the_network(found: Found) -> None:
    assert found["networkIsFull"] == [0, "late"]


async def test_a_method_may_read_on_later(found: Found) -> None:
    assert found["readsOn"] == [[0, 1, 2], list(range(3, 40))]


async def test_values_in_a_batch_cost_what_they_are_long(floods: Found) -> None:
    assert floods["inABatch"] == {"values": [1, "ä", {"a": None}], "credit": 3, "bytes": 1 + 4 + 10}


async def test_a_quiet_stream_is_renewed(floods: Found) -> None:
    assert floods["renews"] == {"begin": {"credit": 16, "bytes": 2**20}, "grants": [[True, 0, 0]] * 4}


async def test_a_quiet_stream_is_renewed_once_while_the_connection_is_away(floods: Found) -> None:
    assert floods["renewsFromAfar"] == [1, 1]


async def test_a_stream_that_its_own_renewal_ends_leaves_no_timer() -> None:
    trial = await _trials("endsByItsRenewal", START)  # that Node ends is what is looked at
    assert trial["result"] == "connection_lost"
    assert trial["states"][:3] == ["connecting", "open", "away"]


async def test_more_than_was_granted_ends_the_connection(floods: Found) -> None:
    assert floods["overruns"] == {"progress": 1002, "push": 1002}


async def test_a_stream_loses_nothing_through_cuts(sized: Sized) -> None:
    cuts = sized(8, 100)
    async with GatewayProcess() as gateway, FaultyProxy("127.0.0.1", gateway.port) as proxy:
        streaming = asyncio.create_task(_trials("streamThroughCuts", 10 * START, url=proxy.url(), cuts=cuts))
        await gateway.wait_event("node.online", node="wire")
        harming = asyncio.create_task(_cut(proxy, random.Random(cuts)))
        try:
            trial = await streaming
        finally:
            harming.cancel()
    sent = trial["sent"]
    assert (trial["error"], trial["result"]) == (None, sent)
    assert trial["values"] == trial["seen"] == [sent, True]
    assert trial["resumed"] >= cuts
    assert set(trial["states"]) == {"connecting", "open", "away", "resumed", "closed"}


async def _cut(proxy: FaultyProxy, chance: random.Random) -> None:
    """Cut, at once or in the middle of what comes next, until cancelled."""
    while True:
        await asyncio.sleep(chance.uniform(0.02, 0.1))
        how = chance.random()
        if how < 0.5:
            proxy.cut_after(chance.randrange(1, 3000))
        else:
            proxy.cut("fin" if how < 0.75 else "reset")
