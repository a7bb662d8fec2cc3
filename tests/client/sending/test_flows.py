"""The two directions of a stream, against a session that notes what is said: what is granted, spent and given back."""

import asyncio
import json
from typing import Any

import pytest
from msgspec import Raw

from gateway.client.errors import CallError
from gateway.client.sending import flows as module
from gateway.client.sending.flows import Flows, Grant
from gateway.client.sending.outbox import Outgoing
from tests.support.fleet import until


class Desk:
    """A session that takes everything, as long as its link is there."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.linked = asyncio.Event()
        self.linked.set()
        self.said = list[Any]()

    def limit(self, name: str, default: int) -> int:
        """The outbox of the gateway; nothing else is asked for."""
        return {"maxOutboxBytes": self.most}.get(name, default)

    def fits(self, data: bytes) -> bool:
        """Whether it takes a message of this size."""
        return len(data) <= 1000

    def post(self, data: bytes) -> None:
        """Take it at once."""
        self.said.append(json.loads(data))

    async def send(self, data: bytes, message: Outgoing | None = None) -> None:
        """Take it when there is a link."""
        await self.linked.wait()
        assert message is not None
        message.left = True
        self.post(data)

    def heard(self, method: str) -> list[Any]:
        """The params of what was said by this method, without the id."""
        params = [one["params"] for one in self.said if one["method"] == method]
        assert all(one.pop("id") == 7 for one in params)
        return params


def begun(desk: Desk, deadline: float | None = None) -> Flows:
    """The flows of a caller, in this session."""
    flows = Flows("rpc.credit", "rpc.push")
    flows.begin(desk, b"7", deadline)
    return flows


async def test_what_is_taken_is_granted_again_in_halves_and_the_last_may_be_longer() -> None:
    desk = Desk()
    flows = begun(desk)
    flows.inflow.open(4, 100)
    for value in (b"1", b"2", b"3"):
        assert flows.put(Raw(value)) is None
    assert flows.put(Raw(b'"%b"' % (b"x" * 1200))) is None
    assert len(flows.inflow) == 4
    overrun = flows.put(Raw(b"5"))
    assert overrun is not None
    assert (overrun.name, overrun.temporary, overrun.outcome) == ("overloaded", False, "unknown")
    assert [await anext(flows.inflow) for _ in range(3)] == [1, 2, 3]
    assert desk.heard("rpc.credit") == [{"credit": 2, "bytes": 2}]
    desk.said.clear()
    assert len(await anext(flows.inflow)) == 1200
    # More than half of an outbox is never granted at once, and the credit not twice.
    assert desk.heard("rpc.credit") == [
        {"credit": 2, "bytes": 500},
        {"credit": 0, "bytes": 500},
        {"credit": 0, "bytes": 203},
    ]


@pytest.mark.parametrize("value", [b"1e999", b"[" * 5000 + b"]" * 5000])
async def test_a_value_that_cannot_be_decoded_is_no_hole_in_the_stream(value: bytes) -> None:
    flows = begun(Desk())
    flows.inflow.open(4, 100)
    error = flows.put(Raw(value))
    assert error is not None
    assert (error.code, error.outcome) == (0, None)
    assert "cannot be decoded" in error.message


async def test_a_value_leaves_in_its_turn_when_there_are_credit_and_bytes() -> None:
    desk = Desk()
    flows = begun(desk)
    sends = [asyncio.create_task(flows.outflow.send("x" * 8)) for _ in range(4)]
    for credit, octets, sent in ((3, 0, 0), (0, 11, 2), (0, 9, 2), (0, 1, 3), (0, 50, 3), (1, 0, 4)):
        flows.granted(Grant(Raw(b"7"), credit, octets))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(desk.said) == sent, (credit, octets)
    await asyncio.gather(*sends)
    assert (flows.outflow.credit, flows.outflow.octets) == (0, 31)


async def test_what_did_not_leave_costs_nothing() -> None:
    desk = Desk()
    flows = begun(desk)
    flows.granted(Grant(Raw(b"7"), 2, 100))
    desk.linked.clear()
    sending = asyncio.create_task(flows.outflow.send("away"))
    await until(lambda: flows.outflow.credit == 1, "it does not wait for the link")
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    with pytest.raises(ValueError, match="more than the gateway takes"):
        await flows.outflow.send("x" * 2000)
    assert (flows.outflow.credit, flows.outflow.octets, desk.said) == (2, 100, [])


async def test_the_end_comes_after_all_values_and_once() -> None:
    desk = Desk()
    flows = begun(desk)
    sending = asyncio.create_task(flows.outflow.send(1))
    await asyncio.sleep(0)
    ends = [asyncio.create_task(flows.outflow.finish()) for _ in range(2)]
    await asyncio.sleep(0)
    assert desk.said == []
    flows.granted(Grant(Raw(b"7"), 1, 1))
    await asyncio.gather(sending, *ends)
    assert desk.heard("rpc.push") == [{"value": 1}, {"end": True}]
    with pytest.raises(CallError, match="no more values"):
        await flows.outflow.send(2)


async def test_an_end_with_a_reason_wakes_all_that_wait_and_keeps_what_has_come() -> None:
    flows = begun(Desk())
    flows.inflow.open(2, 100)
    flows.put(Raw(b"1"))
    waits = [asyncio.create_task(flows.outflow.send(1)), asyncio.create_task(flows.outflow.send(2))]
    await asyncio.sleep(0)
    flows.end(CallError(1, "over"))
    flows.end(CallError(2, "later"))
    assert flows.put(Raw(b"2")) is None, "it may have crossed with the end"
    assert await anext(flows.inflow) == 1
    for work in (anext(flows.inflow), anext(flows.inflow), *waits):
        with pytest.raises(CallError, match="over"):
            await work
    await flows.outflow.finish()


async def test_a_quiet_stream_is_renewed_and_one_that_is_away_no_more_than_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LEAST_THIRD", 0.001)
    desk = Desk()
    flows = begun(desk, 0.003)
    await until(lambda: len(desk.said) >= 2, "nothing is renewed")
    desk.linked.clear()
    before = len(desk.said)
    await asyncio.sleep(0.02)
    desk.linked.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(desk.said) <= before + 1
    flows.end(None)
    before = len(desk.said)
    await asyncio.sleep(0.01)
    assert len(desk.said) == before
    assert set(map(str, desk.heard("rpc.credit"))) == {"{'credit': 0, 'bytes': 0}"}
