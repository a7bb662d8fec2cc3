"""The connections that are over: a bound for all, and a share for each principal and address, however often it came."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.scopes import ANONYMOUS, NOBODY, Principal, origin
from gateway.connections.history import HISTORY, Closed, History
from gateway.errors import CLIENT_CLOSE


def principal(name: str) -> Principal:
    return Principal(name, "node", ())


def closed(number: int, who: Principal, remote: str = "192.0.2.7:1") -> Closed:
    return Closed(str(number), who, remote, 1000.0 + number, 1.0, CLIENT_CLOSE, 0, 0, 0, 0, origin(who, remote))


def names(history: History) -> Counter[str]:
    """How many entries each principal has."""
    return Counter(entry.principal.name for entry in history)


def test_the_last_of_one_are_remembered_in_their_order() -> None:
    history = History(3)
    for number in range(10):
        history.append(closed(number, ANONYMOUS))
    assert [entry.conn_id for entry in history] == ["7", "8", "9"]
    assert [entry.conn_id for entry in reversed(history)] == ["9", "8", "7"]
    assert len(history) == 3


def test_who_comes_and_goes_all_the_time_forgets_only_itself() -> None:
    """1,120 connects of one peer once erased what was known of all others."""
    history = History()
    others = [principal(f"other-{number}") for number in range(40)]
    for number, other in enumerate(others * 10):
        history.append(closed(number, other))
    for number in range(20 * HISTORY):
        history.append(closed(number, principal("storm")))
    assert len(history) == HISTORY
    assert names(history) == {other.name: 10 for other in others} | {"storm": HISTORY - 400}
    assert next(reversed(history)).conn_id == str(20 * HISTORY - 1), "and the last of its own is there"


def test_who_had_all_of_it_makes_room_until_the_shares_are_even() -> None:
    history = History(100)
    for number in range(300):
        history.append(closed(number, principal("a")))
    for number in range(300):
        history.append(closed(number, principal("b")))
        assert len(history) == 100
    assert names(history) == {"a": 50, "b": 50}
    for number in range(300):
        history.append(closed(number, principal("c")))
    assert sorted(names(history).values()) == [33, 33, 34]


@pytest.mark.parametrize("who", [ANONYMOUS, NOBODY])
def test_without_a_principal_it_is_the_address_that_has_a_share(who: Principal) -> None:
    history = History(10)
    history.append(closed(0, who, "192.0.2.8:1"))
    for number in range(1, 100):
        history.append(closed(number, who, f"192.0.2.7:{number}"))
    assert [entry.conn_id for entry in history] == ["0", *map(str, range(91, 100))]


def test_more_origins_than_places_are_all_alike() -> None:
    history = History(10)
    for number in range(1000):
        history.append(closed(number, principal(str(number))))
    assert [entry.conn_id for entry in history] == [str(number) for number in range(990, 1000)]


@given(st.lists(st.sampled_from("abcdef"), max_size=60), st.integers(0, 12))
def test_whoever_comes_the_oldest_of_one_that_has_the_most_goes(comers: list[str], most: int) -> None:
    history, left = History(most), list[Closed]()
    for number, name in enumerate(comers):
        left.append(closed(number, principal(name)))
        history.append(left[-1])
        if len(left) > most:
            count = Counter(entry.principal.name for entry in left)
            (gone,) = set(left) - set(history)
            assert count[gone.principal.name] == max(count.values())
            assert gone == next(entry for entry in left if entry.principal.name == gone.principal.name)
            left.remove(gone)
        assert list(history) == left
