"""The counts of streams: what may be sent, what waits to be told, and what may be on its way to one peer."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rpc.streams import MAX_CREDIT, Flow, Grant, Pool

MOST = 1000
LEAST = 10


def flow(pool: Pool | None = None) -> Flow:
    return Flow(pool or Pool(), MOST, LEAST)


def opened(credit: int, octets: int, pool: Pool | None = None) -> Flow:
    """A flow whose sender has been told so much."""
    made = flow(pool)
    made.grant(credit, octets)
    made.told(*made.offer(MOST, flowing=True))
    return made


def test_each_value_costs_one_credit_and_its_length() -> None:
    made = opened(3, 100)
    assert made.spend(40)
    assert (made.credit, made.octets) == (2, 60)
    assert made.spend(1)
    assert made.spend(1)
    assert not made.spend(1), "no credit is left"
    assert (made.credit, made.octets) == (0, 58)


def test_a_value_may_be_longer_than_what_is_left_and_the_next_one_waits_until_that_is_made_up_for() -> None:
    made = opened(9, 100)
    assert made.spend(250)
    assert not made.spend(1)
    made.grant(0, 150)
    made.told(*made.offer(MOST, flowing=True))
    assert (made.octets, made.spend(1)) == (0, False)
    made.grant(0, 1)
    made.told(*made.offer(MOST, flowing=True))
    assert made.spend(1)


def test_grants_add_up_to_the_bounds_and_no_further() -> None:
    made = flow()
    assert made.grant(MAX_CREDIT - 1, MOST - 1)
    assert made.grant(5, 5)
    assert not made.grant(5, 5)
    assert not made.grant(0, 0)
    made.told(*made.offer(10 * MOST, flowing=True))
    assert (made.credit, made.octets) == (MAX_CREDIT, MOST)
    assert made.spend(7)
    assert made.grant(5, 50)
    made.told(*made.offer(10 * MOST, flowing=True))
    assert (made.credit, made.octets) == (MAX_CREDIT, MOST)


def test_what_is_promised_to_a_peer_leaves_less_room_for_its_other_streams() -> None:
    pool = Pool()
    first, second = opened(1, 700, pool), flow(pool)
    second.grant(4, 500)
    assert second.offer(MOST, flowing=False) == (4, 300)
    assert second.offer(700, flowing=False) == (4, 0)
    assert second.offer(700, flowing=True) == (4, LEAST)
    assert first.spend(650)
    assert second.offer(700, flowing=False) == (4, 500)
    first.close()
    assert pool.promised == 0


def test_a_sender_is_not_told_of_a_few_bytes_at_a_time() -> None:
    made = flow()
    made.grant(4, 500)
    assert made.offer(LEAST - 1, flowing=False) == (4, 0)
    assert made.offer(LEAST, flowing=False) == (4, LEAST)
    made.told(4, 498)
    assert made.offer(MOST, flowing=False) == (0, 2), "but of the last"


def test_of_flows_that_want_room_those_after_one_that_gets_none_are_not_asked() -> None:
    asked: list[str] = []

    class Wanting:
        def __init__(self, name: str, more: bool) -> None:
            self.name, self.more = name, more

        def tell(self) -> bool:
            asked.append(self.name)
            return self.more

    pool = Pool()
    pool.wanting = dict.fromkeys([Wanting("a", True), Wanting("b", False), Wanting("c", True)])
    pool.unread = dict(pool.wanting)
    pool.share()
    assert asked == ["a", "b"]
    pool.read_on()
    assert asked[2:] == ["a", "b", "c"], "what waits for the peer itself is told in any case"


@pytest.mark.parametrize(
    "text",
    [
        '{"credit":-1}',
        f'{{"credit":{MAX_CREDIT + 1}}}',
        '{"credit":1.5}',
        '{"credit":"1"}',
        '{"credit":null}',
        '{"bytes":-1}',
        '{"bytes":true}',
        '{"octets":1}',
        "[1,2]",
        "1",
    ],
)
def test_what_is_no_grant(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Grant)


def test_what_is_a_grant() -> None:
    assert msgspec.json.decode('{"bytes":7,"credit":1024}', type=Grant) == Grant(1024, 7)
    assert msgspec.json.decode("{}", type=Grant) == Grant(0, 0)


class Plain:
    """What one direction must be, by plain sums: all that was granted, told and sent."""

    def __init__(self) -> None:
        self.granted, self.told, self.sent = [0, 0], [0, 0], [0, 0]

    def left(self, which: int) -> int:
        """What the receiver has granted and has not got."""
        return self.granted[which] - self.sent[which]

    def sendable(self, which: int) -> int:
        """What the sender knows of and has not sent."""
        return self.told[which] - self.sent[which]


grants = st.tuples(st.just("grant"), st.integers(0, 2), st.integers(0, MAX_CREDIT), st.integers(0, MOST))
tells = st.tuples(st.just("tell"), st.integers(0, 2), st.integers(-MOST, 3 * MOST), st.booleans())
values = st.tuples(st.just("value"), st.integers(0, 2), st.sampled_from((1, 2, 9, 300, 5 * MOST)), st.just(0))
closes = st.tuples(st.just("close"), st.integers(0, 2), st.just(0), st.just(0))


@given(st.lists(st.one_of(grants, tells, values, values, closes), max_size=60))
def test_whatever_three_streams_of_a_peer_do_the_counts_are_those_of_plain_sums(steps: list[Any]) -> None:
    pool = Pool()
    flows, plains = [flow(pool) for _ in range(3)], [Plain() for _ in range(3)]
    for what, which, one, two in steps:
        it, plain = flows[which], plains[which]
        if what == "grant":
            it.grant(one, two)
            plain.granted[0] += min(one, MAX_CREDIT - plain.left(0))
            plain.granted[1] += min(two, MOST - plain.left(1))
        elif what == "tell":
            credit, octets = it.offer(one, bool(two))
            assert credit == plain.granted[0] - plain.told[0], "of credit the sender is told at once"
            assert 0 <= octets <= plain.granted[1] - plain.told[1]
            bounded = pool.promised + octets <= one
            assert not octets or bounded or (two and plain.sendable(1) + octets <= LEAST)
            wants = plain.granted[1] > plain.told[1]
            assert not (two and wants and plain.sendable(1) <= 0) or octets > 0, "none waits that may not send at all"
            it.told(credit, octets)
            plain.told[0] += credit
            plain.told[1] += octets
        elif what == "value":
            may = plain.sendable(0) > 0 and plain.sendable(1) > 0
            assert it.spend(one) is may
            if may:
                plain.sent[0] += 1
                plain.sent[1] += one
        else:
            it.close()
            assert not it.spend(1)
            flows[which], plains[which] = flow(pool), Plain()
        for it, plain in zip(flows, plains, strict=True):
            assert (it.credit, it.octets) == (plain.sendable(0), plain.sendable(1))
            assert (it.credit + it.more_credit, it.octets + it.more_octets) == (plain.left(0), plain.left(1))
            assert it.credit + it.more_credit <= MAX_CREDIT
            assert it.octets + it.more_octets <= MOST
        assert pool.promised == sum(max(0, plain.sendable(1)) for plain in plains)
