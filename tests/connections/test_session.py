"""The numbers of a session: whatever is sent, acknowledged, cut and resumed, each message arrives once and in order."""

import sys
from collections import deque
from collections.abc import Callable
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway import errors
from gateway.connections.session import ACK_EVERY, AT_ONCE, GRAIN, MANY, Session, is_loss
from gateway.errors import Disconnect
from gateway.limits import Account
from gateway.websocket.cork import CORK_BYTES
from gateway.websocket.frames import State, text_frame

MAX_BYTES: Final = 400
REPLY: Final = b"the reply to the resume, which has no number"


class Wire:
    """A link that loses what is on its way when it is cut. It is blocked after ``room`` bytes.

    While it is blocked, what is sent by `send_text` overtakes what is passed on, as in the outbox.
    """

    def __init__(self, room: int = 10**9) -> None:
        self.state = State.OPEN
        self.blocked = self.barred = self.compress = False
        self.corked: list[bytes] | None = None
        self.corked_bytes = 0
        self.messages_in = self.bytes_in = 0
        self.watched_messages = self.watched_octets = 0
        self.room = room
        self.on_blocked: Callable[[], object] = list
        self.own: list[bytes] = []
        self.others: list[bytes] = []
        self.way: deque[bytes] = deque()

    def send_text(self, payload: bytes) -> None:
        """Cork it."""
        if self.state is State.OPEN:
            self.corked = [*(self.corked or ()), text_frame(payload)]
            self.corked_bytes += len(payload)

    def pass_on(self, payload: bytes) -> None:
        """Cork it, or let it wait behind all others."""
        if self.state is State.OPEN and self.blocked:
            self.others.append(payload)
        else:
            self.send_text(payload)

    def flush(self) -> None:
        """Put what is corked on the way, or let it wait before what was passed on."""
        corked, self.corked, self.corked_bytes = self.corked or [], None, 0
        for frame in corked:
            payload = frame[{126: 4, 127: 10}.get(frame[1], 2) :]
            (self.own if self.blocked else self.way).append(payload)
            self.room -= len(payload)
        if self.room <= 0 and not self.blocked:
            self.blocked = True
            self.on_blocked()

    def drain(self) -> None:
        """Put all on the way, and take more."""
        self.flush()
        self.way.extend(self.own + self.others)
        self.own, self.others = [], []
        self.blocked, self.room = False, max(self.room, 100)

    def end(self) -> None:
        """Be open no longer, and lose all that is not on its way yet."""
        self.state = State.CLOSED
        self.corked, self.corked_bytes = None, 0
        self.own, self.others = [], []
        self.on_blocked()

    def hear(self, octets: int = 10) -> None:
        """Count a message of the peer's."""
        self.messages_in += 1
        self.bytes_in += octets

    @property
    def is_to_be_watched(self) -> bool:
        """Whether the reader would tell its watcher."""
        return self.messages_in >= self.watched_messages or self.bytes_in >= self.watched_octets

    def unbar(self) -> None:
        """Let others send."""
        self.barred = False


def session(wire: Wire, *, account: Account | None = None, hold: float = 30.0, max_bytes: int = MAX_BYTES) -> Session:
    """A session that its peer knows of."""
    made = Session(b"digest", wire, account or Account(10**9), hold=hold, max_bytes=max_bytes, overrun=repr)
    made.acknowledged(0)
    return made


def acknowledgement(payload: bytes) -> int | None:
    """The number that a message of the gateway's acknowledges; None if it is none."""
    head, _, rest = payload.partition(b'"received":')
    return int(rest.rstrip(b"}")) if head.startswith(b'{"jsonrpc":"2.0","method":"connection.ack"') else None


class Counting(RuleBasedStateMachine):
    """Both sides of one session against plain lists: what was sent, and what has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire()
        self.account = Account(10**9)
        self.session = session(self.wire, account=self.account, max_bytes=10**6)
        self.wire.on_blocked = self.session.adapt
        self.sent: list[bytes] = []
        self.arrived: list[bytes] = []
        self.linked = True
        # The peer's own messages, of which the gateway says how many have come.
        self.theirs = 0
        self.their_kept: deque[int] = deque()
        self.their_way: deque[int] = deque()
        self.handled: list[int] = []

    @initialize(quick=st.booleans())
    def choose(self, quick: bool) -> None:
        """Let short messages be counted later than they are sent, or each at once."""
        if quick:
            self.session = session(self.wire, account=self.account, max_bytes=10**9)
            self.wire.on_blocked = self.session.adapt

    @rule(sizes=st.lists(st.sampled_from([1, 30, 100, 200, 3000]), max_size=6))
    def send(self, sizes: list[int]) -> None:
        for size in sizes:
            payload = b"%d:" % len(self.sent) + b"x" * size
            self.sent.append(payload)
            owes = self.session.owes
            self.session.send(payload)
            assert not (owes and self.session.owes), "one that is owed leaves with the next message"

    @rule(count=st.integers(60, 300))
    def send_many(self, count: int) -> None:
        self.send([1] * count)

    @rule()
    def peer_sends(self) -> None:
        self.theirs += 1
        self.their_kept.append(self.theirs)
        if self.linked:
            self.their_way.append(self.theirs)

    @precondition(lambda self: self.linked)
    @rule()
    def iteration_ends(self) -> None:
        self.wire.flush()

    @precondition(lambda self: self.linked)
    @rule(count=st.integers(1, 50))
    def some_arrives(self, count: int) -> None:
        for _ in range(min(count, len(self.wire.way))):
            payload = self.wire.way.popleft()
            told = acknowledgement(payload)
            if payload == REPLY:
                continue
            if told is None:
                self.arrived.append(payload)
            else:
                assert told <= len(self.handled)
                self.forget(told)

    def forget(self, told: int) -> None:
        """Let the peer keep no longer what the gateway has had."""
        while self.their_kept and self.their_kept[0] <= told:
            self.their_kept.popleft()

    @precondition(lambda self: self.linked)
    @rule(count=st.integers(1, 70))
    def gateway_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.their_way))):
            self.handled.append(self.their_way.popleft())
            self.wire.hear()
        self.after_read()

    def after_read(self) -> None:
        """Look at what has come, as `Sessions.after_read` does."""
        if self.wire.is_to_be_watched:
            self.session.clocked = self.session.clocked or self.session.received != self.session.told
            assert self.session.weigh() == self.session.owes
        assert self.session.received - self.session.told < ACK_EVERY or self.session.owes
        assert self.session.clocked or self.session.received == self.session.told
        self.wire.flush()

    @precondition(lambda self: self.linked)
    @rule(count=st.integers(60, 70))
    def peer_sends_many(self, count: int) -> None:
        for _ in range(count):
            self.peer_sends()
        self.gateway_reads(count)

    @rule(soon=st.booleans())
    def time_passes(self, soon: bool) -> None:
        if soon:
            self.session.pay()
        else:
            self.session.time_is_up()
        if self.linked:
            assert not self.session.owes
            assert soon or self.session.received == self.session.told

    @precondition(lambda self: self.linked)
    @rule(less=st.integers(0, 3), with_read=st.booleans())
    def peer_acknowledges(self, less: int, with_read: bool) -> None:
        self.wire.hear()
        self.session.discount()
        assert self.session.acknowledged(max(0, len(self.arrived) - less))
        assert self.session.octets == self.expected or not with_read
        self.after_read()

    @precondition(lambda self: self.linked)
    @rule(less=st.integers(0, 3))
    def peer_reads_all(self, less: int) -> None:
        self.rewrite()
        self.some_arrives(10**6)
        self.peer_acknowledges(less, with_read=True)

    @precondition(lambda self: self.linked)
    @rule(sizes=st.lists(st.sampled_from([1, 200]), max_size=3), ended=st.booleans())
    def cut(self, sizes: list[int], ended: bool) -> None:
        """Lose the link. Some is still sent before the connection has noticed. It seems to live if it has not ended."""
        if ended:
            self.wire.end()
        self.wire.way.clear()
        self.their_way.clear()
        self.send(sizes)
        assert self.session.holds(errors.TRANSPORT_LOST)
        self.session.detach()
        self.linked = False

    @precondition(lambda self: not self.linked)
    @rule(lost=st.booleans(), room=st.sampled_from([1, 100, 10**9]), before=st.integers(0, 3))
    def resume(self, lost: bool, room: int, before: int) -> None:
        """Come back. If the reply is ``lost``, the new link is cut before the peer has had anything."""
        assert self.session.acked <= len(self.arrived) <= self.session.sent
        assert self.session.acknowledged(len(self.arrived))
        self.wire = Wire(room)
        self.wire.on_blocked = self.session.adapt
        for _ in range(before + 1):
            self.wire.hear()
        self.wire.send_text(REPLY)
        self.session.attach(self.wire)
        assert (self.session.told, self.session.owes) == (self.session.received, False)
        self.linked = True
        if self.wire.room > 1:
            self.rewrite()
        if lost:
            self.cut([], ended=True)
            return
        self.forget(self.session.received)
        self.their_way.extend(self.their_kept)

    @precondition(lambda self: self.linked)
    @rule()
    def rewrite(self) -> None:
        """Read what waits, as `Connection.on_drained` has it."""
        self.wire.drain()
        self.session.adapt()
        while self.session.rewrite():
            pass
        self.wire.flush()

    @property
    def expected(self) -> int:
        """What is to be kept."""
        return sum(map(len, self.sent[self.session.acked :]))

    @invariant()
    def nothing_is_lost_doubled_or_out_of_order(self) -> None:
        assert self.arrived == self.sent[: len(self.arrived)]
        assert self.handled == list(range(1, len(self.handled) + 1))
        assert self.session.sent == len(self.sent)
        assert self.session.received == len(self.handled)
        assert 0 <= self.expected - self.account.held <= GRAIN + CORK_BYTES

    def teardown(self) -> None:
        if not self.linked:
            self.resume(lost=False, room=10**9, before=0)
        while not self.session.caught_up or self.wire.blocked or self.wire.corked:
            self.rewrite()
        self.some_arrives(10**6)
        self.gateway_reads(10**6)
        assert self.arrived == self.sent
        assert self.handled == list(range(1, self.theirs + 1))
        assert self.session.octets == self.expected
        self.session.clear()
        assert self.account.held == 0


TestCounting = Counting.TestCase
TestCounting.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_only_a_loss_is_one() -> None:
    losses = {end.cause for end in errors.DISCONNECTS if is_loss(end)}
    assert losses == {"transport_lost", "heartbeat_timeout", "receive_timeout"}
    assert is_loss(errors.CLIENT_CLOSE._replace(code=1011))
    assert not is_loss(errors.CLIENT_CLOSE)
    assert not is_loss(errors.INTERNAL_FAILURE)


def test_before_the_peer_has_acknowledged_anything_no_loss_is_held() -> None:
    kept = Session(b"", Wire(), Account(1000), hold=30.0, max_bytes=100, overrun=repr)
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
    wire.end()
    kept.adapt()
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


def test_what_is_not_counted_yet_counts_when_the_link_is_lost() -> None:
    wire = Wire()
    kept = session(wire, max_bytes=64 * GRAIN)
    kept.send(b"x" * (64 * GRAIN - 10))
    for _ in range(11):
        assert kept.holds(errors.TRANSPORT_LOST)
        kept.send(b"x")
    assert not kept.holds(errors.TRANSPORT_LOST)


def test_a_full_account_makes_a_loss_final_too() -> None:
    kept = session(Wire(), account=Account(250))
    kept.send(b"x" * 200)
    assert kept.holds(errors.TRANSPORT_LOST)
    kept.send(b"x" * 200)
    assert not kept.holds(errors.TRANSPORT_LOST)


def test_half_of_what_may_be_kept_is_for_others_and_too_much_is_the_end() -> None:
    wire, overruns = Wire(), list[str]()
    kept = Session(
        b"", wire, Account(10**9), hold=1.0, max_bytes=MAX_BYTES, overrun=lambda session: overruns.append("over")
    )
    kept.acknowledged(0)
    assert lose(kept, wire)
    kept.send(b"x" * 200)
    assert (kept.crowded, wire.barred) == (False, False)
    kept.send(b"x")
    assert (kept.crowded, wire.barred, overruns) == (True, True, [])
    kept.send(b"x" * 200)
    assert overruns == ["over"]
    assert kept.unwritten() == [b"x", b"x" * 200]


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
    wire.flush()
    assert (len(wire.way), kept.caught_up) == (2, False)
    assert kept.rewrite()
    assert not kept.rewrite()
    assert kept.caught_up
    wire.flush()
    assert [payload[:1] for payload in wire.way] == [b"0", b"1", b"2", b"3", b"4", b"l"]


def told(wire: Wire) -> list[int | None]:
    """The numbers that were acknowledged by what is corked, which leaves; None for each other message."""
    wire.flush()
    numbers = [acknowledgement(payload) for payload in wire.way]
    wire.way.clear()
    return numbers


def test_the_peers_messages_are_acknowledged_by_number_and_by_size() -> None:
    wire = Wire()
    kept = session(wire)
    wire.hear()
    assert wire.is_to_be_watched, "the first begins the time of the others"
    kept.clocked = True
    assert not kept.weigh()
    for _ in range(ACK_EVERY - 2):
        wire.hear(1)
        assert not wire.is_to_be_watched
    wire.hear(1)
    assert wire.is_to_be_watched
    assert kept.weigh()
    assert told(wire) == []
    kept.pay()
    assert (told(wire), kept.told) == ([ACK_EVERY], ACK_EVERY)
    kept.pay()
    assert told(wire) == []
    wire.hear(MAX_BYTES // 4)
    assert wire.is_to_be_watched
    assert kept.weigh()
    assert (kept.told, kept.received) == (ACK_EVERY, ACK_EVERY + 1)
    wire.hear()
    assert not kept.weigh(), "there was no message with which it could have left"
    assert told(wire) == [ACK_EVERY + 2]


def test_an_acknowledgement_leaves_with_another_message() -> None:
    wire = Wire()
    kept = session(wire)
    for _ in range(ACK_EVERY):
        wire.hear()
    assert kept.weigh()
    kept.send(b"one")
    kept.send(b"two")
    assert told(wire) == [None, ACK_EVERY, None]
    kept.send(b"a reply")
    for _ in range(ACK_EVERY):
        wire.hear()
    assert not kept.weigh()
    assert told(wire) == [None, 2 * ACK_EVERY]


def test_in_time_all_is_acknowledged_and_an_acknowledgement_is_not() -> None:
    wire = Wire()
    kept = session(wire)
    wire.hear()
    kept.discount()
    kept.clocked = True
    kept.time_is_up()
    assert (told(wire), kept.clocked) == ([], False)
    wire.hear()
    assert wire.is_to_be_watched
    kept.clocked = True
    assert not kept.weigh()
    kept.time_is_up()
    assert told(wire) == [1]
    wire.hear()
    assert wire.is_to_be_watched, "its time begins again"


def test_many_short_messages_are_counted_after_a_while_and_a_long_one_soon() -> None:
    wire, account = Wire(), Account(10**9)
    kept = session(wire, account=account, max_bytes=64 * GRAIN)
    for _ in range(MANY):
        kept.send(b"x")
    assert account.held == 0
    wire.flush()
    kept.send(b"x")
    assert account.held == MANY + 1
    kept.send(b"x" * (GRAIN + 1))
    assert account.held == MANY + 1 + GRAIN + 1
    wire.flush()
    assert len(wire.way) == MANY + 2
    assert kept.acknowledged(MANY + 1)
    assert account.held == kept.octets == GRAIN + 1


def test_more_than_a_cork_of_short_messages_is_not_corked() -> None:
    wire = Wire()
    kept = session(wire, max_bytes=64 * GRAIN)
    for _ in range(CORK_BYTES // 100 + 2):
        kept.send(b"x" * 100)
    assert len(wire.way) == CORK_BYTES // 100 + 1


def test_acknowledged_one_by_one_however_many_are_kept() -> None:
    wire = Wire()
    kept = session(wire, max_bytes=10**6)
    first = b"%d" % 10**6
    references = sys.getrefcount(first)
    kept.send(first)
    for number in range(1, 1000):
        kept.send(b"%d" % number)
    assert kept.acknowledged(1)
    assert sys.getrefcount(first) == references, "it is kept no more, although its place is"
    for number in range(1, 1001):
        assert kept.acknowledged(number)
        assert kept.octets == sum(len(b"%d" % rest) for rest in range(number, 1000))
        assert kept.sent == 1000
        assert kept.holds(errors.TRANSPORT_LOST)


def test_while_the_peer_does_not_read_all_that_has_a_number_waits_in_one_lane() -> None:
    wire = Wire(room=1)
    kept = session(wire, max_bytes=64 * GRAIN)
    wire.on_blocked = kept.adapt
    kept.send(b"one")
    wire.flush()
    assert wire.blocked
    wire.send_text(b"without a number")
    for payload in (b"two", b"three"):
        kept.send(payload)
    wire.flush()
    assert (wire.own, wire.others) == ([b"without a number"], [b"two", b"three"])
    wire.drain()
    kept.adapt()
    kept.send(b"four")
    wire.flush()
    assert list(wire.way)[-3:] == [b"two", b"three", b"four"]


def test_a_link_that_is_open_no_longer_gets_nothing() -> None:
    wire = Wire()
    kept = session(wire, max_bytes=64 * GRAIN)
    kept.send(b"one")
    assert wire.corked is not None
    corked = wire.corked.copy()
    wire.state = State.FLUSHING
    kept.adapt()
    kept.send(b"two")
    assert (wire.corked, kept.sent) == (corked, 2)


def test_what_is_new_waits_until_all_is_written_again_even_if_the_old_link_was_open() -> None:
    kept = session(Wire(), max_bytes=64 * GRAIN)
    kept.send(b"one")
    kept.detach()
    wire = Wire()
    wire.send_text(REPLY)
    kept.attach(wire)
    kept.send(b"two")
    assert not kept.rewrite()
    kept.send(b"three")
    wire.flush()
    assert list(wire.way) == [REPLY, b"one", b"two", b"three"]


def test_a_link_that_compresses_does_so() -> None:
    class Compressing(Wire):
        def send_text(self, payload: bytes) -> None:
            super().send_text(payload.upper())

    wire = Compressing()
    wire.compress = True
    kept = session(wire, max_bytes=64 * GRAIN)
    for _ in range(2):
        kept.send(b"x")
    wire.flush()
    assert list(wire.way) == [b"X", b"X"]
