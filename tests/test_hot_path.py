"""What each message runs through has parameters that CPython calls quickly, alone and across two gateways."""

import inspect
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import pytest
from pytest_aiohttp import AiohttpClient

import gateway
from tests.support.kept import gateway_for
from tests.support.rpc import request
from tests.support.streaming import node, peer, reply

HERE = str(Path(gateway.__file__).parent)
PEERS = str(Path(HERE) / "client")
"""The client is no part of it."""

TIMES = 20

SLOW = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
"""A call of a function with these, or with a parameter that is keyword-only, is never specialised.

That is so in CPython 3.11 (``function_kind`` in Python/specialize.c). Such a call takes about 100 ns more, in a message
that takes 2 µs.
"""


@contextmanager
def watched() -> Iterator[Counter[CodeType]]:
    """Count the calls of the gateway's functions."""
    called: Counter[CodeType] = Counter()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(HERE) and not code.co_filename.startswith(PEERS):
            called[code] += 1

    sys.setprofile(profile)
    try:
        yield called
    finally:
        sys.setprofile(None)


@pytest.mark.apart
async def test_each_message_runs_through_functions_that_are_called_quickly(aiohttp_client: AiohttpClient) -> None:
    client = await gateway_for(aiohttp_client)
    caller, pi, subscriber = await peer(client), await node(client), await peer(client)
    await subscriber.result("event.subscribe", {"topics": ["room.heat"]})
    with watched() as called:
        for number in range(TIMES):
            assert await caller.result("gateway.ping", [number]) == [number]
            await caller.send(request("log.follow", {"lines": number}, number))
            call = await pi.next()
            await pi.say(reply(call["id"], number))
            assert (await caller.next())["result"] == number
            await caller.result("event.publish", {"topic": "room.heat", "data": number})
            assert (await subscriber.next())["params"]["data"] == number
    often = [code for code, times in called.items() if times >= TIMES]
    assert {"Dispatcher.dispatch", "Router.send", "Delivery.deliver"} <= {code.co_qualname for code in often}
    assert [code.co_qualname for code in often if code.co_kwonlyargcount or code.co_flags & SLOW] == []
