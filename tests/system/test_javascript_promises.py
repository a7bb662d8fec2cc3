"""The JavaScript client where it is easy to break a promise: tests/js/trials.mjs, in one Node for each kind of server.

Each test looks at what the trial of its name has found.
"""

import itertools
import json
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.support.command import run_node
from tests.support.patience import START
from tests.support.process import ROOT, GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

JS: Final = ROOT / "tests" / "js"
LIMIT: Final = 65_536
UNSENDABLE: Final = {
    "bigint": "JSON has no form for a bigint",
    "cycle": "the answer cannot be sent as JSON",
    "surrogate": "a lone surrogate is no text",
    "map": "JSON has no form for this kind of object: Map",
    "set": "JSON has no form for this kind of object: Set",
    "error": "JSON has no form for this kind of object: Error",
    "promise": "JSON has no form for this kind of object: Promise",
    "bytes": "JSON has no form for this kind of object: Uint8Array",
    "function": "JSON has no form for a function",
    "toJSON": "the answer cannot be sent as JSON",
    "long": "the answer is larger than the gateway takes",
}
"""Values that no message can hold, by their names in the trials, and what the caller of a method is told."""

Found = dict[str, Any]


async def _trials(*options: str, kind: str, **given: object) -> Any:
    return await run_node(*options, str(JS / "run.mjs"), kind, json.dumps(given), timeout=2 * START)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def found() -> Found:
    """What the promises have come to, with a real gateway."""
    async with GatewayProcess({"limits": {"max_message_bytes": LIMIT}}) as gateway:
        outcome: Found = await _trials(kind="promises", url=gateway.url("/ws", websocket=True))
        return outcome


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile() -> Found:
    """What has come of servers that mean ill, or are none."""
    outcome: Found = await _trials(kind="hostilities")
    return outcome


def refused(why: str) -> Found:
    """The error of a call whose method has run, and has given no answer that could be sent."""
    error = {"code": -32603, "name": "internal_error", "temporary": False, "outcome": "unknown"}
    return error | {"message": f"Internal error: {why}" if why else "Internal error"}


def too_big(**more: object) -> Found:
    """The error of who sends a message that is too long."""
    error = {"code": -32000, "name": "message_too_big", "temporary": False, "outcome": "not_delivered"}
    return error | {"message": f"A message is over {LIMIT} bytes"} | more


async def test_every_result_is_sent_or_refused_with_its_reason(found: Found) -> None:
    assert found["results"] == {name: refused(why) for name, why in UNSENDABLE.items()}


async def test_every_error_is_sent_or_refused_with_its_reason(found: Found) -> None:
    more = {"code": "the code of an error must be an integer", "nothing": ""}
    assert found["errors"] == {name: refused(why) for name, why in (UNSENDABLE | more).items()}


async def test_the_node_learns_of_each_refusal_and_goes_on(found: Found) -> None:
    assert (found["alive"], found["lost"], found["links"]) == (["still there"], [], 2)
    assert (
        len(found["defects"]) == 2 * len(UNSENDABLE) + 2 + 1
    )  # of results, of errors, and the one that ran for nested
    assert {"a secret", "null", f"A message is over {LIMIT} bytes"} <= set(found["defects"])


async def test_an_outcome_is_of_the_call_that_it_is_told_for(found: Found) -> None:
    assert found["nested"] == {"outcomes": ["unknown"] * 2, "ran": 2}


async def test_progress_that_cannot_be_sent_fails_where_it_is_reported(found: Found) -> None:
    refusals = found["progress"]["refused"]
    assert found["progress"]["values"] == ["fine"]
    assert refusals.pop("long") == too_big(isTypeError=False)
    assert refusals.pop("toJSON")["message"] == "a secret"
    assert {name: one["isTypeError"] for name, one in refusals.items()} == dict.fromkeys(refusals, True)


async def test_who_sends_too_much_is_told_and_nobody_else_notices(found: Found) -> None:
    trial = found["tooLong"]
    failures = trial["found"]
    assert failures.pop("notify") == too_big(isTypeError=False)
    assert failures == dict.fromkeys(("call", "batch", "publish", "subscribe", "ready", "register"), too_big())
    assert (trial["alive"], trial["states"]) == ([1], ["connecting", "open", "closed"])


async def test_what_cannot_be_sent_is_refused_where_it_is_given(found: Found) -> None:
    assert found["misused"] == {
        "address": [True] * 4,
        "token": True,
        "method": True,
        "topics": [True] * 2,
        "since": True,
        "buffer": "the buffer of a subscription holds one event at least",
        "calls": [True] * 3,
    }


async def test_a_subscription_that_begins_where_another_ends_hears(found: Found) -> None:
    assert found["resubscribes"] == list(range(20))


async def test_calls_beyond_the_limit_wait_for_their_turn(found: Found) -> None:
    queued = found["queues"]
    assert queued["many"] == list(range(300))
    assert (queued["after"], queued["gone"]) == (list(range(64)), 64)


async def test_a_node_takes_no_more_calls_than_it_serves(found: Found) -> None:
    busy = found["isBusy"]
    refusal = busy["refused"]
    assert (refusal["code"], refusal["name"], refusal["temporary"]) == (-32009, "overloaded", True)
    assert (busy["results"], busy["begun"]) == (["over", "over"], 3)


async def test_progress_is_given_one_at_a_time_and_what_is_dropped_is_told(found: Found) -> None:
    reports = found["reports"]
    assert reports["few"] == [[number, 0] for number in range(40)]
    assert reports["most"] == 1
    place = 0
    for value, missed in reports["many"]:
        assert value == place + missed
        place = value + 1
    assert place == 1000
    assert reports["plain"] == list(range(1000))


async def test_a_slow_reader_gets_what_it_can_and_a_gap_for_the_rest(found: Found) -> None:
    seen = found["lags"]
    for before, after in itertools.pairwise(seen):
        assert "gap" in (before, after) or after == before + 1
        assert (before, after) != ("gap", "gap")
    assert 0 < seen.count("gap") <= 15


async def test_the_address_is_completed_and_a_wrong_one_is_told_at_once(found: Found) -> None:
    addresses = found["addresses"]
    for name in ("bare", "http"):
        assert addresses[name]["outcome"] == "open"
    for name, why in (
        ("nothing", "HTTP 404 there is no gateway at this path"),
        ("page", "HTTP 200 what answers there is no WebSocket of a gateway"),
        ("origin", "HTTP 403 the gateway does not allow this origin"),
    ):
        one = addresses[name]
        assert (one["why"], one["states"]) == (why, ["connecting", "closed"])
        assert (one["outcome"]["name"], why in one["outcome"]["message"]) == ("closed", True)


async def test_nodes_own_websocket_fails_at_once_and_claims_nothing() -> None:
    async with GatewayProcess({}) as gateway:
        url = gateway.url("/ws", websocket=True)
        trial = await _trials("--experimental-websocket", kind="builtin", url=url)
    assert trial["pong"] == [1]
    assert trial["reasons"] == [[1006, True]] * 3
    assert (trial["call"]["outcome"], trial["opened"]["name"]) == ("not_delivered", "timeout")


async def test_a_gateway_that_drains_at_once_is_not_hammered(hostile: Found) -> None:
    assert hostile["drainsAtOnce"] == {"least": [100] * 3, "drawn": [250, 500, 1000]}


async def test_after_a_shutdown_without_a_word_the_clients_spread(hostile: Found) -> None:
    assert hostile["shutsDown"] == pytest.approx([500, 5250, 9990.5])


async def test_retry_after_is_heeded(hostile: Found) -> None:
    refusals = hostile["refuses"]
    assert {name: (one["code"], one["pause"]) for name, one in refusals.items()} == {
        "full": (503, 7_050),
        "many": (429, 300_050),
        "date": (503, 50),
        "broken": (500, 50),
    }
    assert refusals["full"]["reason"] == "the gateway is full or draining"


async def test_a_server_that_hangs_has_one_connection_of_a_client(hostile: Found) -> None:
    assert hostile["hangs"]["most"] == 1
    assert hostile["hangs"]["all"] >= 4


async def test_a_message_that_is_too_big_ends_the_link_and_not_the_client(hostile: Found) -> None:
    (lost, answered), links = hostile["isTooBig"]["found"], hostile["isTooBig"]["all"]
    assert (lost["name"], lost["outcome"], answered, links) == ("connection_lost", "unknown", 1, 2)


async def test_only_the_gateway_says_that_a_call_was_not_delivered(hostile: Found) -> None:
    assert hostile["isRefused"] == {
        "gateway": {"outcome": 4, "asked": 4},
        "node": {"outcome": "unknown", "asked": 1},
        "foreign": {"outcome": None, "asked": 1},
    }


async def test_a_node_tells_the_outcome_of_its_own_call_and_not_of_one_that_it_has_made(hostile: Found) -> None:
    inner = {"code": "overloaded", "temporary": True}
    assert hostile["letsThrough"] == {
        "refused": inner | {"outcome": "unknown"},
        "served": inner | {"nodeRetryAfterMs": 100, "outcome": "unknown"},
        "own": inner | {"retryAfterMs": 100},
        "bigint": {"code": "internal_error", "temporary": False, "outcome": "unknown"},
    }


async def test_nonsense_from_the_gateway_ends_no_process(hostile: Found) -> None:
    trial = hostile["babbles"]
    assert set(trial["errors"]) == {
        "a message of the gateway cannot be read",
        "the gateway keeps the connection, but does not say how",
    }
    assert trial["found"]["name"] == "overloaded"


async def test_a_gap_in_a_pattern_is_passed_on_and_is_no_position_to_come_back_from(hostile: Found) -> None:
    assert hostile["losesItKnowsNotWhat"] == {"seen": [{"gap": True, "topic": "a.*"}] * 4, "asked": [{}, {}]}


async def test_nothing_is_lost_untold_if_a_second_loss_comes_while_a_topic_is_caught_up_with(hostile: Found) -> None:
    asked = {"a.new": {"epoch": "e", "offset": 0}}
    assert hostile["isLostAgainInTheMiddle"] == {
        "kept": {"seen": [1, 2, 3, 4, 5, 6], "asked": asked},
        "gone": {"seen": ["gap", 6], "asked": asked},
    }


async def test_a_listener_to_the_state_can_close_the_client_and_wake_it(hostile: Found) -> None:
    assert hostile["isToldByItsListeners"] == {
        "connecting": "closed",
        "withoutToken": "closed",
        "waiting": "closed",
        "woken": "closed",
        "wokenWithoutToken": "closed",
        "opened": ["connecting", "closed"],
        "asked": 1,
    }


async def test_what_is_no_gateway_is_told_as_that(hostile: Found) -> None:
    text, stranger, null = (one["message"] for one in hostile["isNoGateway"])
    assert "what came is not JSON" in text
    assert "this is no gateway" in stranger
    assert "this is no gateway" in null


async def test_no_connection_has_its_cause_in_words(hostile: Found) -> None:
    away = hostile["isAway"]
    cause = "connect ECONNREFUSED 127.0.0.1:1"
    assert (away["code"], away["reason"]) == (1006, cause)
    assert cause in away["opened"]
    assert cause in away["call"]["message"]
    assert away["call"]["outcome"] == "not_delivered"


async def test_a_token_that_is_none_is_told(hostile: Found) -> None:
    assert [one["reason"] for one in hostile["hasNoToken"]] == [
        "no token: a token is a string, not a number",
        "no token: the token has a line break inside, or another control character",
        "no token: none today",
    ]


async def test_a_token_that_expires_soon_is_not_asked_for_again_and_again(hostile: Found) -> None:
    assert hostile["expiresSoon"] == 2
