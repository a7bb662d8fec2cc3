"""The numbers of a session: whatever is sent, acknowledged, cut and resumed, each message arrives once and in order."""

from collections import deque
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway import errors
from gateway.connections.session import ACK_EVERY, AT_ONCE, GRAIN, Session, is_loss
from gateway.errors import Disconnect
from gateway.limits import Account
from gateway.websocket.frames import State

MAX_BYTES: Final = 400


class Wire:
    """A link that loses what is on its way when it is cut. It stalls after ``room`` bytes."""

    def __init__(self, room: int = 10**9) -> None:
        self.state = State.OPEN
        self.blocked = False
        self.barred = False
        self.room = room
        self.way: deque[bytes] = deque()

    def pass_on(self, payload: bytes) -> None:
        """Put it on the way."""
        if self.state is State.OPEN:
            self.way.append(payload)
            self.room -= len(payload)
            self.blocked = self.room <= 0

    def unbar(self) -> None:
        """Let others send."""
        self.barred = False


def session(wire: Wire, *, account: Account | None = None, hold: float = 30.0, max_bytes: int = MAX_BYTES) -> Session:
    """A session that its peer knows of."""
    overruns: list[None] = []
    made = Session(
        b"digest",
        wire,
        account or Account(10**9),
        hold=hold,
        max_bytes=max_bytes,
        overrun=lambda: overruns.append(None),
    )
    made.acknowledged(0)
    return made


class Counting(RuleBasedStateMachine):
    """Both sides of one session against plain lists: what was sent, and what has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire()
        self.account = Account(10**9)
        self.session = session(self.wire, account=self.account, max_bytes=10**6)
        self.sent: list[bytes] = []
        self.arrived: list[bytes] = []
        self.linked = True
        # The peer's own messages, of which the gateway says how many have come.
        self.theirs = 0
        self.their_kept: deque[int] = deque()
        self.their_way: deque[int] = deque()
        self.handled: list[int] = []

    @rule(size=st.integers(1, 60))
    def send(self, size: int) -> None:
        payload = b"%d:" % len(self.sent) + b"x" * size
        self.sent.append(payload)
        self.session.send(payload)

    @rule()
    def peer_sends(self) -> None:
        self.theirs += 1
        self.their_kept.append(self.theirs)
        if self.linked:
            self.their_way.append(self.theirs)

    @precondition(lambda self: self.linked)
    @rule(count=st.integers(1, 5))
    def some_arrives(self, count: int) -> None:
        for _ in range(min(count, len(self.wire.way))):
            self.arrived.append(self.wire.way.popleft())
        for _ in range(min(count, len(self.their_way))):
            self.session.received += 1
            self.handled.append(self.their_way.popleft())
            self.session.heard(10)

    @precondition(lambda self: self.linked)
    @rule(less=st.integers(0, 3))
    def peer_acknowledges(self, less: int) -> None:
        assert self.session.acknowledged(max(0, len(self.arrived) - less))

    @precondition(lambda self: self.linked)
    @rule()
    def gateway_acknowledges(self) -> None:
        told = self.session.tell()
        while self.their_kept and self.their_kept[0] <= told:
            self.their_kept.popleft()

    @precondition(lambda self: self.linked)
    @rule()
    def cut(self) -> None:
        self.wire.state = State.CLOSED
        self.wire.way.clear()
        self.their_way.clear()
        assert self.session.holds(errors.TRANSPORT_LOST)
        self.session.detach()
        self.linked = False

    @precondition(lambda self: not self.linked)
    @rule(lost=st.booleans(), room=st.sampled_from([1, 100, 10**9]))
    def resume(self, lost: bool, room: int) -> None:
        """Come back. If the reply is ``lost``, the new link is cut before the peer has had anything."""
        assert self.session.acked <= len(self.arrived) <= self.session.sent
        assert self.session.acknowledged(len(self.arrived))
        self.wire = Wire(room)
        self.session.attach(self.wire)
        self.linked = True
        self.rewrite()
        if lost:
            self.cut()
            return
        while self.their_kept and self.their_kept[0] <= self.session.received:
            self.their_kept.popleft()
        self.their_way.extend(self.their_kept)

    @precondition(lambda self: self.linked)
    @rule()
    def rewrite(self) -> None:
        self.wire.room, self.wire.blocked = max(self.wire.room, 100), False
        while self.session.rewrite():
            pass

    @invariant()
    def nothing_is_lost_doubled_or_out_of_order(self) -> None:
        assert self.arrived == self.sent[: len(self.arrived)]
        assert self.handled == list(range(1, len(self.handled) + 1))
        assert self.session.sent == len(self.sent)
        assert self.session.received == len(self.handled)
        assert self.session.octets == sum(map(len, self.sent[self.session.acked :]))
        assert 0 <= self.session.octets - self.account.held <= GRAIN

    def teardown(self) -> None:
        if not self.linked:
            self.resume(lost=False, room=10**9)
        for _ in range(len(self.sent) + 1):
            self.rewrite()
        self.some_arrives(10**6)
        assert self.arrived == self.sent
        assert self.handled == list(range(1, self.theirs + 1))
        self.session.clear()
        assert self.account.held == 0


TestCounting = Counting.TestCase
TestCounting.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_only_a_loss_is_one() -> None:
    losses = {end.cause for end in errors.DISCONNECTS if is_loss(end)}
    assert losses == {"transport_lost", "heartbeat_timeout", "receive_timeout"}
    assert is_loss(errors.CLIENT_CLOSE._replace(code=1011))
    assert not is_loss(errors.CLIENT_CLOSE)
    assert not is_loss(errors.INTERNAL_FAILURE)


def test_before_the_peer_has_acknowledged_anything_no_loss_is_held() -> None:
    kept = Session(b"", Wire(), Account(1000), hold=30.0, max_bytes=100, overrun=list)
    assert not kept.holds(errors.TRANSPORT_LOST)
    assert kept.acknowledged(0)
    assert kept.holds(errors.TRANSPORT_LOST)


def test_whoever_wants_to_be_held_for_no_time_is_not() -> None:
    assert not session(Wire(), hold=0.0).holds(errors.TRANSPORT_LOST)


def test_more_than_was_sent_is_not_acknowledged_and_less_than_before_is_ignored() -> None:
    kept = session(Wire())
    for _ in range(3):
        kept.send(b"x")
    assert kept.acknowledged(2)
    assert kept.acknowledged(1)
    assert kept.acked == 2
    assert not kept.acknowledged(4)


def lose(kept: Session, wire: Wire, end: Disconnect = errors.TRANSPORT_LOST) -> bool:
    """Lose the link. Returns whether the connection is held."""
    wire.state = State.CLOSED
    if not kept.holds(end):
        return False
    kept.detach()
    return True


def test_what_is_more_than_may_be_kept_makes_a_loss_final_and_takes_no_memory() -> None:
    wire, account = Wire(), Account(10**9)
    kept = session(wire, account=account)
    for _ in range(50):
        kept.send(b"x" * 100)
        assert kept.octets <= MAX_BYTES
        assert kept.octets - MAX_BYTES // 64 <= account.held <= kept.octets
    assert not kept.holds(errors.TRANSPORT_LOST)
    assert kept.acknowledged(46)
    assert kept.holds(errors.TRANSPORT_LOST)
    kept.clear()
    assert account.held == 0


def test_a_full_account_makes_a_loss_final_too() -> None:
    kept = session(Wire(), account=Account(250))
    kept.send(b"x" * 200)
    assert kept.holds(errors.TRANSPORT_LOST)
    kept.send(b"x" * 200)
    assert not kept.holds(errors.TRANSPORT_LOST)


def test_half_of_what_may_be_kept_is_for_others_and_too_much_is_the_end() -> None:
    wire, overruns = Wire(), list[str]()
    kept = Session(b"", wire, Account(10**9), hold=1.0, max_bytes=MAX_BYTES, overrun=lambda: overruns.append("over"))
    kept.acknowledged(0)
    assert lose(kept, wire)
    kept.send(b"x" * 200)
    assert (kept.crowded, wire.barred) == (False, False)
    kept.send(b"x")
    assert (kept.crowded, wire.barred, overruns) == (True, True, [])
    kept.send(b"x" * 200)
    assert overruns == ["over"]


def test_what_was_never_written_is_known() -> None:
    wire = Wire()
    kept = session(wire)
    kept.send(b"one")
    assert kept.unwritten() == []
    assert lose(kept, wire)
    kept.send(b"two")
    assert kept.unwritten() == [b"two"]


def test_much_is_written_again_in_several_goes_and_new_messages_wait_for_that() -> None:
    wire = Wire()
    kept = session(wire, max_bytes=10**9)
    assert lose(kept, wire)
    size = AT_ONCE // 2
    for number in range(5):
        kept.send(b"%d" % number * size)
    wire = Wire()
    kept.attach(wire)
    assert kept.rewrite()
    kept.send(b"last")
    assert (len(wire.way), kept.caught_up) == (2, False)
    assert kept.rewrite()
    assert not kept.rewrite()
    assert kept.caught_up
    assert [payload[:1] for payload in wire.way] == [b"0", b"1", b"2", b"3", b"4", b"l"]


def test_the_peers_messages_are_acknowledged_by_number_and_by_size() -> None:
    kept = session(Wire())
    for number in range(1, ACK_EVERY):
        kept.received += 1
        assert kept.heard(1) is (number == 1), "the first begins the time of the others"
        assert not kept.is_due
    kept.received += 1
    assert kept.heard(1)
    assert kept.is_due
    assert kept.tell() == ACK_EVERY
    kept.received += 1
    assert kept.heard(MAX_BYTES // 4)
    assert kept.is_due
    kept.tell()
    assert kept.heard(1), "an acknowledgement, of which none is to be made"
    kept.nothing_due()
    assert kept.heard(1)
