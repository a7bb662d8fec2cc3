"""JetStream's API: what the stream is made and kept as, what is refused, and how it is replayed."""

import asyncio
from typing import Any

import pytest

from gateway.cluster.jetstream import ACK_TIMEOUT, ApiError, Found, JetStream, Wanted
from gateway.cluster.natslink import LateError, NatsError, NoRespondersError
from gateway.config import ConfigError
from tests.support.nats import NatsServer
from tests.support.nats_peer import NatsPeer

WANTED: dict[str, Any] = {"storage": "file", "replicas": 1, "count": 5, "age": 60.0, "octets": 1 << 20}


class Desk:
    """A client of JetStream, and the epochs that it makes."""

    def __init__(self, peer: NatsPeer, prefix: str = "e", **wanted: Any) -> None:
        self.nats = peer.nats
        self.epochs: list[str] = []
        self.prefix = prefix
        self.jetstream = JetStream(peer.nats, "gw", Wanted(**WANTED | wanted), self.new_epoch)

    def new_epoch(self) -> str:
        """The next one."""
        self.epochs.append(f"{self.prefix}{len(self.epochs) + 1}")
        return self.epochs[-1]

    async def publish(self, epoch: str, topic: str, payload: bytes) -> int:
        """Publish, and return the number, or raise why there is none."""
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def answered(error: NatsError | None, headers: bytes, text: bytes) -> None:
            if error is None:
                done.set_result(text)
            else:
                done.set_exception(error)

        self.nats.ask(self.jetstream.kept(epoch) + topic.encode(), payload, answered, ACK_TIMEOUT)
        return self.jetstream.number_of(await done)

    async def replay(self, epoch: str, first: int, last: int = 0) -> list[tuple[str, int, bytes]]:
        """Topic, number and payload of all from a number on, until there is no more, or until another number."""
        found = []

        def take(topic: str, number: int, at: float, payload: bytes) -> bool:
            found.append((topic, number, payload))
            return number == last

        await self.jetstream.replay(epoch, first, take)
        return found

    async def config(self, **changed: Any) -> dict[str, Any]:
        """What the stream is configured as, after some of it was changed by its operator."""
        reply = await self.jetstream._call("STREAM.INFO.gw", None)
        if changed:
            reply = await self.jetstream._call("STREAM.UPDATE.gw", reply.config | changed)
        return reply.config


async def test_the_stream_is_made_with_its_limits_and_found_again() -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer)
        found = await desk.jetstream.look()
        assert found == Found("e1", found.created, 1, 0, 5)
        config = await desk.config()
        assert config["subjects"] == ["gw.event.e1.>"]
        assert config["republish"] == {"src": "gw.event.e1.>", "dest": "gw.live.e1.>"}
        kept = [config[key] for key in ("max_msgs_per_subject", "max_age", "max_bytes", "max_msgs", "num_replicas")]
        assert kept == [5, 60 * 10**9, 1 << 20, -1, 1]
        assert (config["discard"], config["storage"], config["retention"]) == ("old", "file", "limits")
        assert (config["deny_delete"], config["deny_purge"]) == (True, True)
        assert await desk.publish("e1", "a", b"1") == 1
        assert await Desk(peer, "other").jetstream.look() == Found("e1", found.created, 1, 1, 5)


@pytest.mark.parametrize("nothing", [{"count": 0}, {"age": 0.0}, {"octets": 0}], ids=str)
async def test_a_gateway_that_keeps_nothing_has_a_stream_that_numbers_messages(nothing: dict[str, Any]) -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer, **nothing)
        await desk.jetstream.look()
        numbers = [await desk.publish("e1", topic, b"1") for topic in ("a", "b", "a")]
        config = await desk.config()
        assert (numbers, config["max_msgs"], config["max_msgs_per_subject"]) == ([1, 2, 3], 1, 1)


async def test_two_creators_at_once_have_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        one, two = Desk(peer, "one"), Desk(peer, "two")
        read = two.jetstream._read
        answers = [None]

        async def blind() -> Any:
            return answers.pop() if answers else await read()

        monkeypatch.setattr(two.jetstream, "_read", blind)  # it looks right before the other one creates it
        first = await one.jetstream.look()
        assert await two.jetstream.look() == first
        assert two.epochs == ["two1"], "it has tried"


async def test_limits_that_were_changed_are_those_of_the_gateway_that_started_last() -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        await Desk(peer).jetstream.look()
        less = Desk(peer, "less", count=3, age=30.0)
        assert (await less.jetstream.look()).epoch == "e1"
        assert (await less.config())["max_age"] == 30 * 10**9
        await less.config(max_bytes=77_777)
        await less.jetstream.look()
        assert (await less.config())["max_bytes"] == 77_777, "once, so two of them have no quarrel"


async def test_a_stream_that_is_to_keep_more_of_a_topic_begins_another_epoch() -> None:
    """It cannot be told any more which topics had lost messages by the lower limit."""
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        await Desk(peer).jetstream.look()
        more = Desk(peer, "more", count=6)
        found = await more.jetstream.look()
        assert (found.epoch, found.limit) == ("more1", 6)


async def test_a_stream_with_another_storage_is_refused() -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        await Desk(peer).jetstream.look()
        with pytest.raises(ConfigError, match=r'cluster.storage: the stream "gw" of NATS has the storage "file"'):
            await Desk(peer, storage="memory").jetstream.look()


@pytest.mark.parametrize(
    "config",
    [{"subjects": ["gw.event.>"]}, {"subjects": ["a"], "republish": {"src": "a", "dest": "gw.live.e"}}],
    ids=str,
)
async def test_a_stream_of_others_is_refused(config: dict[str, Any]) -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer)
        await desk.jetstream._call("STREAM.CREATE.gw", {"name": "gw", **config})
        with pytest.raises(ConfigError, match=r"cluster.name: NATS has a stream \"gw\" that is not a gateway's"):
            await desk.jetstream.look()


async def test_what_jetstream_has_no_room_for_is_a_mistake_of_the_configuration() -> None:
    limited = "jetstream { store_dir: {directory}/streams, max_file_store: 1000 }"
    async with NatsServer(limited) as server, NatsPeer(server.url) as peer:
        with pytest.raises(ConfigError, match="insufficient storage"):
            await Desk(peer).jetstream.look()
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        with pytest.raises(ConfigError, match="replicas > 1 not supported"):
            await Desk(peer, replicas=3).jetstream.look()


async def test_no_jetstream() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        with pytest.raises(ConfigError, match=r"cluster.nats: there is no JetStream.*; a NATS server, and an account"):
            await Desk(peer).jetstream.check()
    accounts = (
        "accounts { A { jetstream: enabled, users: [{user: a, password: x}] }, B { users: [{user: b, password: x}] } }"
    )
    async with NatsServer(accounts, jetstream=True) as server:
        async with NatsPeer(server.url, user="a", password="x") as peer:
            await Desk(peer).jetstream.check()
        async with NatsPeer(server.url, user="b", password="x") as peer:
            with pytest.raises(ConfigError, match="there is no JetStream"):
                await Desk(peer).jetstream.check()


async def test_a_jetstream_that_does_not_answer_yet_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer)

        async def nobody(subject: bytes, payload: bytes, timeout: float) -> Any:
            raise NoRespondersError("nobody")

        monkeypatch.setattr(desk.nats, "request", nobody)
        with pytest.raises(NoRespondersError):
            await desk.jetstream.check()


async def test_another_epoch_has_other_subjects_and_what_is_published_to_the_old_ones_is_not_delivered() -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer)
        await desk.jetstream.look()
        await desk.publish("e1", "a", b"old")
        found = await desk.jetstream.renew()
        assert (found.epoch, found.last) == ("e2", 1)
        with pytest.raises(NoRespondersError):
            await desk.publish("e1", "a", b"too late")
        assert await desk.publish("e2", "a", b"new") == 2
        assert await desk.replay("e2", 1) == [("a", 2, b"new")]
        await desk.jetstream._call("STREAM.DELETE.gw", None)
        assert (await desk.jetstream.renew()).epoch == "e3", "and if it is gone it is made"


async def test_a_replay_has_all_from_a_number_on_until_there_is_no_more_or_enough() -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer, count=1000)
        await desk.jetstream.look()
        assert await desk.replay("e1", 1) == []
        sent = [(f"t.{number % 3}", number, b"%d" % number) for number in range(1, 41)]
        for topic, _, payload in sent:
            await desk.publish("e1", topic, payload)
        assert await desk.replay("e1", 1) == sent
        assert await desk.replay("e1", 38) == sent[37:]
        assert await desk.replay("e1", 41) == []
        assert await desk.replay("e1", 3, last=7) == sent[2:7]
        assert list(desk.nats._subscriptions) == [b"1"], "only the answers to requests are heard"


@pytest.mark.parametrize(("size", "asked"), [(500_000, range(20, 60)), (0, range(9, 10))], ids=["large", "small"])
async def test_a_replay_is_asked_for_in_pieces(monkeypatch: pytest.MonkeyPatch, size: int, asked: range) -> None:
    """Of few bytes, so that other messages have their turn, and NATS does not take the gateway for too slow."""
    monkeypatch.setattr("gateway.cluster.jetstream.BATCH", 10)
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer, count=1000, octets=1 << 27)
        await desk.jetstream.look()
        for number in range(90):
            await desk.publish("e1", "a", bytes(size) + b"%d" % number)
        requests = []
        publish = desk.nats.publish

        def noted(subject: bytes, payload: bytes, reply: bytes = b"") -> None:
            if b".MSG.NEXT." in subject:
                requests.append(subject)
            publish(subject, payload, reply)

        monkeypatch.setattr(desk.nats, "publish", noted)
        found = await desk.replay("e1", 1)
        assert [number for _, number, _ in found] == list(range(1, 91))
        assert len(requests) in asked


async def test_a_replay_of_a_stream_that_is_gone_ends() -> None:
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer)
        await desk.jetstream.look()
        await desk.publish("e1", "a", b"1")
        await desk.jetstream._call("STREAM.DELETE.gw", None)
        with pytest.raises(ApiError, match="stream not found"):
            await desk.replay("e1", 1)


async def test_a_replay_that_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cluster.jetstream.QUIET", 0.1)
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer)
        await desk.jetstream.look()
        await desk.publish("e1", "a", b"1")
        subscribe = desk.nats.subscribe
        monkeypatch.setattr(desk.nats, "subscribe", lambda subject, handler: subscribe(subject, lambda *message: None))
        with pytest.raises(LateError, match="no message of a replay"):
            await desk.replay("e1", 1)


async def test_what_does_not_come_any_more_ends_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was left may be dropped before it is delivered: then the consumer says so."""
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer)
        await desk.jetstream.look()
        await desk.publish("e1", "a", b"1")
        call = desk.jetstream._call

        async def too_many(what: str, body: object) -> Any:
            reply = await call(what, body)
            reply.num_pending += 1
            return reply

        monkeypatch.setattr(desk.jetstream, "_call", too_many)
        assert await desk.replay("e1", 2) == []


async def test_a_consumer_that_is_deleted_ends_a_replay_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cluster.jetstream.QUIET", 0.1)
    async with NatsServer(jetstream=True) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer)
        await desk.jetstream.look()
        await desk.publish("e1", "a", b"1")
        call = desk.jetstream._call

        async def and_gone(what: str, body: object) -> Any:
            reply = await call(what, body)
            await call(f"CONSUMER.DELETE.gw.{reply.name}", None)
            return reply

        monkeypatch.setattr(desk.jetstream, "_call", and_gone)
        with pytest.raises(LateError):
            await desk.replay("e1", 1)


async def test_a_message_that_jetstream_has_no_room_for_is_not_stored() -> None:
    limited = "jetstream { store_dir: {directory}/streams, max_file_store: 100000 }"
    async with NatsServer(limited) as server, NatsPeer(server.url) as peer:
        desk = Desk(peer, octets=90_000, count=1000)
        await desk.jetstream.look()
        await desk.config(max_bytes=-1)
        await desk.publish("e1", "a", bytes(110_000))
        with pytest.raises(ApiError, match="insufficient resources") as error:
            await desk.publish("e1", "b", b"1")
        assert error.value.not_stored
        assert (await desk.jetstream.look()).last == 1


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b'{"error":1}'])
async def test_what_is_no_answer_of_jetstream(answer: bytes) -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer, NatsPeer(server.url) as strange:
        strange.nats.subscribe(b"gw.event.>", lambda subject, reply, *_: strange.nats.publish(reply, answer))
        strange.nats.subscribe(b"$JS.>", lambda subject, reply, *_: strange.nats.publish(reply, answer))
        await strange.nats.flush(10)
        desk = Desk(peer)
        with pytest.raises(NatsError, match="it is not JetStream that answers"):
            await desk.jetstream.look()
        with pytest.raises(NatsError, match="it is not JetStream that answers"):
            await desk.publish("e1", "a", b"1")


async def test_an_acknowledgement_without_a_number_is_none() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer, NatsPeer(server.url) as strange:
        strange.nats.subscribe(b"gw.>", lambda subject, reply, *_: strange.nats.publish(reply, b'{"stream":"gw"}'))
        await strange.nats.flush(10)
        with pytest.raises(ApiError) as error:
            await Desk(peer).publish("e1", "a", b"1")
        assert not error.value.not_stored


async def test_acknowledgements_are_read_as_the_last_one_was_or_decoded() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as peer:
        jetstream = Desk(peer).jetstream
        acks = [b'{"stream":"gw", "seq":%d}' % number for number in (9, 10, 123456)]
        assert [jetstream.number_of(ack) for ack in acks] == [9, 10, 123456]
        assert jetstream.number_of(b'{"stream":"gw", "domain":"d", "seq":7}') == 7
        assert jetstream.number_of(b'{"stream":"gw","seq":8,"duplicate":true}') == 8
        assert jetstream.number_of(acks[1]) == 10
        assert jetstream.number_of(b'{"stream":"gw", "seq":11 }') == 11
        for none in (b'{"stream":"gw", "seq":0}', b'{"error":{"code":503,"err_code":10077},"stream":"gw", "seq":5}'):
            with pytest.raises(ApiError):
                jetstream.number_of(none)
        for strange in (
            b'{"stream":"gw", "seq":12',
            b'{"stream":"gw", "seq":1_2}',
            b'{"stream":"gw", "seq":}',
            b"}",
            b"",
        ):
            with pytest.raises(NatsError, match="it is not JetStream"):
                jetstream.number_of(strange)
        with pytest.raises(NatsError, match="it is not JetStream"):
            jetstream.number_of(b'{"stream":"gw", "seq":%b}' % (b"9" * 5000))
