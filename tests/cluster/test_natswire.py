"""The wire of NATS: any way of cutting it gives the same messages, and nothing else is believed."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cluster import natswire
from gateway.cluster.natswire import MAX_LINE, Address, Credentials, Info, Reader, WireError
from tests.support.nkeys import Nkey, credentials, trust

Message = tuple[bytes, bytes, bytes, bytes]


class Log:
    """A reader whose messages, lines and failures are noted, in one list and in order."""

    def __init__(self, most: int = 1 << 20, sids: tuple[bytes, ...] = (b"1", b"2")) -> None:
        self.seen: list[object] = []
        self.reader = Reader(self.seen.append, lambda subject, error: self.seen.append((subject, error)))
        self.reader.most = most
        for sid in sids:
            self.reader.handlers[sid] = self.note

    def note(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        self.seen.append((subject, reply, headers, payload))


def wire(message: Message, sid: bytes = b"1") -> bytes:
    """What a server sends for a message."""
    subject, reply, headers, payload = message
    to = b" " + reply if reply else b""
    if headers:
        sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
        return b"HMSG %b %b%b %b\r\n%b%b\r\n" % (subject, sid, to, sizes, headers, payload)
    return b"MSG %b %b%b %d\r\n%b\r\n" % (subject, sid, to, len(payload), payload)


SUBJECTS = st.text("abcMSG.>*é", min_size=1, max_size=12).map(str.encode)
HEADERS = st.sampled_from([b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0 503\r\n\r\n"])
PAYLOADS = st.one_of(st.binary(max_size=40), st.just(b"MSG a 1 5\r\nhello\r\n"), st.binary(min_size=300, max_size=400))
MESSAGES = st.tuples(SUBJECTS, st.one_of(st.just(b""), SUBJECTS), HEADERS, PAYLOADS)
LINES = st.sampled_from([b"PING", b"PONG", b"+OK", b"-ERR 'Stale Connection'", b"INFO {}"])


@given(st.lists(st.one_of(MESSAGES, LINES), max_size=12), st.lists(st.integers(1, 60), min_size=1))
def test_any_way_of_cutting_the_wire_gives_the_same_messages(sent: list[Message | bytes], cuts: list[int]) -> None:
    text = b"".join(one + b"\r\n" if isinstance(one, bytes) else wire(one) for one in sent)
    log, at, turn = Log(), 0, 0
    while at < len(text):
        step = cuts[turn % len(cuts)]
        log.reader.feed(text[at : at + step])
        at, turn = at + step, turn + 1
    assert log.seen == sent


def test_every_single_cut() -> None:
    sent: list[Message | bytes] = [(b"a", b"", b"", b""), b"PING", (b"b.c", b"r", b"NATS/1.0 503\r\n\r\n", b"\r\n")]
    text = b"".join(one + b"\r\n" if isinstance(one, bytes) else wire(one) for one in sent)
    for cut in range(len(text)):
        log = Log()
        log.reader.feed(text[:cut])
        log.reader.feed(text[cut:])
        assert log.seen == sent, cut


def test_the_reads_of_a_large_message_are_kept_as_they_came_and_joined_once() -> None:
    payload = bytes(range(256)) * 4096
    text = wire((b"a", b"", b"", payload))
    parts = [text[start : start + 4096] for start in range(0, len(text), 4096)]
    log = Log()
    before = [sys.getrefcount(part) for part in parts]
    for part in parts[:-1]:
        log.reader.feed(part)
    after = [sys.getrefcount(part) for part in parts]
    assert [later - sooner for sooner, later in zip(before, after, strict=True)][1:-2] == [1] * (len(parts) - 3)
    log.reader.feed(parts[-1])
    assert log.seen == [(b"a", b"", b"", payload)]


def test_a_message_of_a_subscription_that_has_ended_is_dropped() -> None:
    log = Log(sids=(b"2",))
    log.reader.feed(wire((b"a", b"", b"", b"x"), b"1") + wire((b"a", b"", b"", b"y"), b"2"))
    assert log.seen == [(b"a", b"", b"", b"y")]


def test_a_handler_may_end_a_subscription_of_which_more_has_been_read() -> None:
    log = Log()

    def last(*message: bytes) -> None:
        log.note(*message)
        log.reader.handlers.clear()

    log.reader.handlers[b"1"] = last
    log.reader.feed(wire((b"a", b"", b"", b"x")) * 3 + b"PING\r\n")
    assert log.seen == [(b"a", b"", b"", b"x"), b"PING"]


def test_an_exception_of_a_handler_costs_the_next_message_nothing() -> None:
    log = Log()
    error = RuntimeError("a defect")

    def broken(*message: bytes) -> None:
        raise error

    log.reader.handlers[b"2"] = broken
    log.reader.feed(wire((b"a", b"", b"", b"x"), b"2") + wire((b"b", b"", b"", b"y")))
    assert log.seen == [(b"a", error), (b"b", b"", b"", b"y")]


STRANGE = {
    "too few words": b"MSG a 1\r\n",
    "too many words": b"MSG a 1 b c 1\r\nx\r\n",
    "no number": b"MSG a 1 x\r\n",
    "a negative length": b"MSG a 1 -5\r\n",
    "more than may be": b"MSG a 1 1048577\r\n",
    "a number of five thousand digits": b"MSG a 1 " + b"9" * 5000 + b"\r\n",
    "more headers than message": b"HMSG a 1 5 4\r\nabcd\r\n",
    "headers of negative length": b"HMSG a 1 -1 4\r\nabcd\r\n",
    "headers alone": b"HMSG\r\n",
    "longer than it says": b"MSG a 1 1\r\nxyz\r\n",
    "shorter than it says": b"MSG a 1 3\r\nx\r\nPING\r\n",
    "an endless line": b"x" * (MAX_LINE + 1),
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_what_is_not_nats_is_refused(text: bytes) -> None:
    log = Log()
    with pytest.raises(WireError):
        log.reader.feed(text)
    assert log.seen == []


def test_the_largest_message_is_taken() -> None:
    log = Log(most=5)
    log.reader.feed(b"MSG a 1 5\r\nhello\r\n")
    assert log.seen == [(b"a", b"", b"", b"hello")]
    with pytest.raises(WireError, match="a message of 6 bytes, 0 of them headers, and 5 are allowed"):
        log.reader.feed(b"MSG a 1 6\r\n")


def test_a_line_that_does_not_end_is_refused_however_it_is_cut() -> None:
    log = Log()
    for _ in range(MAX_LINE // 1000):
        log.reader.feed(b"x" * 1000)
    with pytest.raises(WireError, match="a line of more than"):
        log.reader.feed(b"x" * 1000)


# Lines


def test_info() -> None:
    found = natswire.info(
        b'INFO {"version":"2.11.0-beta.1","max_payload":1048576,"headers":true,"new":[1],"ldm":true} '
    )
    assert found == Info("2.11.0-beta.1", 1 << 20, headers=True, ldm=True)
    assert found.release == (2, 11, 0) >= (2, 10, 25)
    assert Info("dev", 1).release == (0, 0, 0)


@pytest.mark.parametrize(
    "line", [b"", b"HTTP/1.1 400 Bad Request", b"INFO", b"INFO {", b'INFO {"version":2}', b"INFO []"]
)
def test_what_is_no_info_is_refused(line: bytes) -> None:
    with pytest.raises(WireError, match=r"it is not NATS|cannot be read"):
        natswire.info(line)


def test_the_text_of_an_error() -> None:
    assert natswire.error_text(b"-ERR 'Authorization Violation'") == "Authorization Violation"
    forbidden = b"""-ERR 'Permissions Violation for Publish to "a'b"'"""
    assert natswire.error_text(forbidden) == """Permissions Violation for Publish to "a'b\""""
    assert natswire.error_text(b"-ERR") == ""


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("nats://127.0.0.1:4223", Address(False, "127.0.0.1", 4223)),
        ("tls://nats.example", Address(True, "nats.example", 4222)),
        ("nats://[::1]:4222/", Address(False, "::1", 4222)),
    ],
)
def test_an_address(url: str, wanted: Address) -> None:
    assert natswire.address(url) == wanted


WRONG = (
    "",
    "127.0.0.1:4222",
    "http://a",
    "nats://",
    "nats://a:x",
    "nats://a:0",
    "nats://a:70000",
    "nats://[::1",
    "nats://a/b",
    "nats://a?b",
)


@pytest.mark.parametrize("url", [*WRONG, "nats://me:secret@host", "nats://me:secret@host:x"])
def test_a_wrong_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(
        ValueError, match="the address of a NATS server is nats://host:port or tls://host:port"
    ) as error:
        natswire.address(url)
    assert "secret" not in str(error.value)


# Headers


def test_headers() -> None:
    headers = b"NATS/1.0\r\nNats-Last-Sequence: 7\r\nNats-Sequence:8\r\nNats-Subject:  a b \r\nNats-Sequence: 9\r\n\r\n"
    assert natswire.status(headers) == 0
    assert natswire.value(headers, b"Nats-Subject") == b"a b"
    assert natswire.number(headers, b"Nats-Sequence") == 8
    assert natswire.number(headers, b"Nats-Last-Sequence") == 7
    assert natswire.value(headers, b"Nats-Stream") == b""
    for none in (b"Nats-Stream", b"Nats-Subject", b"Sequence"):
        assert natswire.number(headers, none) == -1
    assert natswire.number(b"NATS/1.0\r\nA: %d\r\n\r\n" % 10**20, b"A") == -1


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        (b"NATS/1.0 503\r\n\r\n", 503),
        (b"NATS/1.0 404 No Messages\r\n\r\n", 404),
        (b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n", 100),
        (b"NATS/1.0\r\n\r\n", 0),
        (b"NATS/1.0 5", 0),
        (b"", 0),
    ],
)
def test_a_status(headers: bytes, wanted: int) -> None:
    assert natswire.status(headers) == wanted


# Credentials


def test_credentials_have_the_jwt_and_the_key() -> None:
    text = trust().credentials
    found = Credentials(text)
    assert found.jwt.count(".") == 2 and found.jwt.encode() in text
    assert Credentials(text.replace(b"\n", b"\r\n")).jwt == found.jwt
    user = Nkey("user")
    alone = Credentials(credentials(user))
    assert (alone.jwt, alone.user) == ("", user.public)
    assert alone.sign("a") != alone.sign("b")


def test_what_are_no_credentials_is_refused() -> None:
    good = credentials(Nkey("user"))
    seed = good.split(b"\n")[4]
    assert seed.startswith(b"SU")
    for wrong in (
        seed[:-1],
        seed[:20] + (b"A" if seed[20:21] != b"A" else b"B") + seed[21:],
        b"SU",
        Nkey("account").seed.encode(),
        b"1",
    ):
        with pytest.raises(ValueError, match="is not the seed of a user"):
            Credentials(good.replace(seed, wrong))
    for wrong in (b"", seed, b"\xff\x00"):
        with pytest.raises(ValueError, match="no USER NKEY SEED"):
            Credentials(wrong)
