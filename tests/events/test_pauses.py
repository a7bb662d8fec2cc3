"""All subscribers are held while the stream is caught up with, and go on a few at a time, in the order of things."""

from gateway.cluster.stream import Lapse, Position
from gateway.events.pauses import AT_ONCE, FED_AT_ONCE, LOOKED_AT_AT_ONCE, Pauses
from tests.support.ears import Way

LAPSE = Lapse({"a": Position("e1", 1)}, Position("e1", 2))
OTHER = Lapse({}, Position("e1", 3))


class Someone:
    """A subscriber that notes what is done with it. It hears so many topics, and is fed so much when it goes on."""

    def __init__(self, desk: "Desk", fed: int = 0, topics: int = 1) -> None:
        self.desk = desk
        self.fed = fed
        self.topics = topics
        self.done: list[object] = []

    def hold(self) -> None:
        """Note it."""
        self.done.append("hold")

    def lapsed(self, lapse: Lapse) -> int:
        """Note it."""
        self.done.append(lapse)
        return self.topics

    def go_on(self) -> None:
        """Note it, and be fed."""
        self.done.append("go on")
        self.desk.fed += self.fed


class Desk:
    """Pauses, and an event loop that turns when the test says so."""

    def __init__(self) -> None:
        self.way = Way(True)
        self.fed = 0
        self.pauses = Pauses(self.way.later, lambda: self.fed)

    def someone(self, fed: int = 0, topics: int = 1) -> Someone:
        """A subscriber that has entered."""
        someone = Someone(self, fed, topics)
        self.pauses.enter(someone)
        return someone


def test_a_subscriber_is_held_once_and_goes_on_after_it_has_learned_what_is_lost() -> None:
    desk = Desk()
    early = desk.someone()
    desk.pauses.pause()
    late = desk.someone()
    desk.pauses.pause()
    assert early.done == late.done == ["hold"]
    desk.pauses.resume(LAPSE)
    after = desk.someone()
    assert desk.way.turn() == 1
    assert early.done == late.done == ["hold", LAPSE, "go on"]
    assert (after.done, desk.way.turn()) == ([], 0)


def test_who_has_not_gone_on_before_the_next_pause_learns_of_both_lapses() -> None:
    desk = Desk()
    one = desk.someone()
    desk.pauses.pause()
    desk.pauses.resume(LAPSE)
    desk.pauses.pause()
    desk.way.turn()
    assert one.done == ["hold"], "there is another pause"
    desk.pauses.resume(OTHER)
    desk.pauses.resume(None)
    while desk.way.turn():
        pass
    assert one.done == ["hold", LAPSE, OTHER, "go on"]


def test_a_pause_in_which_nothing_was_lost_only_ends() -> None:
    desk = Desk()
    desk.pauses.resume(LAPSE)
    one = desk.someone()
    desk.pauses.pause()
    desk.pauses.resume(None)
    desk.way.turn()
    assert one.done == ["hold", "go on"]


def test_very_many_go_on_bit_by_bit_and_so_do_those_who_have_missed_much_or_hear_many_topics() -> None:
    for many, fed, topics, lapse, wanted in (
        (AT_ONCE + 5, 0, 1, LAPSE, [AT_ONCE, AT_ONCE + 5]),
        (5, FED_AT_ONCE // 2, 1, None, [2, 4, 5]),
        (3, 9 * FED_AT_ONCE, 1, LAPSE, [1, 2, 3]),
        (5, 0, LOOKED_AT_AT_ONCE // 2, LAPSE, [2, 4, 5]),
        (5, 0, LOOKED_AT_AT_ONCE // 2, None, [5]),
        (3, 0, 9 * LOOKED_AT_AT_ONCE, LAPSE, [1, 2, 3]),
    ):
        desk = Desk()
        crowd = [desk.someone(fed, topics) for _ in range(many)]
        desk.pauses.pause()
        desk.pauses.resume(lapse)
        went = []
        while desk.way.turn():
            went.append(sum("go on" in one.done for one in crowd))
        assert went == wanted


def test_who_leaves_is_neither_held_nor_let_go_on() -> None:
    desk = Desk()
    gone, going = desk.someone(), desk.someone()
    desk.pauses.leave(gone)
    desk.pauses.pause()
    desk.pauses.leave(going)
    desk.pauses.leave(going)
    desk.pauses.resume(LAPSE)
    desk.way.turn()
    assert (gone.done, going.done) == ([], ["hold"])
