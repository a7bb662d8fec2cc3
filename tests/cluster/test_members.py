"""The members of a cluster against a real server: who is there, mail, and every way in which one is lost."""

import logging
import time
from typing import Any, Final

import msgspec
import pytest

from gateway.cluster import natswire
from gateway.cluster.alive import AWAY, DISOWNED, LEAVING, REJOINED, SILENT, UNREACHABLE, Beat, Member
from gateway.cluster.natslink import AwayError, TooLargeError
from tests.support.fleet import until
from tests.support.members import PREFIX, Fellow
from tests.support.nats import NatsServer
from tests.support.nats_peer import NatsPeer
from tests.support.patience import WAIT

NEVER: Final = 600.0
STRANGER: Final = "5eed5eed_1"


def beat(sender: str = STRANGER, number: int = 1, **more: Any) -> bytes:
    """A heartbeat that is written by hand."""
    return msgspec.json.encode(Beat(sender, "5eed5eed-0000", "stranger", number, **more))


def mail_to(fellow: Fellow, kind: bytes, sender: str = STRANGER) -> bytes:
    """The subject of mail by hand."""
    return b"%b.to.%b.%b.%b" % (PREFIX, fellow.members.address, kind, sender.encode())


def stand_still(seconds: float) -> None:
    """Hold up the event loop."""
    time.sleep(seconds)


async def told(fellow: Fellow, *lines: str) -> None:
    """Wait until a member was told of others just this."""
    await until(lambda: len(fellow.told) >= len(lines), f"it was told {fellow.told}, and not {lines}")
    assert fellow.told == list(lines)


# Who is there


async def test_members_know_each_other_at_once_and_part() -> None:
    async with NatsServer() as server, Fellow(server.url, "a", timeout=NEVER) as a:
        async with Fellow(server.url, "b", timeout=NEVER) as b:
            await a.knows("b")
            await b.knows("a")
            async with Fellow(server.url, "c", timeout=NEVER) as c:
                await c.knows("a", "b")
                assert {*map(len, (a.names, b.names))} == {2}, "they knew it before it knew them"
            await told(b, "+a", "+c", f"-c {LEAVING}")
        await told(a, "+b", "+c", f"-c {LEAVING}", f"-b {LEAVING}")


async def test_who_hears_of_a_newcomer_is_known_to_it_before_any_mail_comes() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as stranger:
        await stranger.hear(b"%b.to.%b.>" % (PREFIX, STRANGER.encode()))
        async with Fellow(server.url, "a", timeout=NEVER) as a:
            a.mail_newcomers(b"hello")
            stranger.nats.publish(PREFIX + b".beat", beat())
            await until(lambda: len(stranger.messages) >= 2, "nothing came")
            kinds = [subject.split(b".")[3] for subject, *_ in stranger.messages]
            assert kinds == [b"beat", b"hello"]


@pytest.mark.parametrize(("timeout", "settled"), [(0.3, 0.15), (1.5, 0.75), (NEVER, 1.0)])
async def test_nobody_is_settled_before_all_have_been_heard(timeout: float, settled: float) -> None:
    now = [100.0]
    async with NatsServer() as server, Fellow(server.url, "a", timeout=timeout, clock=lambda: now[0]) as a:
        assert not a.members.settled
        now[0] += settled - 0.01
        assert not a.members.settled
        now[0] += 0.02
        assert a.members.settled
        server.kill()
        await until(lambda: not a.members.settled, "it is still, without a link")


async def test_what_is_no_heartbeat_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    async with NatsServer() as server, NatsPeer(server.url) as stranger, Fellow(server.url, "a") as a:
        for payload in (b"", b"{}", b"[]", beat("a b_1"), beat("*"), beat(number=1 << 60), beat() + b"x"):
            stranger.nats.publish(PREFIX + b".beat", payload)
        stranger.nats.publish(PREFIX + b".beat", beat())
        await told(a, "+stranger")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# Mail


async def test_mail_comes_in_order_and_says_from_whom() -> None:
    async with NatsServer() as server, Fellow(server.url, "a") as a, Fellow(server.url, "b") as b:
        b.hear(b"x")
        b.hear(b"y")
        await a.knows("b")
        to = a.member("b")
        for number in range(100):
            a.members.tell(
                to, b"x" if number % 2 else b"y", b"%d" % number, b"token.%d" % number if number % 3 else b""
            )
        a.members.tell(to, b"unknown", b"")
        a.members.tell(to, b"x", b"last")
        await until(lambda: len(b.mail) > 100, "not all came")
        expected = [("a", b"token.%d" % number if number % 3 else b"", b"", b"%d" % number) for number in range(100)]
        assert b.mail == [*expected, ("a", b"", b"", b"last")]


async def test_what_is_said_comes_to_all_others() -> None:
    async with NatsServer() as server, Fellow(server.url, "a") as a, Fellow(server.url, "b") as b:
        heard: list[tuple[str, bytes]] = []
        a.members.listen(b"news", lambda member, payload: heard.append(("to a", payload)))
        b.members.listen(b"news", lambda member, payload: heard.append((member.name, payload)))
        await a.nats.flush(10)
        await b.nats.flush(10)
        await b.knows("a")
        a.members.say(b"news", b"1")
        a.members.say(b"news", b"2")
        await until(lambda: len(heard) == 2, "nothing came")
        assert heard == [("a", b"1"), ("a", b"2")]


async def test_mail_that_cannot_leave_is_refused() -> None:
    async with NatsServer() as server, Fellow(server.url, "a") as a:
        async with Fellow(server.url, "b") as b:
            await a.knows("b")
            to = a.member("b")
            with pytest.raises(TooLargeError):
                a.members.tell(to, b"x", bytes(a.members.max_payload + 1))
            b.hear(b"x")
            a.members.tell(to, b"x", bytes(a.members.max_payload))
            await until(lambda: bool(b.mail), "what just fits did not come")
        await a.knows()
        with pytest.raises(AwayError):
            a.members.tell(to, b"x", b"")
        server.kill()
        await until(lambda: not a.members.address, "the link is not lost")
        assert a.members.max_payload == 0
        with pytest.raises(AwayError):
            a.members.say(b"x", b"")


async def test_nats_says_that_a_member_is_not_there_to_who_asked_for_a_reply() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as stranger, Fellow(server.url, "a", timeout=NEVER) as a:
        a.hear(b"x")
        stranger.nats.publish(PREFIX + b".beat", beat())
        await a.knows("stranger")
        a.members.tell(a.member("stranger"), b"x", b"hello", b"7", a.members.reply_subject(b"x", b"7"))
        await until(lambda: bool(a.mail), "nothing is said")
        ((name, token, headers, payload),) = a.mail
        assert (name, token, natswire.status(headers), payload) == ("a", b"7", 503, b"")
        a.members.unreachable(a.member("stranger"))
        await told(a, "+stranger", f"-stranger {UNREACHABLE}")


async def test_mail_of_a_stranger_is_not_taken_and_it_is_told_that_it_is_none() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as stranger, Fellow(server.url, "a") as a:
        await stranger.hear(b"%b.to.%b.>" % (PREFIX, STRANGER.encode()))
        a.hear(b"x")
        stranger.nats.publish(mail_to(a, b"x"), b"hello")
        await until(lambda: bool(stranger.messages), "it is told nothing")
        assert stranger.messages[0][0] == b"%b.to.%b.lost.%b" % (PREFIX, STRANGER.encode(), a.members.address)
        assert a.mail == []


# Lost


async def test_a_silent_member_is_lost_and_told_if_it_comes_back() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as stranger, Fellow(server.url, "a", timeout=0.3) as a:
        await stranger.hear(b"%b.to.%b.>" % (PREFIX, STRANGER.encode()))
        stranger.nats.publish(PREFIX + b".beat", beat())
        await told(a, "+stranger", f"-stranger {SILENT}")
        stranger.messages.clear()
        stranger.nats.publish(PREFIX + b".beat", beat(number=2))
        await until(lambda: bool(stranger.messages), "it is told nothing")
        assert [subject.split(b".")[3] for subject, *_ in stranger.messages] == [b"lost"]
        stranger.nats.publish(PREFIX + b".beat", beat("5eed5eed_2"))
        await until(lambda: len(a.told) == 3, "it is no member again")


async def test_heartbeats_keep_members_and_one_that_stands_still_loses_nobody() -> None:
    async with (
        NatsServer() as server,
        Fellow(server.url, "a", timeout=0.3) as a,
        Fellow(server.url, "b", timeout=0.3) as b,
    ):
        await a.knows("b")
        await b.knows("a")
        first = int(a.member("b").beat)
        stand_still(1.0)
        await until(lambda: int(a.member("b").beat) > first + 5, "it is not heard any more")
        assert (a.told, b.told) == (["+b"], ["+a"])


async def test_a_member_whose_link_is_cut_is_found_out_soon_if_it_is_waited_for() -> None:
    async with NatsServer() as server, Fellow(server.url, "a", timeout=3.0) as a:
        async with NatsPeer(server.url) as stranger:
            await stranger.hear(b"%b.to.%b.>" % (PREFIX, STRANGER.encode()))
            stranger.nats.publish(PREFIX + b".beat", beat())
            await a.knows("stranger")
            member = a.member("stranger")
            for change in (a.members.busy, a.members.busy, a.members.idle):
                change(member)
            probe = b"%b.to.%b.probe.%b" % (PREFIX, STRANGER.encode(), a.members.address)
            await until(lambda: probe in [subject for subject, *_ in stranger.messages], "it is not probed")
            assert a.told == ["+stranger"]
        await told(a, "+stranger", f"-stranger {UNREACHABLE}")
        assert member.lost == UNREACHABLE
        a.members.idle(member)


async def test_who_is_not_waited_for_is_not_probed() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as stranger, Fellow(server.url, "a", timeout=0.3) as a:
        await stranger.hear(b"%b.to.%b.>" % (PREFIX, STRANGER.encode()))
        stranger.nats.publish(PREFIX + b".beat", beat())
        await a.knows("stranger")
        a.members.busy(a.member("stranger"))
        a.members.idle(a.member("stranger"))
        await told(a, "+stranger", f"-stranger {SILENT}")
        assert {subject.split(b".")[3] for subject, *_ in stranger.messages} == {b"beat"}


async def test_who_is_taken_for_lost_comes_back_as_another_member() -> None:
    async with (
        NatsServer() as server,
        NatsPeer(server.url) as stranger,
        Fellow(server.url, "a", timeout=NEVER) as a,
        Fellow(server.url, "b", timeout=NEVER) as b,
    ):
        await a.knows("b")
        await b.knows("a")
        before = a.members.address
        stranger.nats.publish(mail_to(a, b"lost"), b"")
        await told(a, "+b", f"-b {DISOWNED}", "+b")
        await told(b, "+a", f"-a {REJOINED}", "+a")
        assert before[-2:] == b"_1"
        assert a.members.address == before[:-1] + b"2"
        assert a.member("b").address == b.members.address, "only who was disowned has another address"
        a.hear(b"x")
        b.members.tell(b.member("a"), b"x", b"hello")
        await until(lambda: bool(a.mail), "mail to the new address does not come")
        stranger.nats.publish(b"%b.to.%b.x.%b" % (PREFIX, before, b.members.address), b"late")
        b.members.tell(b.member("a"), b"x", b"last")
        await until(lambda: len(a.mail) == 2, "mail to the new address does not come")
        assert [payload for *_, payload in a.mail] == [b"hello", b"last"]


async def test_without_nats_there_are_no_members_and_after_it_all_are_new() -> None:
    async with NatsServer() as server, Fellow(server.url, "a") as a, Fellow(server.url, "b") as b:
        await a.knows("b")
        await b.knows("a")
        before, number = a.member("b"), a.member("b").beat
        assert b.members.is_fresh(number)
        await server.restart()
        await told(a, "+b", f"-b {AWAY}", "+b")
        await told(b, "+a", f"-a {AWAY}", "+a")
        assert (a.members.address[-2:], b.members.address[-2:]) == (b"_2", b"_2")
        assert before.lost == AWAY
        assert a.member("b") is not before
        assert not b.members.is_fresh(number), "no call of before may begin"
        assert b.members.is_fresh(a.member("b").beat)


async def test_a_server_that_stood_still_costs_no_member_for_good() -> None:
    async with (
        NatsServer() as server,
        Fellow(server.url, "a", timeout=0.3, ping_interval=0.1) as a,
        Fellow(server.url, "b", timeout=0.3, ping_interval=0.1) as b,
    ):
        await a.knows("b")
        await b.knows("a")
        server.pause()
        await until(lambda: not (a.members.others or b.members.others), "they are not lost")
        server.resume()
        await a.knows("b")
        await b.knows("a")


async def test_after_leaving_nothing_is_said_any_more() -> None:
    async with NatsServer() as server, NatsPeer(server.url) as stranger, Fellow(server.url, "a", timeout=0.3) as a:
        await stranger.hear(PREFIX + b".beat")
        await until(lambda: len(stranger.messages) > 1, "there are no heartbeats")
        await a.members.leave()
        last = [msgspec.json.decode(payload, type=Beat) for payload in stranger.payloads()][-1]
        assert last.timeout == 0.3
        await until(lambda: b'"leaving":true' in stranger.payloads()[-1], "it does not say so")
        count = len(stranger.messages)
        await a.members.leave()
        a.members.lost()
        for _ in range(5):
            stranger.nats.publish(mail_to(a, b"x"), b"")
            await a.nats.flush(10)
        assert (len(stranger.messages), a.members.address, last.name) == (count, b"", "a")


async def test_no_heartbeat_follows_the_last_one_however_long_it_takes() -> None:
    async with NatsServer() as server, NatsPeer(server.url, ping_interval=NEVER) as stranger:
        await stranger.hear(PREFIX + b".beat")
        async with Fellow(server.url, "a", timeout=0.3, ping_interval=NEVER) as a:
            await until(lambda: len(stranger.messages) > 1, "there are no heartbeats")
            server.pause()
            await a.members.leave()  # many heartbeats would be due until it gives up
            server.resume()
            await until(lambda: b'"leaving":true' in b"".join(stranger.payloads()), "it does not say so")
            await a.nats.flush(WAIT)
            await stranger.nats.flush(WAIT)
            assert b'"leaving":true' in stranger.payloads()[-1]


# Watchers


async def test_a_watcher_that_fails_is_logged_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def member_joined(self, member: Member) -> None:
            raise ValueError("broken")

        def member_lost(self, member: Member, cause: str) -> None:
            raise ValueError("broken")

    async with NatsServer() as server, Fellow(server.url, "a") as a:
        a.members.watchers.insert(0, Broken())
        async with Fellow(server.url, "b"):
            await a.knows("b")
        await told(a, "+b", f"-b {LEAVING}")
    events = [vars(record).get("event") for record in caplog.records if record.name == "gateway.cluster.members"]
    assert events.count("cluster.defect") == 2


async def test_comings_and_goings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway")
    async with NatsServer() as server, Fellow(server.url, "a") as a:
        async with Fellow(server.url, "b") as b:
            await a.knows("b")
        await a.knows()
    lines = [vars(record) for record in caplog.records if vars(record).get("instance") == b.members.instance]
    told = [(line["event"], line["levelname"], line["member"], line.get("cause")) for line in lines]
    assert told == [("cluster.member_joined", "INFO", "b", None), ("cluster.member_lost", "WARNING", "b", LEAVING)]


async def test_heartbeats_tell_the_number_of_a_roster() -> None:
    class Numbers:
        number = 7

        def __init__(self, fellow: Fellow) -> None:
            self.fellow = fellow

        def heard(self, member: Member, number: int) -> None:
            self.fellow.told.append(f"{member.name} has {number}")

    async with NatsServer() as server, Fellow(server.url, "a", timeout=0.3) as a:
        a.members.roster = Numbers(a)
        async with NatsPeer(server.url) as stranger:
            for number, roster in enumerate((3, 4)):
                stranger.nats.publish(PREFIX + b".beat", beat(number=number, roster=roster))
            await told(a, "+stranger", "stranger has 3", "stranger has 4")
            await stranger.hear(PREFIX + b".beat")
            await until(lambda: bool(stranger.messages), "there are no heartbeats")
            assert b'"roster":7' in stranger.payloads()[0]


# The fence


async def test_a_call_begins_only_as_long_as_the_heartbeat_that_it_names_is_young() -> None:
    now = [100.0]
    async with (
        NatsServer() as server,
        Fellow(server.url, "a", timeout=NEVER, clock=lambda: now[0]) as a,
        Fellow(server.url, "b", timeout=NEVER) as b,
    ):
        await b.knows("a")
        number = b.member("a").beat
        for _ in range(int(NEVER) * 10 - 1):
            assert a.members.is_fresh(number)
            now[0] += 0.1
        assert a.members.is_fresh(number)
        now[0] += 0.11
        assert not a.members.is_fresh(number)


async def test_after_a_standstill_a_heartbeat_is_sent_at_once_and_a_call_has_to_name_that_one() -> None:
    now = [100.0]
    async with (
        NatsServer() as server,
        Fellow(server.url, "a", timeout=NEVER, clock=lambda: now[0]) as a,
        Fellow(server.url, "b", timeout=NEVER) as b,
    ):
        await b.knows("a")
        before = b.member("a").beat
        now[0] += 0.3
        assert not a.members.is_fresh(before)
        await until(lambda: b.member("a").beat != before, "there is no other heartbeat")
        assert a.members.is_fresh(b.member("a").beat)
