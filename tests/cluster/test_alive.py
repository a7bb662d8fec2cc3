"""Who is alive and who is lost, in looks; and until when a call may begin. Nothing here waits."""

import pytest

from gateway.cluster.alive import (
    AWAY,
    FORGET,
    LEAVING,
    LONGEST,
    LOOKS,
    MAX_GONE,
    MAX_MEMBERS,
    REJOINED,
    SILENT,
    UNREACHABLE,
    Alive,
    Beat,
    Fence,
    Member,
    address,
    period,
)


class Others(Alive):
    """The others, with a clock of the test's own; what was told of them is noted."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.told: list[str] = []
        super().__init__(self._note_joined, self._note_lost, 1.5, lambda: self.now)

    def _note_joined(self, member: Member) -> None:
        assert self.others[member.address] is member, "it is told after the change"
        self.told.append(f"+{member.address.decode()}")

    def _note_lost(self, member: Member, cause: str) -> None:
        assert member.address not in self.others, "it is told after the change"
        assert member.lost == cause
        self.told.append(f"-{member.address.decode()} {cause}")

    def hear(self, who: str, join: int = 1, number: int = 1, leaving: bool = False) -> bool:
        """Take a heartbeat of an instance with eight such digits."""
        return self.heard(Beat(address(who * 8, join), who * 8, who, number, leaving=leaving))

    def take(self) -> list[str]:
        """What was told since this was last asked."""
        told, self.told = self.told, []
        return told


@pytest.fixture
def others() -> Others:
    return Others()


def test_an_address_is_an_instance_and_how_often_it_has_joined() -> None:
    assert address("607e1421-36a8-4d8f-a15c-41d0ae0b4a76", 12) == "607e1421_12"


def test_the_first_heartbeat_makes_a_member_and_each_says_its_number(others: Others) -> None:
    assert not others.hear("a", number=7)
    (member,) = others.others.values()
    assert (member.address, member.instance, member.name, member.beat) == (b"aaaaaaaa_1", "aaaaaaaa", "a", b"7")
    assert not others.hear("a", number=8)
    assert member.beat == b"8"
    assert others.take() == ["+aaaaaaaa_1"]


def test_silence_of_a_timeout_loses_a_member_and_a_heartbeat_in_time_keeps_it(others: Others) -> None:
    others.hear("a")
    others.hear("b")
    for number in range(3 * LOOKS):
        others.look()
        if number % LOOKS == LOOKS - 1:
            others.hear("a", number=number)
    assert others.take() == ["+aaaaaaaa_1", "+bbbbbbbb_1", f"-bbbbbbbb_1 {SILENT}"]
    others.look()
    assert others.take() == []
    for _ in range(LOOKS):
        others.look()
    assert others.take() == [f"-aaaaaaaa_1 {SILENT}"]


def test_a_gateway_looks_often_whatever_its_timeout_is() -> None:
    assert period(0.3) == 0.3 / LOOKS
    assert period(1.5) == 1.5 / LOOKS
    assert period(60.0) == LONGEST


@pytest.mark.parametrize(("timeout", "looks"), [(0.0, 15), (0.5, 15), (1.5, 15), (1.6, 16), (3.0, 30)])
def test_a_member_that_lets_calls_begin_for_longer_is_waited_for_longer(
    others: Others, timeout: float, looks: int
) -> None:
    others.heard(Beat("aaaaaaaa_1", "aaaaaaaa", "a", 1, timeout=timeout))
    for _ in range(looks):
        others.look()
    assert others.take() == ["+aaaaaaaa_1"]
    others.look()
    assert others.take() == [f"-aaaaaaaa_1 {SILENT}"]


def test_a_gateway_that_stood_still_takes_nobody_for_lost(others: Others) -> None:
    others.hear("a")
    others.look()
    others.now += 3600
    others.look()
    assert others.take() == ["+aaaaaaaa_1"]


def test_who_was_taken_for_lost_is_told_and_is_no_member_under_this_address(others: Others) -> None:
    others.hear("a")
    others.lose(others.others[b"aaaaaaaa_1"], UNREACHABLE)
    others.take()
    assert others.hear("a", number=2)
    others.now += FORGET
    assert others.hear("a", number=3)
    assert others.others == {}
    assert not others.hear("a", join=2)
    assert others.take() == ["+aaaaaaaa_2"]


def test_addresses_of_the_lost_are_forgotten_some_day_and_bounded(others: Others) -> None:
    for number in range(MAX_GONE + 1):
        others.hear("a", join=number + 1)
    others.take()
    others.lose(others.others[b"aaaaaaaa_%d" % (MAX_GONE + 1)], SILENT)
    assert others.take() == [f"-aaaaaaaa_{MAX_GONE + 1} {SILENT}"]
    assert not others.hear("a", join=1), "the oldest is forgotten"
    assert others.take() == ["+aaaaaaaa_1"]
    others.now += FORGET + 1
    assert not others.hear("a", join=MAX_GONE + 1)
    assert others.take() == ["-aaaaaaaa_1 rejoined", f"+aaaaaaaa_{MAX_GONE + 1}"]


def test_losing_twice_is_losing_once(others: Others) -> None:
    others.hear("a")
    member = others.others[b"aaaaaaaa_1"]
    others.lose(member, UNREACHABLE)
    others.lose(member, SILENT)
    others.part(AWAY)
    assert others.take() == ["+aaaaaaaa_1", f"-aaaaaaaa_1 {UNREACHABLE}"]
    assert member.lost == UNREACHABLE


def test_a_member_that_leaves_is_lost_at_once(others: Others) -> None:
    others.hear("a")
    assert not others.hear("a", number=2, leaving=True)
    assert others.hear("a", number=3), "it has no business to go on"
    assert not others.hear("b", leaving=True)
    assert others.take() == ["+aaaaaaaa_1", f"-aaaaaaaa_1 {LEAVING}"]


def test_a_new_address_of_an_instance_loses_the_older_one_before_it_is_told(others: Others) -> None:
    others.hear("a", join=9)
    others.hear("a", join=10)
    assert others.take() == ["+aaaaaaaa_9", f"-aaaaaaaa_9 {REJOINED}", "+aaaaaaaa_10"]
    assert others.hear("a", join=9)
    assert list(others.others) == [b"aaaaaaaa_10"]


def test_a_late_heartbeat_of_an_older_address_is_ignored(others: Others) -> None:
    others.hear("a", join=10)
    assert not others.hear("a", join=9)
    assert others.take() == ["+aaaaaaaa_10"]


def test_who_is_no_member_any_more_blames_no_other(others: Others) -> None:
    others.hear("a")
    others.hear("b")
    members = list(others.others.values())
    others.take()
    others.hear("c")
    others.lose(others.others[b"cccccccc_1"], SILENT)
    found: list[list[str]] = []
    others._left = lambda member, cause: found.append([each.lost for each in members])
    others.part(AWAY)
    assert found == [[AWAY, AWAY]] * 2, "all are lost before the first is told"
    others.take()
    assert not others.hear("a")
    assert not others.hear("c"), "whoever it was lost for is no more"
    assert others.take() == ["+aaaaaaaa_1", "+cccccccc_1"]


@pytest.mark.parametrize("sender", ["", "a", "aaaaaaaa_", "aaaaaaaa_0", "aaaaaaaa_1 x", "aaaaaaaa_1\r\nPUB", "*", "é"])
def test_what_is_no_address_gets_no_mail(others: Others, sender: str) -> None:
    assert not others.heard(Beat(sender, "aaaaaaaa", "a", 1))
    assert others.take() == []


def test_there_are_no_more_members_than_the_most(others: Others) -> None:
    for number in range(MAX_MEMBERS + 10):
        others.heard(Beat(f"{number:08x}_1", str(number), str(number), 1))
    assert len(others.others) == MAX_MEMBERS


# The fence


def unseen() -> None:
    raise AssertionError("a standstill was noticed that was none")


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def looks(self, fence: Fence, seconds: float) -> None:
        """Go on for so long, while the gateway does not stand still."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            fence.look()


def test_a_call_may_begin_as_long_as_its_heartbeat_is_young() -> None:
    clock = Clock()
    fence = Fence(1.5, clock, unseen)
    assert not fence.is_fresh(b"0")
    fence.step()
    assert fence.number == 1
    clock.looks(fence, 1.5)
    clock.now = 51.5
    assert fence.is_fresh(b"1")
    clock.now += 0.001
    assert not fence.is_fresh(b"1")
    fence.step()
    assert fence.is_fresh(b"2")
    assert not any(map(fence.is_fresh, (b"1", b"3", b"02", b"", b"x", b"-1")))


def test_after_a_loss_no_call_of_before_begins() -> None:
    clock = Clock()
    fence = Fence(1.5, clock, unseen)
    fence.step()
    fence.clear()
    assert not fence.is_fresh(b"1")
    fence.step()
    assert not fence.is_fresh(b"1"), "numbers do not come again"
    assert fence.is_fresh(b"2")


def test_old_heartbeats_are_forgotten() -> None:
    clock = Clock()
    fence = Fence(1.5, clock, unseen)
    for _ in range(1000):
        fence.step()
        clock.looks(fence, 0.5)
    assert 3 <= len(fence._sent) <= 4


@pytest.mark.parametrize("first", ["a call", "a look", "a heartbeat"])
def test_after_a_standstill_no_call_begins_that_was_sent_before_its_end(first: str) -> None:
    clock, sent = Clock(), list[int]()

    def beat() -> None:
        fence.step()
        sent.append(fence.number)

    fence = Fence(1.5, clock, beat)
    fence.step()
    clock.now += 0.19
    assert fence.is_fresh(b"1"), "that was none"
    clock.now += 0.21
    if first == "a call":
        assert not fence.is_fresh(b"1")
    elif first == "a look":
        fence.look()
    else:
        beat()
    assert sent == [2], "another heartbeat is sent at once"
    assert not fence.is_fresh(b"1")
    assert fence.is_fresh(b"2")
