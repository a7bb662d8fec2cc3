"""The stream that gateways share: each trap of NATS, what is promised when it is away, and what it returns to."""

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.cluster import natsstream
from gateway.cluster.jetstream import Found
from gateway.cluster.natslink import LateError
from gateway.cluster.replica import sealed
from gateway.cluster.stream import Position
from gateway.config import ConfigError
from gateway.rpc.method import Refusal
from gateway.rpc.replies import SMALL
from tests.support.faulty_proxy import FaultyProxy
from tests.support.fleet import until
from tests.support.listening import data_of
from tests.support.nats import NatsServer
from tests.support.nats_peer import NatsPeer
from tests.support.rpc import passes
from tests.support.stations import NAME, Auditorium, Station, heard, numbered, refused

ODD = ("küche.licht", "$JS.API", "日本.電車", "a" * 200, "😀" * 200, "x.$.-_/\\\"'", "{[(<|;,!?#%&=~^`", "P-0.Ω.ß")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the stream ten times a second."""
    monkeypatch.setattr(natsstream, "LOOK", 0.1)
    monkeypatch.setattr(natsstream, "SOON", 0.2)


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer(jetstream=True) as server:
        yield server


def why(refusal: Refusal) -> tuple[str, object, bool]:
    """What a caller is told: the error's name, what is known of the outcome, and whether it may try again at once."""
    outcome = refusal.data.get("outcome")
    return refusal.error.name, outcome, "retryAfterMs" in refusal.data


UNAVAILABLE = ("unavailable", "not_delivered", True)
UNKNOWN = ("timeout", "unknown", False)


async def outcome(publishing: Any) -> tuple[str, object, bool]:
    """Why a message that was published may not be."""
    with pytest.raises(Refusal) as refusal:
        await publishing
    return why(refusal.value)


@asynccontextmanager
async def apart(server: NatsServer, **options: Any) -> AsyncIterator[tuple[Auditorium, Auditorium, FaultyProxy]]:
    """Two gateways, and the proxy by which the second one reaches NATS."""
    async with (
        FaultyProxy("127.0.0.1", server.port) as proxy,
        Auditorium(server.url, **options) as one,
        Auditorium(f"nats://127.0.0.1:{proxy.port}", **options) as two,
    ):
        yield one, two, proxy


async def cut_off(station: Station, proxy: FaultyProxy) -> None:
    """Take NATS from a gateway, until the proxy heals."""
    proxy.refuse = True
    proxy.cut()
    await until(lambda: not station.stream.available, "it has not noticed")


def texts(station: Station) -> list[bytes]:
    """What a gateway has heard."""
    return [text for *_, text in station.listener.heard]


def of(told: list[tuple[str, str, int]], topic: str) -> list[tuple[str, int]]:
    """What was told of a topic, without `event.`: its order among other topics is not promised."""
    return [(kind.removeprefix("event."), offset) for kind, name, offset in told if name == topic]


def messages(first: int, last: int) -> list[tuple[str, int]]:
    """The messages with these offsets, as `of` has them."""
    return [("message", offset) for offset in range(first, last + 1)]


async def caught_up(*stations: Station) -> None:
    """Wait until each of them is at the end of the stream, and its subscribers have been let go on."""
    await stations[0].within_reach()
    info = await stations[0].api(f"STREAM.INFO.{NAME}")
    for station in stations:
        await station.within_reach()
        await station.known(Position(station.replica.epoch, info["state"]["last_seq"]))
        if isinstance(station, Auditorium):
            station.turn()


# Published here, heard everywhere


async def test_a_message_is_heard_at_every_gateway_in_the_same_order_with_the_same_position(server: NatsServer) -> None:
    async with Station(server.url) as one, Station(server.url) as two, Station(server.url) as three:
        stations = (one, two, three)
        told = await asyncio.gather(*(station.publish("t", *numbered(100)) for station in stations))
        for station in stations:
            await station.known(*told)
        assert one.listener.heard == two.listener.heard == three.listener.heard
        assert one.listener.places() == [("t", offset) for offset in range(1, 301)]
        assert {one.listener.owners["t"], two.listener.owners["t"]} == {""}


async def test_a_gateway_that_comes_later_knows_what_is_kept(server: NatsServer) -> None:
    async with Station(server.url) as one:
        places = [await one.publish(f"t.{number % 7}", b"%d" % number, owner="pi") for number in range(50)]
        async with Station(server.url) as two:
            assert texts(two) == texts(one)
            assert two.listener.owners["t.0"] == "pi"
            for topic in ("t.0", "t.6"):
                told = Position(places[0].epoch, 9)
                assert two.stream.since(topic, told, 100) == one.stream.since(topic, told, 100)


async def test_who_publishes_hears_its_own_message_before_it_is_acknowledged(server: NatsServer) -> None:
    """So what a client is told at once of a position that it has just been given is right."""
    async with Station(server.url) as one:
        for number in range(50):
            position = await one.publish("a", b"%d" % number)
            assert one.stream.knows(position)


async def test_nothing_is_handed_over_after_the_end(server: NatsServer) -> None:
    async with Station(server.url) as one, Station(server.url) as two:
        await two.stream.close()
        position = await one.publish("a", b"1")
        await one.known(position)
        await two.nats.flush(10)
        assert two.listener.heard == []
        two.stream.joined()
        assert two.stream._task is None


async def test_odd_topic_names(server: NatsServer) -> None:
    async with Station(server.url) as one, Station(server.url) as two:
        for topic in ODD:
            await two.known(await one.publish(topic, b'"x"'))
        assert [topic for topic, *_ in two.listener.heard] == list(ODD)
        async with Station(server.url) as three:
            assert texts(three) == texts(two)
        assert [json.loads(text)["params"]["topic"] for *_, text in two.listener.heard] == list(ODD)


async def test_overlapping_patterns_bring_a_message_once(server: NatsServer) -> None:
    async with Auditorium(server.url) as one, Auditorium(server.url) as two:
        ear = two.ear("a.b", "a.*", "a.>", ">")
        await two.known(await one.publish("a.b", b"1", b"2"))
        assert heard(ear) == [("event.message", "a.b", 1), ("event.message", "a.b", 2)]


async def test_what_no_gateway_has_published_is_left_out_and_logged_once(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Station(server.url) as one:
        subject = one.jetstream.kept(one.replica.epoch)
        for payload in (b"hello", b"", b"{}"):
            await one.nats.request(subject + b"a", payload, 10)
        await one.nats.request(subject + b"\xff\xfe", b"1", 10)
        one.nats.publish(one.jetstream.live(one.replica.epoch) + b"a", b"1")  # not from the stream at all
        position = await one.publish("a", b"1")
        assert one.listener.places() == [("a", position.offset)] == [("a", 5)]
    lines = [record for record in caplog.records if record.__dict__.get("event") == "cluster.event_refused"]
    assert [(line.levelno, line.exc_info) for line in lines] == [(logging.WARNING, None)]
    assert "hello" in lines[0].getMessage()


# The traps of JetStream


async def test_two_gateways_that_start_at_once_have_one_stream(server: NatsServer) -> None:
    stations = [Station(server.url) for _ in range(6)]
    await asyncio.gather(*(station.__aenter__() for station in stations))
    assert len({station.replica.epoch for station in stations}) == 1
    await asyncio.gather(*(station.__aexit__(None, None, None) for station in stations))


async def test_a_stream_that_is_deleted_and_made_anew_while_all_run_has_another_epoch(server: NatsServer) -> None:
    async with Auditorium(server.url) as one, Auditorium(server.url) as two:
        ears = one.ear("t.a"), two.ear("t.*", "not.begun")
        old = await one.publish("t.a", *numbered(3))
        await two.known(old)
        await one.api(f"STREAM.DELETE.{NAME}")
        assert await outcome(one.stream.publish("t.a", b"1")) == UNAVAILABLE, "nobody has got it"
        await until(lambda: one.replica.epoch == two.replica.epoch != old.epoch, "they have not noticed")
        await one.within_reach()
        await two.within_reach()
        new = await one.publish("t.a", b"1")
        assert (new.offset, new.epoch != old.epoch) == (1, True)
        await caught_up(one, two)
        assert heard(ears[0])[3:] == [("event.gap", "t.a", 0), ("event.message", "t.a", 1)]
        after = heard(ears[1])[3:]
        assert of(after, "t.a") == [("gap", 0), ("message", 1)]
        assert (of(after, "not.begun"), [kind for kind, _ in of(after, "t.*")]) == ([("gap", 0)], ["gap"])
        assert two.stream.since("t.a", old, 10) is None


async def test_a_stream_that_is_made_anew_with_the_same_epoch_gets_another(server: NatsServer) -> None:
    """Its numbers begin again, and an operator may have made it from its configuration."""
    async with Auditorium(server.url) as one:
        ear = one.ear("a")
        old = await one.publish("a", *numbered(3))
        config = (await one.api(f"STREAM.INFO.{NAME}"))["config"]
        await one.api(f"STREAM.DELETE.{NAME}")
        await one.api(f"STREAM.CREATE.{NAME}", config)
        await until(lambda: one.replica.epoch != old.epoch, "it has not noticed")
        await one.within_reach()
        await one.publish("a", b"1")
        one.turn()
        assert heard(ear)[3:] == [("event.gap", "a", 0), ("event.message", "a", 1)]


async def test_a_stream_that_was_made_anew_with_as_many_messages_gets_another_epoch_too(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natsstream, "LOOK", 60.0)
    async with Station(server.url) as one, NatsPeer(server.url) as other:
        old = await one.publish("a", *numbered(3))
        config = (await one.api(f"STREAM.INFO.{NAME}"))["config"]
        await one.api(f"STREAM.DELETE.{NAME}")
        await one.api(f"STREAM.CREATE.{NAME}", config)
        for _ in range(3):
            await other.nats.request(one.jetstream.kept(old.epoch) + b"a", sealed("", "", b"1"), 10)
        one.stream._nudged.set()
        await until(lambda: one.replica.epoch != old.epoch, "it has not noticed")


async def test_a_stream_that_has_lost_its_last_messages_gets_another_epoch(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that went down may have lost what was not on its disk, and gives the same numbers to others."""
    async with Auditorium(server.url) as one:
        ear = one.ear("a")
        old = await one.publish("a", *numbered(3))
        look = one.jetstream.look

        async def less() -> Found:
            monkeypatch.setattr(one.jetstream, "look", look)
            return (await look())._replace(last=2)

        monkeypatch.setattr(one.jetstream, "look", less)
        await until(lambda: one.replica.epoch != old.epoch, "it has not noticed")
        await one.within_reach()
        new = await one.publish("a", b"1")
        await caught_up(one)
        assert heard(ear)[3:] == [("event.gap", "a", 0), ("event.message", "a", new.offset)]


async def test_an_epoch_that_another_gateway_has_renewed_is_followed(server: NatsServer) -> None:
    """Its numbers go on, and it has none of the messages before."""
    async with Auditorium(server.url) as one, Auditorium(server.url) as two:
        ear = two.ear("a")
        old = await one.publish("a", *numbered(3))
        await one.jetstream.renew()
        await until(lambda: one.replica.epoch == two.replica.epoch != old.epoch, "they have not noticed")
        await caught_up(one, two)
        new = await one.publish("a", b"1")
        assert new == Position(one.replica.epoch, 4)
        await caught_up(one, two)
        assert of(heard(ear)[3:], "a")[0][0] == "gap"
        assert heard(ear)[-1] == ("event.message", "a", 4)


async def test_memory_storage_loses_all_with_a_restart_and_says_so() -> None:
    async with NatsServer(jetstream=True) as server, apart(server, storage="memory") as (one, two, _):
        ear = two.ear("a", "b.>")
        old = await one.publish("a", *numbered(5))
        await two.known(old)
        await server.restart()
        await until(lambda: one.replica.epoch == two.replica.epoch != old.epoch, "they have no other stream")
        await caught_up(one, two)
        new = await one.publish("a", b"1")
        await caught_up(one, two)
        told = heard(ear)[5:]
        assert (of(told, "a"), of(told, "b.>")) == ([("gap", 0), ("message", new.offset)], [("gap", 0)])


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_file_storage_goes_on_after_a_restart_and_all_that_was_missed_comes(how: str) -> None:
    async with NatsServer(jetstream=True) as server, apart(server) as (one, two, proxy):
        ear = two.ear("a", ">")
        at = await one.publish("a", *numbered(3))
        await two.known(at)
        await cut_off(two, proxy)
        missed = await one.publish("a", *numbered(4))
        if how == "kill":
            server.kill()
            await server.start()
        else:
            await server.restart()
        proxy.heal()
        await caught_up(one, two)
        after = await one.publish("a", b"9")
        assert after == Position(at.epoch, 8) == Position(missed.epoch, missed.offset + 1)
        await caught_up(one, two)
        assert heard(ear) == [("event.message", "a", offset) for offset in range(1, 9)]
        assert two.stream.since("a", at, 100) == one.stream.since("a", at, 100)


async def test_an_age_that_took_the_last_message_of_a_topic_is_no_gap(server: NatsServer) -> None:
    """NATS then says that no message of the topic was before the next one."""
    async with Auditorium(server.url) as one:
        ear = one.ear("a")
        old = await one.publish("a", b"1")
        await one.limit(max_age=10**8)
        headers = []
        one.nats.subscribe(
            one.jetstream.live(old.epoch) + b">", lambda subject, reply, head, text: headers.append(head)
        )
        for _ in range(1000):
            if not (await one.api(f"STREAM.INFO.{NAME}"))["state"]["messages"]:
                break
            await asyncio.sleep(0.02)
        await one.publish("a", b"2")
        assert b"Nats-Last-Sequence: 0\r\n" in headers[0]
        assert heard(ear) == [("event.message", "a", 1), ("event.message", "a", 2)]
        found = one.stream.since("a", old, 10)
        assert found is not None
        assert [data_of(text) for _, text in found] == [b"2"]
        async with Station(server.url, age=0.1) as two:
            assert two.stream.since("a", Position(old.epoch, 0), 10) is None, "who was not there cannot know that"


async def test_messages_that_are_discarded_while_they_are_replayed_are_not_called_recovered(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer passes over them without a word."""
    monkeypatch.setattr("gateway.cluster.jetstream.BATCH", 10)
    async with Station(server.url, count=50, octets=1 << 27) as one:
        first = await one.publish("a", *numbered(50))
        await one.publish("b", b"1")
        two = Station(server.url, count=50, octets=1 << 27, connects=False)
        publish = two.nats.publish
        kept_back: list[tuple[bytes, bytes, bytes]] = []

        def slowly(subject: bytes, payload: bytes, reply: bytes = b"") -> None:
            if b".MSG.NEXT." in subject and two.replica.head:
                kept_back.append((subject, payload, reply))
            else:
                publish(subject, payload, reply)

        monkeypatch.setattr(two.nats, "publish", slowly)
        async with two:
            connecting = asyncio.create_task(two.connect())
            await until(lambda: bool(kept_back), "it does not ask for the next ones")
            seen = two.replica.head
            assert seen < 50, "it is in the middle"
            await one.publish("a", *numbered(45))
            monkeypatch.setattr(two.nats, "publish", publish)
            for message in kept_back:
                publish(*message)
            await connecting
            truth = [offset for name, offset in one.listener.places() if name == "a"]
            taken = [offset for name, offset in two.listener.places() if name == "a"]
            assert set(truth) - set(taken), "some were discarded"
            for offset in range(first.offset + 60):
                found = two.stream.since("a", Position(first.epoch, offset), 1000)
                assert found is None or [at for at, _ in found] == [at for at in truth if at > offset], offset
            assert two.stream.since("a", Position(first.epoch, truth[-50] - 1), 1000) is not None
            assert two.stream.since("b", Position(first.epoch, 50), 10) is not None


async def test_a_full_stream_takes_nothing_and_what_it_refuses_is_not_delivered() -> None:
    limited = "jetstream { store_dir: {directory}/streams, max_file_store: 1000000 }"
    async with NatsServer(limited) as server, Auditorium(server.url, octets=900_000) as one:
        ear = one.ear("a")
        await one.limit(max_bytes=-1)
        await one.publish("a", bytes(1_000_000))
        assert await outcome(one.stream.publish("a", b"2")) == UNAVAILABLE
        assert len(ear.frames) == 1
        await one.limit(max_msgs=1, max_bytes=100_000)
        assert (await one.publish("a", b"3")).offset == 2


async def test_a_message_larger_than_the_server_takes_is_refused_for_good(server: NatsServer) -> None:
    async with Station(server.url) as one:
        refusal = refused(lambda: one.stream.publish("a", bytes(2 << 20)))
        assert (refusal.error.temporary, refusal.data["outcome"]) == (False, "not_delivered")


# Acknowledgements


async def test_a_publish_that_is_not_acknowledged_is_unknown(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cluster.natsstream.ACK_TIMEOUT", 0.2)
    async with Station(server.url, ping_interval=60.0) as one:
        server.pause()
        publishing = one.stream.publish("a", b"1")
        assert await outcome(publishing) == UNKNOWN
        server.resume()
        await one.publish("a", b"2")
        assert one.stream._unacknowledged == one.stream._unacknowledged_bytes == 0
        assert [data_of(text) for *_, text in one.listener.heard] in ([b"1", b"2"], [b"2"]), "unknown is unknown"


async def test_a_publish_whose_link_is_lost_is_unknown_and_not_sent_again(server: NatsServer) -> None:
    async with FaultyProxy("127.0.0.1", server.port) as proxy, Station(f"nats://127.0.0.1:{proxy.port}") as one:
        proxy.swallow = True
        publishing = one.stream.publish("a", b"1")
        await asyncio.sleep(0)
        proxy.cut()
        assert await outcome(publishing) == UNKNOWN
        proxy.heal()
        await one.within_reach()
        await one.publish("a", b"2")
        assert [data_of(text) for *_, text in one.listener.heard] == [b"2"]


async def test_a_window_bounds_what_is_not_acknowledged(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natsstream, "WINDOW", 3)
    monkeypatch.setattr(natsstream, "WINDOW_BYTES", 100)
    async with Station(server.url) as one:
        first = [one.stream.publish("a", b"1") for _ in range(3)]
        full = refused(lambda: one.stream.publish("a", b"4"))
        assert why(full) == ("overloaded", "not_delivered", True)
        assert [(await publishing).offset for publishing in first] == [1, 2, 3]
        large = one.stream.publish("a", bytes(SMALL + 1))
        again = refused(lambda: one.stream.publish("a", bytes(SMALL + 1)))
        assert again.error.name == "overloaded", "one alone may be larger"
        assert (await large).offset == 4
        await one.publish("a", b"5")


async def test_small_messages_have_room_beyond_the_bytes_of_the_window(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise those who publish much would leave nothing to the others."""
    monkeypatch.setattr(natsstream, "WINDOW", 3)
    monkeypatch.setattr(natsstream, "WINDOW_BYTES", 2 * SMALL)
    async with Station(server.url) as one:
        publishing = [one.stream.publish("a", b"x" * 2 * SMALL)]
        full = refused(lambda: one.stream.publish("a", b"x" * (SMALL + 1)))
        assert why(full) == ("overloaded", "not_delivered", True)
        publishing += [one.stream.publish("a", b"x" * SMALL) for _ in range(2)]
        assert refused(lambda: one.stream.publish("a", b"1")).error.name == "overloaded", "these are too many"
        assert [(await position).offset for position in publishing] == [1, 2, 3]


async def test_who_does_not_wait_for_a_publish_any_more_costs_nothing(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Station(server.url) as one:
        await one.api(f"STREAM.DELETE.{NAME}")
        one.stream.publish("a", b"1")
        await until(lambda: not one.stream._unacknowledged, "it is not refused")
        gc.collect()
        assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    async with Station(server.url) as one:
        publishing = asyncio.ensure_future(one.stream.publish("a", b"1"))
        publishing.cancel()
        position = await one.publish("a", b"2")
        assert (position.offset, one.stream._unacknowledged) == (2, 0)


# NATS away


async def test_while_nats_is_away_nothing_is_published_and_nothing_later(server: NatsServer) -> None:
    async with apart(server) as (one, two, proxy):
        told: list[bool] = []
        two.stream.watchers.append(told.append)
        ear = two.ear("a")
        at = await one.publish("a", b"1")
        await two.known(at)
        proxy.refuse = True
        proxy.cut()
        await until(lambda: bool(told), "it has not noticed")
        assert why(refused(lambda: two.stream.publish("a", b"never"))) == UNAVAILABLE
        assert two.stream.since("a", Position(at.epoch, 0), 10) is not None, "what is known here is there"
        await one.publish("a", b"2")
        await asyncio.sleep(0.05)
        assert len(ear.frames) == 1, "live events stop"
        proxy.heal()
        await caught_up(one, two)
        assert told == [False, True]
        assert heard(ear) == [("event.message", "a", 1), ("event.message", "a", 2)]
        assert [data_of(text) for *_, text in one.listener.heard] == [b"1", b"2"] or not one.listener.heard


async def test_more_was_missed_than_is_kept_of_a_topic(server: NatsServer) -> None:
    async with apart(server, count=5) as (one, two, proxy):
        ears = two.ear("a", "b"), two.ear(">")
        for topic in ("a", "b"):
            await two.known(await one.publish(topic, b"1"))
        await cut_off(two, proxy)
        await one.publish("a", *numbered(20))
        await one.publish("b", *numbered(4))
        await one.publish("new", *numbered(7))
        proxy.heal()
        await caught_up(one, two)
        for ear in ears:
            told = heard(ear)[2:]
            assert of(told, "a") == [("gap", 17), *messages(18, 22)]
            assert of(told, "b") == messages(23, 26)
        assert of(heard(ears[1]), "new") == [("gap", 28), *messages(29, 33)]
        assert {topic for _, topic, _ in heard(ears[1])} == {"a", "b", "new"}, "it is known of which topics"


async def test_more_was_missed_than_is_kept_of_all_topics(server: NatsServer) -> None:
    async with apart(server, count=1000) as (one, two, proxy):
        ears = two.ear("a", "quiet", "not.begun"), two.ear(">")
        for topic in ("a", "quiet"):
            await two.known(await one.publish(topic, b"1"))
        await cut_off(two, proxy)
        await one.publish("hidden", b"1")
        await one.publish("a", *numbered(20))
        await one.limit(max_msgs=10)
        proxy.heal()
        await caught_up(one, two)
        for ear in ears:
            assert of(heard(ear)[2:], "a") == [("gap", 13), *messages(14, 23)]
            assert of(heard(ear)[2:], "quiet") == [("gap", 13)]
        assert of(heard(ears[0]), "not.begun") == [("gap", 13)]
        assert [kind for kind, _ in of(heard(ears[1]), ">")] == ["gap"], "for what nobody here has heard of"


async def test_all_that_was_missed_is_gone(server: NatsServer) -> None:
    async with apart(server) as (one, two, proxy):
        ear = two.ear("a")
        await two.known(await one.publish("a", b"1"))
        await cut_off(two, proxy)
        await one.publish("a", *numbered(4))
        await one.limit(max_age=10**8)
        while (await one.api(f"STREAM.INFO.{NAME}"))["state"]["messages"]:
            await asyncio.sleep(0.02)
        proxy.heal()
        await caught_up(one, two)
        await two.known(await one.publish("a", b"6"))
        assert heard(ear)[1:] == [("event.gap", "a", 5), ("event.message", "a", 6)]


async def test_a_subscription_that_is_made_while_others_are_caught_up_with_gets_what_is_new(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with apart(server) as (one, two, proxy):
        early = two.ear("a")
        await two.known(await one.publish("a", *numbered(3)))
        await cut_off(two, proxy)
        await one.publish("a", *numbered(3))
        replay = two.jetstream.replay
        late = []

        async def and_then(*arguments: Any) -> None:
            await replay(*arguments)
            late.append(two.ear("a"))
            await one.publish("a", b"7")

        monkeypatch.setattr(two.jetstream, "replay", and_then)
        proxy.heal()
        await caught_up(one, two)
        assert heard(early) == [("event.message", "a", offset) for offset in range(1, 8)]
        assert heard(late[0]) == [("event.message", "a", 7)]


async def test_a_message_that_was_missed_while_there_is_a_link_is_caught_up_with_at_once(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natsstream, "LOOK", 60.0)
    monkeypatch.setattr(natsstream, "SOON", 60.0)
    async with Auditorium(server.url) as one, Auditorium(server.url) as two:
        ear = two.ear(">")
        await two.known(await one.publish("a", b"1"))
        lose(two, lambda number: number in (2, 3))
        await one.publish("a", b"2")
        await one.publish("b", b"3")
        await one.publish("a", b"4")
        await caught_up(one, two)
        assert of(heard(ear), "a") == [("message", 1), ("message", 2), ("message", 4)]
        assert of(heard(ear), "b") == messages(3, 3)


async def test_a_last_message_that_was_missed_is_found_by_the_next_look(server: NatsServer) -> None:
    async with Auditorium(server.url) as one, Auditorium(server.url) as two:
        ear = two.ear(">")
        await two.known(await one.publish("a", b"1"))
        lose(two, lambda number: number == 2)
        await two.known(await one.publish("a", b"2"))
        two.turn()
        assert heard(ear) == [("event.message", "a", 1), ("event.message", "a", 2)]


async def test_what_comes_meanwhile_is_bounded_and_caught_up_with_too(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natsstream, "EARLY_BYTES", 1000)
    async with Station(server.url, count=1000) as one, Station(server.url, count=1000, connects=False) as two:
        await one.publish("a", *numbered(10))
        replay = two.jetstream.replay
        kept: list[int] = []

        async def and_meanwhile(*arguments: Any) -> None:
            if not kept:
                await one.publish("a", *numbered(90))
                await two.nats.flush(10)
                kept.append(len(two.stream._early))
            await replay(*arguments)

        monkeypatch.setattr(two.jetstream, "replay", and_meanwhile)
        await two.connect()
        assert kept[0] < 5
        assert two.listener.places() == [("a", offset) for offset in range(1, 101)]
        assert (len(two.stream._early), two.stream._early_bytes) == (0, 0)


async def test_a_jetstream_that_is_away_for_a_while_makes_events_unavailable_and_is_logged_once(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with Station(server.url) as one:
        look, looks = one.jetstream.look, []

        async def in_vain() -> Any:
            looks.append(1)
            raise LateError("no answer to the request in time")

        monkeypatch.setattr(one.jetstream, "look", in_vain)
        await until(lambda: len(looks) > 3, "it does not look again")
        assert why(refused(lambda: one.stream.publish("a", b"1"))) == UNAVAILABLE
        monkeypatch.setattr(one.jetstream, "look", look)
        await one.within_reach()
        await one.publish("a", b"1")
    events = [record.__dict__.get("event", "") for record in caplog.records]
    told = [event for event in events if event.startswith("cluster.events_")]
    assert told == ["cluster.events_joined", "cluster.events_lost", "cluster.events_joined"]


async def test_a_defect_is_logged_with_its_traceback_and_does_not_end_it(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Station(server.url) as one:
        with monkeypatch.context() as patch:
            patch.setattr(one.jetstream, "look", None)
            await until(lambda: not one.stream.available, "it has not looked")
        await one.within_reach()
    defects = [record for record in caplog.records if record.exc_info]
    assert {record.__dict__["event"] for record in defects} == {"cluster.defect"}


# The start


async def test_a_stream_that_cannot_be_as_configured_ends_the_start() -> None:
    async with NatsServer(jetstream=True) as server, Station(server.url):
        other = Station(server.url, storage="memory", connects=False)
        async with other:
            with pytest.raises(ConfigError, match=r"cluster.storage"):
                await other.connect()
    async with NatsServer() as server, Station(server.url, connects=False) as other:
        with pytest.raises(ConfigError, match=r"cluster.nats: there is no JetStream"):
            await other.connect()


async def test_a_start_waits_for_nats() -> None:
    async with NatsServer(jetstream=True) as server:
        server.end()
        async with Station(server.url, connects=False) as one:
            connecting = asyncio.create_task(one.connect())
            await asyncio.sleep(0.05)
            assert not connecting.done()
            await server.start()
            await connecting
            assert one.stream.available


async def test_a_position_that_another_gateway_has_told_is_waited_for(server: NatsServer) -> None:
    async with Station(server.url) as one, Station(server.url) as two:
        lose(two, lambda number: number == 1)
        at = await one.publish("a", b"1")
        assert not two.stream.knows(at)
        await two.stream.reach(at)
        await two.known(at)
        await two.stream.reach(at)
        assert two.stream.knows(Position("another", 1 << 60))


async def test_a_position_that_nobody_has_told_is_not_waited_for_long(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natsstream, "SOON", 0.05)
    async with Station(server.url) as one:
        await one.stream.reach(Position(one.replica.epoch, 1 << 60))
        assert one.stream._goals == []


async def test_a_position_that_is_waited_for_no_more_is_forgotten(server: NatsServer) -> None:
    async with Station(server.url) as one:
        epoch = one.replica.epoch
        waiting = [asyncio.create_task(one.stream.reach(Position(epoch, offset))) for offset in (1 << 60, 1, 1 << 60)]
        await passes()
        assert [number for number, _ in one.stream._goals] == [1, 1 << 60, 1 << 60]
        for wait in waiting[:2]:
            wait.cancel()
        await passes()
        assert [number for number, _ in one.stream._goals] == [1 << 60]
        waiting[2].cancel()
        assert [type(end) for end in await asyncio.gather(*waiting, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 3
        assert one.stream._goals == []


def lose(station: Station, lost: Callable[[int], bool]) -> None:
    """Have the first copy of some messages not come to this gateway."""
    stream, on_live = station.stream, station.stream._on_live

    def holed(subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        number = int(headers.partition(b"Nats-Sequence: ")[2].partition(b"\r")[0])
        if not lost(number):
            on_live(subject, reply, headers, payload)

    assert stream._subscription is not None
    station.nats.unsubscribe(stream._subscription)
    stream._subscription = station.nats.subscribe(stream._live + b">", holed)
