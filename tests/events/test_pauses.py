"""All subscribers are held while the stream is caught up with, and go on a few at a time, in the order of things."""

from gateway.cluster.stream import Lapse, Position
from gateway.events.pauses import AT_ONCE, SENT_AT_ONCE, Pauses
from tests.support.ears import Way

LAPSE = Lapse({"a": Position("e1", 1)}, Position("e1", 2))
OTHER = Lapse({}, Position("e1", 3))


class Someone:
    """A subscriber that notes what is done with it. It sends so many messages when it goes on."""

    def __init__(self, desk: "Desk", sends: int = 0) -> None:
        self.desk = desk
        self.sends = sends
        self.done: list[object] = []

    def hold(self) -> None:
        """Note it."""
        self.done.append("hold")

    def lapsed(self, lapse: Lapse) -> None:
        """Note it."""
        self.done.append(lapse)

    def go_on(self) -> None:
        """Note it, and send."""
        self.done.append("go on")
        self.desk.sent += self.sends


class Desk:
    """Pauses, and an event loop that turns when the test says so."""

    def __init__(self) -> None:
        self.way = Way(True)
        self.sent = 0
        self.pauses = Pauses(self.way.later, lambda: self.sent)

    def someone(self, sends: int = 0) -> Someone:
        """A subscriber that has entered."""
        someone = Someone(self, sends)
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


def test_very_many_go_on_bit_by_bit_and_so_do_those_who_have_missed_much() -> None:
    for many, sends, wanted in (
        (AT_ONCE + 5, 0, [AT_ONCE, AT_ONCE + 5]),
        (5, SENT_AT_ONCE // 2, [2, 4, 5]),
        (3, 9 * SENT_AT_ONCE, [1, 2, 3]),
    ):
        desk = Desk()
        crowd = [desk.someone(sends) for _ in range(many)]
        desk.pauses.pause()
        desk.pauses.resume(None)
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
