"""The client of NATS against a real server: what is published and heard, and what a lost link does and does not do."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from gateway.cluster import nats, natswire
from gateway.cluster.nats import CORK, FIRST_PAUSE, LONGEST_PAUSE, SILENT
from gateway.cluster.natslink import (
    SLICE,
    AwayError,
    LateError,
    Link,
    LinkError,
    NatsError,
    NoRespondersError,
    Options,
    TooLargeError,
    connect,
)
from tests.support.certs import authority
from tests.support.fleet import until
from tests.support.nats import INFO, NatsServer, scripted
from tests.support.nats_peer import NatsPeer
from tests.support.patience import WAIT
from tests.support.serving import run_on

QUICK: Final = 0.05
"""Seconds from one ping to the next, if a test waits for silence."""
NEVER: Final = 600.0
MIB: Final = 1 << 20


def defects(caplog: pytest.LogCaptureFixture) -> list[BaseException | None]:
    """What was logged as a defect, all else that is worse than a notice included."""
    worse = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.exc_info[1] if record.exc_info else None for record in worse]


# What is published is heard


async def test_messages_of_all_subscriptions_come_in_the_order_of_the_wire() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer, NatsPeer(server.url) as other:
        await peer.hear(b"a.*", b"b.>", b"c")
        sent = [(subject, b"%d" % number) for number in range(1000) for subject in (b"c", b"a.1", b"b.2.3")]
        for subject, payload in sent:
            other.nats.publish(subject, payload)
        await until(lambda: len(peer.messages) >= len(sent), "not all came")
        assert [(subject, payload) for subject, _, _, payload in peer.messages] == sent


async def test_the_end_of_a_read_is_told_after_its_messages(caplog: pytest.LogCaptureFixture) -> None:
    """Even if what is told has a defect."""
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        await peer.hear(b"a")
        reads: list[int] = []

        def read() -> None:
            reads.append(len(peer.messages))
            raise RuntimeError("a defect")

        peer.nats.on_read = read
        for _ in range(100):
            peer.nats.publish(b"a", b"")
        await until(lambda: reads[-1:] == [100], "it is not told")
        assert reads == sorted(set(reads)), "nothing comes between a message and the end of its read"
        assert len(reads) < 100
        assert {type(defect) for defect in defects(caplog)} == {RuntimeError}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_burst_is_handled_in_slices_and_in_order(loop: str) -> None:
    run_on(loop, _burst())


async def _burst() -> None:
    size, count = 1000, 3000
    async with NatsServer() as server, NatsPeer(server.url) as peer, NatsPeer(server.url) as other:
        turns, turn, heard = Counter[int](), 0, list[bytes]()

        async def watch() -> None:
            nonlocal turn
            while True:
                turn += 1
                await asyncio.sleep(0)

        def hear(subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
            turns[turn] += 1
            heard.append(payload)

        watching = asyncio.create_task(watch())
        peer.nats.subscribe(b"a", hear)
        await peer.nats.flush(WAIT)
        for number in range(count):
            other.nats.publish(b"a", b"%0*d" % (size, number))
        await other.nats.flush(WAIT)
        stand_still(0.2)  # so that very much can be read at once
        await until(lambda: len(heard) == count, "not all came")
        watching.cancel()
        assert [int(payload) for payload in heard] == list(range(count))
        assert max(turns.values()) <= SLICE // size + 1


def stand_still(seconds: float) -> None:
    """Hold up the event loop."""
    time.sleep(seconds)


async def test_subjects_payloads_and_replies_are_bytes_as_they_were_sent() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        await peer.hear("grüße.>".encode())
        messages = [
            ("grüße.1".encode(), b"", b"", b""),
            ("grüße.2".encode(), b"an.answer", b"", b"\r\nMSG a 1 3\r\nabc\r\n\0"),
            ("grüße.3".encode(), b"", b"", bytes(range(256)) * 4096),
        ]
        for subject, reply, _, payload in messages:
            peer.nats.publish(subject, payload, reply)
        await until(lambda: len(peer.messages) == 3, "not all came")
        assert peer.messages == messages


async def test_of_a_queue_each_message_goes_to_one() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as one, NatsPeer(server.url) as other:
        for peer in (one, other):
            peer.nats.subscribe(b"a", peer.note, queue=b"workers")
            await peer.nats.flush(WAIT)
        for number in range(100):
            one.nats.publish(b"a", b"%d" % number)
        await until(lambda: len(one.messages) + len(other.messages) >= 100, "not all came")
        assert sorted(one.payloads() + other.payloads()) == sorted(b"%d" % number for number in range(100))
        assert one.messages and other.messages


async def test_after_unsubscribe_no_message_comes() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        handle = peer.nats.subscribe(b"a", peer.note)
        await peer.hear(b"b")
        peer.nats.publish(b"a", b"too late")
        await peer.nats.flush(WAIT)
        peer.messages.clear()
        peer.nats.publish(b"a", b"on its way")
        peer.nats.unsubscribe(handle)
        peer.nats.publish(b"a", b"ended")
        peer.nats.publish(b"b", b"heard")
        await until(lambda: bool(peer.messages), "nothing came")
        assert peer.payloads() == [b"heard"]
        peer.nats.unsubscribe(handle)  # harmless
        with pytest.raises(NoRespondersError):
            await peer.nats.request(b"a", b"", WAIT)
        assert not peer.lost and not peer.forbidden


@pytest.mark.parametrize(("subject", "queue"), [(b"", b""), (b"a b", b""), (b"a\r\nPUB", b""), (b"a", b"x y")])
def test_a_subject_that_would_break_the_wire_is_refused(subject: bytes, queue: bytes) -> None:
    peer = NatsPeer("nats://127.0.0.1")
    with pytest.raises(ValueError, match="not a subject and a queue of NATS"):
        peer.nats.subscribe(subject, peer.note, queue)


def test_a_wrong_url_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="the address of a NATS server is"):
        NatsPeer("nats://127.0.0.1", "http://127.0.0.1")


async def test_all_that_is_published_in_one_iteration_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = Link.write

    def counted(link: Link, text: bytes) -> int:
        written.append(len(text))
        return write(link, text)

    async with NatsServer() as server, NatsPeer(server.url, ping_interval=NEVER) as peer:
        await peer.nats.flush(WAIT)
        monkeypatch.setattr(Link, "write", counted)
        for _ in range(100):
            peer.nats.publish(b"a", b"x" * 100)
        assert written == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert written == [100 * len(b"PUB a 100\r\n\r\n" + b"x" * 100)]
        for _ in range(100):
            peer.nats.publish(b"a", b"x" * 1000)
        assert len(written) == 2 and CORK < written[1] < CORK + 1100


async def test_a_payload_beyond_max_payload_is_refused_and_costs_nothing() -> None:
    async with NatsServer("max_payload: 1000") as server, NatsPeer(server.url) as peer:
        await peer.hear(b"a")
        with pytest.raises(TooLargeError, match="1001 bytes are more than the 1000 that the NATS server takes"):
            peer.nats.publish(b"a", b"x" * 1001)
        with pytest.raises(TooLargeError):
            await peer.nats.request(b"a", b"x" * 1001, WAIT)
        peer.nats.publish(b"a", b"x" * 1000)
        await until(lambda: peer.payloads() == [b"x" * 1000], "nothing came")
        assert peer.lost == []


async def test_a_message_with_the_headers_of_jetstream_may_be_larger_than_max_payload() -> None:
    config = {"name": "P", "subjects": ["p.event.>"], "republish": {"src": "p.event.>", "dest": "p.live.>"}}
    async with NatsServer("max_payload: 100000", jetstream=True) as server, NatsPeer(server.url) as peer:
        await peer.nats.request(b"$JS.API.STREAM.CREATE.P", json.dumps(config).encode(), WAIT)
        await peer.hear(b"p.live.>")
        for number in (1, 2):
            _, acknowledged = await peer.nats.request(b"p.event.a", b"x" * 100_000, WAIT)
            assert json.loads(acknowledged) == {"stream": "P", "seq": number}
        await until(lambda: len(peer.messages) == 2, "not all came")
        for number, (subject, _, headers, payload) in enumerate(peer.messages, 1):
            assert (subject, payload) == (b"p.live.event.a".replace(b"event.", b""), b"x" * 100_000)
            assert natswire.number(headers, b"Nats-Sequence") == number
            assert natswire.number(headers, b"Nats-Last-Sequence") == number - 1


# A handler's defect


async def test_a_defect_of_a_handler_is_logged_and_the_link_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("a defect")

    def broken(*message: bytes) -> None:
        raise error

    async with NatsServer() as server, NatsPeer(server.url) as peer:
        peer.nats.subscribe(b"a", broken)
        await peer.hear(b"a")
        peer.nats.publish(b"a", b"x")
        await until(lambda: bool(peer.messages), "nothing came")
        assert defects(caplog) == [error]
        (record,) = caplog.records
        assert (vars(record)["event"], vars(record)["subject"]) == ("cluster.defect", "a")
        assert peer.lost == []


async def test_a_defect_of_a_callback_is_logged_and_the_link_lives_on(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("a defect")

    def broken(*arguments: object) -> None:
        raise error

    config = 'authorization { users: [ { user: me, password: secret, permissions: { publish: { deny: "b" } } } ] }'
    async with NatsServer(config) as server:
        peer = NatsPeer(server.url, user="me", password="secret")
        peer.at_join = peer.at_error = broken
        async with peer:
            peer.nats.publish(b"b", b"")
            await peer.hear(b"a")
            peer.nats.publish(b"a", b"x")
            await until(lambda: bool(peer.messages), "nothing came")
            assert peer.lost == peer.failed == []
            assert len(peer.joined) == len(peer.forbidden) == 1
    assert defects(caplog) == [error, error]


async def test_a_defect_of_an_attempt_is_logged_and_followed_by_another_attempt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("a defect")

    async def broken(*arguments: Any) -> None:
        monkeypatch.setattr("gateway.cluster.nats.connect", connect)
        raise error

    monkeypatch.setattr("gateway.cluster.nats.connect", broken)
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        assert peer.lost == peer.failed == []
    assert defects(caplog) == [error]


# Requests


async def test_a_request_gets_its_first_reply() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer, NatsPeer(server.url) as other:

        def answer(subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
            other.nats.publish(reply, payload + b"!")
            other.nats.publish(reply, b"another")

        other.nats.subscribe(b"ask", answer)
        await other.nats.flush(WAIT)
        replies = await asyncio.gather(*(peer.nats.request(b"ask", b"%d" % number, WAIT) for number in range(100)))
        assert replies == [(b"", b"%d!" % number) for number in range(100)]


async def test_without_a_subscriber_a_request_is_known_not_to_be_delivered() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        with pytest.raises(NoRespondersError, match="no subscriber"):
            await peer.nats.request(b"nobody", b"", WAIT)


async def test_a_request_without_an_answer_ends_in_time_and_a_late_answer_is_dropped() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        await peer.hear(b"ask")
        with pytest.raises(LateError):
            await peer.nats.request(b"ask", b"", 0.01)
        peer.nats.publish(peer.messages[0][1], b"late")
        await peer.nats.flush(WAIT)
        assert peer.lost == []


async def test_a_request_that_is_cancelled_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        await peer.hear(b"ask")
        task = asyncio.ensure_future(peer.nats.request(b"ask", b"", WAIT))
        await until(lambda: bool(peer.messages), "nothing came")
        task.cancel()
        peer.nats.publish(peer.messages[0][1], b"an answer")
        await peer.nats.flush(WAIT)
        assert task.cancelled()
    assert defects(caplog) == []


async def test_a_request_that_waits_when_the_link_is_lost_fails_before_that_is_told() -> None:
    order: list[str] = []

    def answered(error: NatsError | None, headers: bytes, payload: bytes) -> None:
        assert type(error) is LinkError
        order.append(f"{payload!r}, {len(peer.lost)} lost")

    async with NatsServer() as server, NatsPeer(server.url) as peer:
        await peer.hear(b"ask")
        for _ in range(2):
            peer.nats.ask(b"ask", b"", answered, WAIT)
        await until(lambda: len(peer.messages) == 2, "nothing came")
        server.kill()
        await peer.first_loss()
        assert order == ["b'', 0 lost"] * 2
        with pytest.raises(AwayError):
            peer.nats.ask(b"ask", b"", answered, WAIT)
        assert len(order) == 2


async def test_a_defect_of_what_takes_an_answer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError("a defect")
    left = 3

    def broken(*arguments: object) -> None:
        nonlocal left
        left -= 1
        raise error

    async with NatsServer() as server, NatsPeer(server.url) as peer:
        await peer.hear(b"ask")
        peer.nats.ask(b"nobody", b"", broken, WAIT)
        peer.nats.ask(b"ask", b"", broken, 0.01)
        await until(lambda: left == 1, "not both have ended")
        peer.nats.ask(b"ask", b"", broken, WAIT)
        await peer.nats.flush(WAIT)
        server.kill()
        await peer.first_loss()
    assert left == 0
    assert defects(caplog) == [error] * 3


# A link that is lost


async def test_after_a_restart_all_subscriptions_are_made_again() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        assert (info := peer.nats.info) is not None
        handle = peer.nats.subscribe(b"ended", peer.note)
        await peer.hear(b"a.>", b"b")
        server.kill()
        cause = await peer.first_loss()
        assert str(cause).startswith(f"127.0.0.1:{server.port}: "), cause
        assert type(cause) is LinkError and peer.nats.info is None
        with pytest.raises(AwayError, match="there is no connection to NATS"):
            peer.nats.publish(b"a.1", b"lost")
        with pytest.raises(AwayError):
            await peer.nats.flush(WAIT)
        peer.nats.unsubscribe(handle)
        peer.nats.subscribe(b"c", peer.note)
        await server.start()
        await peer.again()
        assert peer.joined[1].server_id != info.server_id
        for subject in (b"a.1", b"b", b"c", b"ended", b"b"):
            peer.nats.publish(subject, b"")
        await peer.nats.flush(WAIT)
        assert [subject for subject, *_ in peer.messages] == [b"a.1", b"b", b"c", b"b"]
        assert len(peer.lost) == 1


async def test_what_is_published_as_it_joins_comes_after_its_subscriptions() -> None:
    async with NatsServer() as server:
        peer = NatsPeer(server.url)
        peer.nats.subscribe(b"a", peer.note)
        peer.at_join = lambda: peer.nats.publish(b"a", b"hello")
        async with peer:
            await until(lambda: peer.payloads() == [b"hello"], "nothing came")


async def test_a_server_that_stands_still_is_noticed_by_its_silence() -> None:
    async with NatsServer() as server, NatsPeer(server.url, ping_interval=QUICK) as peer:
        await asyncio.sleep(QUICK * 5)
        assert peer.lost == [], "one that answers is kept"
        server.pause()
        assert str(await peer.first_loss()).endswith(": the server does not answer pings")
        with pytest.raises(AwayError):
            peer.nats.publish(b"a", b"")
        server.resume()
        await peer.again()


async def test_two_pings_without_an_answer_are_the_end() -> None:
    """Within two seconds, if nothing else is configured. Anything that comes is as good as an answer."""
    pings = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings
        writer.write(INFO)
        while line := await reader.readline():
            pings += line == b"PING\r\n"
            if pings in {1, 2}:
                writer.write(b"PONG\r\n")
            if pings == 3:
                writer.write(b"MSG a 7")

    async with scripted(serve) as where, NatsPeer(f"nats://{where}", ping_interval=QUICK) as peer:
        await peer.first_loss()
        assert pings == 3 + SILENT
    assert Options(urls=()).ping_interval * (SILENT + 1) <= 2


@pytest.mark.parametrize("tls", [False, True])
async def test_an_outbox_over_its_bound_cuts_the_link_and_is_discarded(tls: bool) -> None:
    options: dict[str, Any] = {"ping_interval": NEVER, "tls": authority().client_context() if tls else None}
    async with NatsServer(tls=tls) as server, NatsPeer(server.url, **options) as listener:
        await listener.hear(b"a")
        async with NatsPeer(server.url, max_outbox=4 * MIB, **options) as peer:
            server.pause()
            sent = 0
            while peer.nats.info is not None:
                peer.nats.publish(b"a", b"old" * 20_000)
                sent += 1
                await asyncio.sleep(0)
            with pytest.raises(AwayError):
                peer.nats.publish(b"a", b"old")
            assert "the server does not take what is sent to it" in str(await peer.first_loss())
            server.resume()
            await peer.again()
            peer.nats.publish(b"a", b"new")
            await until(lambda: b"new" in listener.payloads(), "nothing came")
            *old, new = listener.payloads()
            assert new == b"new" and len(old) < sent - 4 * MIB // 60_000
            await peer.nats.flush(WAIT)
            await listener.nats.flush(WAIT)
            assert len(listener.messages) == len(old) + 1, "nothing old came later"


async def test_what_was_corked_when_the_link_was_lost_is_discarded() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        await peer.hear(b"a")
        peer.transport.abort()  # it does not know before the next iteration
        peer.nats.publish(b"a", b"old")
        await peer.first_loss()
        await peer.again()
        await peer.nats.flush(WAIT)
        assert peer.messages == []


async def test_after_the_end_of_a_link_nothing_of_the_same_read_counts() -> None:
    end = b"-ERR 'Stale Connection'\r\n"
    late = b"MSG a 2 4\r\nlate\r\n-ERR 'Permissions Violation for Publish to \"a\"'\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
            elif line == b"SUB a 2\r\n":
                writer.write(b"MSG a 2 4\r\nsoon\r\nPING\r\n")
            elif line == b"PONG\r\n":
                writer.write(b"MSG a 2 4\r\nsoon\r\n" + end + late)

    async with scripted(serve) as where:
        peer = NatsPeer(f"nats://{where}")
        peer.nats.subscribe(b"a", peer.note)
        async with peer:
            assert str(await peer.first_loss()).endswith(": Stale Connection")
            assert peer.payloads()[:2] == [b"soon"] * 2 and b"late" not in peer.payloads()
            assert peer.forbidden == []


async def test_a_gateway_that_does_not_read_is_cut_by_nats_and_comes_back() -> None:
    async with NatsServer("max_pending: 1048576") as server:
        peer, other = NatsPeer(server.url, ping_interval=QUICK * 4), NatsPeer(server.url)
        async with peer, other:
            await peer.hear(b"a", b"b")
            peer.transport.pause_reading()
            for _ in range(20):
                other.nats.publish(b"a", b"x" * MIB)
            await other.nats.flush(WAIT)
            await peer.first_loss()
            await peer.again()
            assert "Slow Consumer" in (server.directory / "log").read_text()
            peer.messages.clear()
            other.nats.publish(b"b", b"new")
            await until(lambda: bool(peer.messages), "nothing came")
            assert peer.payloads() == [b"new"]
            assert other.lost == []


async def test_servers_are_tried_in_turn() -> None:
    async with NatsServer() as one, NatsServer() as other:
        one.end()
        async with NatsPeer(one.url, other.url) as peer:
            assert [str(error).partition(": ")[0] for error in peer.failed] == [f"127.0.0.1:{one.port}"]
            await one.start()
            other.kill()
            await peer.again()
            assert str(await peer.first_loss()).startswith(f"127.0.0.1:{other.port}: ")
            peer.nats.publish(b"a", b"")
            await peer.nats.flush(WAIT)
            assert len(peer.failed) == 1


async def test_a_server_in_lame_duck_mode_is_left_for_another_one() -> None:
    config = 'lame_duck_grace_period: "10ms"\nlame_duck_duration: "30s"'
    async with NatsServer(config) as one, NatsServer() as other, NatsPeer(one.url, other.url) as peer:
        await peer.hear(b"a")
        one.retire()
        cause = await peer.first_loss()
        assert str(cause) == f"127.0.0.1:{one.port}: the server shut down (lame duck mode)"
        await peer.again()
        assert peer.failed == []
        async with NatsPeer(other.url) as third:
            third.nats.publish(b"a", b"x")
            await until(lambda: peer.payloads() == [b"x"], "nothing came")


async def test_what_the_server_says_of_itself_may_change() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
            elif line.startswith(b"SUB "):
                writer.write(INFO.replace(b"1000", b"2000"))

    async with scripted(serve) as where, NatsPeer(f"nats://{where}") as peer:
        await peer.nats.flush(WAIT)
        assert peer.joined[0].max_payload == 1000
        assert peer.nats.info is not None and peer.nats.info.max_payload == 2000
        peer.nats.publish(b"a", b"x" * 2000)
        with pytest.raises(TooLargeError, match="2001 bytes are more than the 2000"):
            peer.nats.publish(b"a", b"x" * 2001)


async def test_a_flush_has_a_deadline_and_ends_with_the_link() -> None:
    async with NatsServer() as server, NatsPeer(server.url, ping_interval=NEVER) as peer:
        server.pause()
        with pytest.raises(LateError, match=r"no answer to a ping within 0\.05 s"):
            await peer.nats.flush(QUICK)
        flushed = asyncio.ensure_future(peer.nats.flush(WAIT))
        await asyncio.sleep(0)
        server.kill()
        with pytest.raises(LinkError):
            await flushed


async def test_other_options_count_from_the_next_attempt_on() -> None:
    async with (
        NatsServer("authorization { token: new }") as server,
        NatsPeer(server.url, join=False, token="old") as peer,
    ):
        await peer.first_failure()
        peer.nats.options = Options(urls=(), token="new")
        await peer.again(1)


@pytest.mark.parametrize("settled", [False, True])
async def test_pauses_grow_until_a_link_has_lasted(settled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def recorded(pause: float) -> None:
        if pause != 0.01:  # that of the test
            pauses.append(pause)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", recorded)
    monkeypatch.setattr(nats, "SETTLED", 0.0 if settled else NEVER)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        await reader.readline()
        writer.write(b"PONG\r\n")
        while not (await reader.readline()).startswith(b"SUB "):
            pass
        writer.close()

    async with scripted(serve) as where, NatsPeer(f"nats://{where}") as peer:
        await until(lambda: len(peer.lost) > 7, "it was not lost often enough")
    bounds = [FIRST_PAUSE] * 7 if settled else [FIRST_PAUSE * 2**number for number in range(5)] + [LONGEST_PAUSE] * 2
    assert pauses[:7] == pytest.approx([0.1 * bound for bound in bounds])


# Leaving


async def test_what_was_published_has_arrived_when_it_leaves(caplog: pytest.LogCaptureFixture) -> None:
    async with NatsServer() as server, NatsPeer(server.url) as listener:
        await listener.hear(b"a")
        answers: list[NatsError | None] = []
        async with NatsPeer(server.url) as peer:
            peer.nats.ask(b"a", b"question", lambda error, headers, payload: answers.append(error), WAIT)
            for _ in range(50):
                peer.nats.publish(b"a", b"x" * 100_000)
        await listener.nats.flush(WAIT)
        assert len(listener.messages) == 51
        assert [type(error) for error in answers] == [LinkError]
        assert peer.lost == []
        with pytest.raises(AwayError):
            peer.nats.publish(b"a", b"")
        await peer.nats.close()
    assert defects(caplog) == []


async def test_leaving_waits_for_no_server() -> None:
    async with NatsServer() as server, NatsPeer(server.url, ping_interval=NEVER) as peer:
        server.pause()
        await peer.nats.close(QUICK)
        assert peer.nats.info is None
    never = NatsPeer("nats://127.0.0.1:1", join=False)
    await never.nats.close()  # was never started
    async with never:
        await never.first_failure()
        await never.nats.close()


# The other event loop


SCENARIOS: list[Callable[[], Coroutine[Any, Any, None]]] = [
    test_messages_of_all_subscriptions_come_in_the_order_of_the_wire,
    test_subjects_payloads_and_replies_are_bytes_as_they_were_sent,
    test_a_request_gets_its_first_reply,
    test_after_a_restart_all_subscriptions_are_made_again,
    test_a_server_that_stands_still_is_noticed_by_its_silence,
    lambda: test_an_outbox_over_its_bound_cuts_the_link_and_is_discarded(False),
    lambda: test_an_outbox_over_its_bound_cuts_the_link_and_is_discarded(True),
    test_what_was_corked_when_the_link_was_lost_is_discarded,
    test_a_gateway_that_does_not_read_is_cut_by_nats_and_comes_back,
    test_leaving_waits_for_no_server,
]


@pytest.mark.parametrize("number", range(len(SCENARIOS)))
def test_the_same_on_uvloop(number: int) -> None:
    run_on("uvloop", SCENARIOS[number]())
