"""Addresses, counts, rates, wrong credentials and like lines of the log, by a clock that the test moves."""

import gc
import math
import random
import tracemalloc
from itertools import pairwise

import pytest

from gateway.limits import (
    ACCOUNTS_KEPT,
    FIRST_WAIT,
    FORGET,
    FREE_FAILURES,
    LONGEST_WAIT,
    PATIENCE,
    Accounts,
    Bucket,
    Counts,
    Failures,
    Largest,
    Rate,
    Sampler,
    address_key,
)


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# What counts as one address


@pytest.mark.parametrize(
    ("remote", "key"),
    [
        ("192.0.2.7:47011", "192.0.2.7"),
        ("192.0.2.7:0", "192.0.2.7"),
        ("127.0.0.1:8765", "127.0.0.1"),
        ("[2001:db8:1:2::7]:47011", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:ffff:ffff:ffff:ffff]:1", "2001:db8:1:2::/64"),
        ("[2001:db8:1:3::7]:47011", "2001:db8:1:3::/64"),
        ("[2001:DB8:1:2::7]:47011", "2001:db8:1:2::/64"),
        ("[::1]:47011", "::/64"),
        ("[fe80::1:2%eth0]:47011", "fe80::/64"),
        ("[fe80::9%2]:47011", "fe80::/64"),
        ("unix", ""),
    ],
)
def test_an_address_is_an_ipv4_address_or_an_ipv6_network_of_64_bits(remote: str, key: str) -> None:
    assert address_key(remote) == key


def test_an_ipv4_address_is_the_same_one_on_a_socket_that_serves_ipv6_too() -> None:
    """Such as systemd's: all of the IPv4 internet is in one /64 there, and would share one limit."""
    assert address_key("[::ffff:192.0.2.7]:47011") == address_key("192.0.2.7:47011")
    assert address_key("[::ffff:192.0.2.7]:47011") != address_key("[::ffff:192.0.2.8]:47011")


# How many there are


def test_each_key_has_its_own_count() -> None:
    counts = Counts()
    for key in "aab":
        counts.enter(key)
    assert [counts.of(key) for key in "abc"] == [2, 1, 0]
    counts.leave("a")
    assert [counts.of(key) for key in "abc"] == [1, 1, 0]
    counts.leave("a")
    counts.enter("c")
    assert [counts.of(key) for key in "abc"] == [0, 1, 1]


def test_nobody_leaves_who_is_not_there() -> None:
    counts = Counts()
    with pytest.raises(KeyError):
        counts.leave("a")
    counts.enter("a")
    counts.leave("a")
    with pytest.raises(KeyError):
        counts.leave("a")
    assert counts.of("a") == 0


def test_who_has_left_takes_no_memory() -> None:
    counts = Counts()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(5000):
            key = f"2001:db8:0:{number:x}::/64"
            assert counts.of(key) == 0
            counts.enter(key)
            counts.leave(key)
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()


# A rate


@pytest.mark.parametrize(
    ("per_second", "burst", "at_once"),
    [(5.0, 0, 5), (5.0, 20, 20), (5.0, 1, 1), (0.25, 0, 1), (0.25, 3, 3), (1.0, 0, 1)],
)
def test_a_burst_may_come_at_once(per_second: float, burst: int, at_once: int) -> None:
    bucket = Bucket(Rate(per_second, burst), 50.0)
    assert [bucket.take(50.0) for _ in range(at_once)] == [0.0] * at_once
    assert bucket.take(50.0) == 1.0 / per_second


def test_the_wait_is_until_there_is_one() -> None:
    bucket = Bucket(Rate(4.0, 1), 0.0)
    assert bucket.take(0.0) == 0.0
    assert bucket.take(0.0) == 0.25
    assert bucket.take(0.125) == 0.125, "a refusal takes nothing"
    assert bucket.take(0.25) == 0.0
    assert bucket.take(0.375) == 0.125


def test_what_nobody_takes_is_saved_up_to_one_burst() -> None:
    bucket = Bucket(Rate(4.0, 3), 0.0)
    assert sum(bucket.take(0.0) == 0.0 for _ in range(10)) == 3
    assert sum(bucket.take(0.5) == 0.0 for _ in range(10)) == 2
    assert sum(bucket.take(3600.0) == 0.0 for _ in range(10)) == 3


def test_two_buckets_of_one_rate_do_not_share() -> None:
    rate = Rate(1.0, 1)
    first, second = Bucket(rate, 0.0), Bucket(rate, 0.0)
    assert [first.take(0.0), second.take(0.0), first.take(0.0)] == [0.0, 0.0, 1.0]


def flood(bucket: Bucket, now: float, refusals: int) -> None:
    """Ask at one moment until so many have been refused."""
    while refusals:
        refusals -= bucket.take(now) > 0.0


def test_who_asks_in_vain_for_too_long_ignores_the_rate() -> None:
    bucket = Bucket(Rate(1.0, 3), 0.0)
    assert not bucket.ignored
    flood(bucket, 0.0, PATIENCE * 3)
    assert not bucket.ignored
    flood(bucket, 0.0, 2)
    assert bucket.ignored


def test_a_pause_until_the_burst_is_back_is_forgiven() -> None:
    bucket = Bucket(Rate(1.0, 3), 0.0)
    flood(bucket, 0.0, PATIENCE * 3)
    flood(bucket, 3.0, PATIENCE * 3)
    assert not bucket.ignored


def test_a_shorter_pause_is_not() -> None:
    bucket = Bucket(Rate(1.0, 3), 0.0)
    flood(bucket, 0.0, PATIENCE * 3)
    flood(bucket, 2.0, 4)
    assert bucket.ignored


@pytest.mark.parametrize(("per_second", "burst"), [(10.0, 0), (3.0, 4), (0.7, 2), (1000.0, 10)])
def test_who_waits_as_long_as_told_never_ignores_the_rate(per_second: float, burst: int) -> None:
    rate = Rate(per_second, burst)
    bucket = Bucket(rate, 0.0)
    now, refusals = 0.0, 0
    while refusals < 3 * rate.tolerated:
        wait = bucket.take(now)
        now += wait
        refusals += wait > 0.0
        assert not bucket.ignored, f"after {refusals} refusals"


def test_who_is_refused_far_more_often_than_served_ignores_the_rate_in_the_end() -> None:
    bucket = Bucket(Rate(10.0), 0.0)
    asked = 0
    while not bucket.ignored:
        asked += 1
        bucket.take(asked / 50)
        assert asked < 1000, "five times the rate, for 20 seconds"


# Wrong credentials


def fail(failures: Failures, key: str, times: int) -> None:
    for _ in range(times):
        failures.failed(key)


def test_some_wrong_credentials_are_free(clock: Clock) -> None:
    failures = Failures(clock)
    assert failures.wait("a") == 0.0
    fail(failures, "a", FREE_FAILURES - 1)
    assert failures.wait("a") == 0.0
    failures.failed("a")
    assert failures.wait("a") == FIRST_WAIT


def test_each_wrong_credential_more_doubles_the_wait_up_to_the_longest(clock: Clock) -> None:
    failures = Failures(clock)
    fail(failures, "a", FREE_FAILURES)
    waits = [failures.wait("a")]
    while waits[-1] < LONGEST_WAIT:
        clock.now += waits[-1]
        assert failures.wait("a") == 0.0
        failures.failed("a")
        waits.append(failures.wait("a"))
    assert waits[0] == FIRST_WAIT
    assert all(later == min(2 * earlier, LONGEST_WAIT) for earlier, later in pairwise(waits))
    fail(failures, "a", 3000)
    assert failures.wait("a") == LONGEST_WAIT


def test_a_wait_passes_with_the_time(clock: Clock) -> None:
    failures = Failures(clock)
    fail(failures, "a", FREE_FAILURES + 3)
    assert failures.wait("a") == 8.0
    clock.now += 7.5
    assert failures.wait("a") == 0.5
    clock.now += 0.5
    assert failures.wait("a") == 0.0


def test_an_address_that_is_quiet_for_long_is_forgotten(clock: Clock) -> None:
    failures = Failures(clock)
    fail(failures, "a", FREE_FAILURES + 3)
    fail(failures, "b", FREE_FAILURES + 3)
    clock.now += FORGET - 1.0
    assert failures.wait("a") == 0.0
    failures.failed("a")
    assert failures.wait("a") == 16.0, "not long enough"
    clock.now += 1.0
    assert failures.wait("b") == 0.0
    fail(failures, "b", FREE_FAILURES - 1)
    assert failures.wait("b") == 0.0, "it has all of its free ones again"


def test_addresses_do_not_share_their_failures(clock: Clock) -> None:
    failures = Failures(clock)
    fail(failures, "a", 100)
    assert (failures.wait("a"), failures.wait("b")) == (LONGEST_WAIT, 0.0)


def test_remembers_so_many_addresses_and_forgets_who_has_failed_least_lately(clock: Clock) -> None:
    failures = Failures(clock, max_keys=3)
    for key in "abc":
        fail(failures, key, FREE_FAILURES)
    failures.failed("a")
    failures.failed("d")
    assert failures.wait("b") == 0.0, "it made room"
    assert [failures.wait(key) for key in "acd"] == [2.0, 1.0, 0.0]


def test_who_is_remembered_makes_no_room_for_itself(clock: Clock) -> None:
    failures = Failures(clock, max_keys=2)
    fail(failures, "a", FREE_FAILURES)
    fail(failures, "b", FREE_FAILURES + 1)
    assert [failures.wait(key) for key in "ab"] == [1.0, 2.0]


# Like lines of the log


def admitted(sampler: Sampler, key: str, times: int) -> list[int | None]:
    return [sampler.admit(key) for _ in range(times)]


def test_first_lines_of_a_window_are_admitted(clock: Clock) -> None:
    sampler = Sampler(clock, burst=3, window=10.0)
    assert admitted(sampler, "a", 5) == [0, 0, 0, None, None]


def test_what_was_left_out_is_told_once_with_the_next_line(clock: Clock) -> None:
    sampler = Sampler(clock, burst=2, window=10.0)
    admitted(sampler, "a", 7)
    clock.now += 10.0
    assert admitted(sampler, "a", 4) == [5, 0, None, None]
    clock.now += 25.0
    assert admitted(sampler, "a", 2) == [2, 0]


def test_window_begins_with_its_first_line_and_does_not_slide(clock: Clock) -> None:
    sampler = Sampler(clock, burst=1, window=10.0)
    assert sampler.admit("a") == 0
    clock.now += 9.9
    assert sampler.admit("a") is None
    clock.now += 0.1
    assert sampler.admit("a") == 1


def test_keys_do_not_share(clock: Clock) -> None:
    sampler = Sampler(clock, burst=1, window=10.0)
    assert [sampler.admit(key) for key in "aabbc"] == [0, None, 0, None, 0]


def test_while_so_many_keys_are_remembered_all_others_are_one(clock: Clock) -> None:
    sampler = Sampler(clock, burst=2, window=10.0, max_keys=3)
    assert [sampler.admit(key) for key in "aaabc"] == [0, 0, None, 0, 0]
    assert [sampler.admit(key) for key in "defg"] == [0, 0, None, None]
    assert [sampler.admit(key) for key in "abbc"] == [None, 0, None, 0], "they are counted by themselves"
    clock.now += 10.0
    assert sampler.admit("d") == 0, "the oldest has made room, which took no line more than it had"
    assert sorted(sampler.sweep()) == [("", 4), ("b", 1)], "those of the oldest, too"
    assert sampler.sweep(everything=True) == []


def test_what_was_left_out_is_told_when_its_window_is_over_even_if_no_line_follows(clock: Clock) -> None:
    sampler = Sampler(clock, burst=1, window=10.0)
    admitted(sampler, "a", 4)
    clock.now += 5.0
    admitted(sampler, "b", 2)
    admitted(sampler, "c", 1)
    assert sampler.sweep() == []
    clock.now += 5.0
    assert sampler.sweep() == [("a", 3)]
    assert sampler.sweep() == []
    assert sampler.admit("a") == 0
    assert sampler.sweep(everything=True) == [("b", 1)]
    assert sampler.admit("b") == 0, "it is forgotten"


def test_many_keys_do_not_make_it_grow_and_have_no_more_lines_than_so_many_bursts(clock: Clock) -> None:
    sampler = Sampler(clock, burst=1, window=10.0, max_keys=100)
    told = [sampler.admit(f"198.51.100.{number}") for number in range(10_000)]
    assert told == [0] * 101 + [None] * 9899
    clock.now += 10.0
    assert sampler.sweep() == [("", 9899)]
    assert sampler.admit("another") == 0


# Who holds the most


class Share:
    """A holder of a share."""

    def __init__(self) -> None:
        self.level = -1
        self.held = 0


@pytest.mark.parametrize("most", [1, 50, 10_000, 1 << 26])
def test_the_largest_holder_is_found_to_a_thousandth(most: int) -> None:
    chance, largest = random.Random(most), Largest[Share](most)
    holders = [Share() for _ in range(20)]
    assert largest.holder() is None
    for _ in range(3000):
        one = chance.choice(holders)
        if chance.random() < 0.2:
            one.held = -1
            largest.remove(one)
        else:
            one.held = chance.choice((chance.randrange(most + 1), 0, most))
            largest.place(one, one.held)
        found, biggest = largest.holder(), max(each.held for each in holders)
        if biggest < 0:
            assert found is None
        else:
            assert found is not None
            assert biggest - found.held < largest.grain <= max(1, most // 1000)


def test_a_share_beyond_the_bound_is_the_largest() -> None:
    largest, small, huge = Largest[Share](1000), Share(), Share()
    largest.place(small, 999)
    largest.place(huge, 10**9)
    assert largest.holder() is huge
    largest.remove(huge)
    largest.remove(huge)
    assert largest.holder() is small


# Accounts


def test_an_account_is_one_for_all_connections_of_a_principal_and_goes_when_many_others_have_come() -> None:
    accounts = Accounts(1000)
    one = accounts.of("pi")
    one.held += 700
    assert accounts.of("pi") is one
    assert accounts.of("other") is not one
    assert (one.bound, one.high_mark, accounts.unbounded.bound) == (1000, 500, math.inf)
    for number in range(ACCOUNTS_KEPT - 2):
        accounts.of(str(number))
    assert accounts.of("pi") is one
    accounts.of("one more")
    assert accounts.of("pi") is one, "it has a connection"
    assert len(accounts) == ACCOUNTS_KEPT + 1
    del one
    gc.collect()
    assert len(accounts) == ACCOUNTS_KEPT
    assert accounts.of("pi").held == 0


def test_without_a_bound_all_have_one_account() -> None:
    accounts = Accounts(None)
    assert accounts.of("pi") is accounts.of("other") is accounts.unbounded
    assert len(accounts) == 0
