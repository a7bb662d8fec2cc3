"""What waits for a peer, and whom that holds up, whatever link the peer has. See also system/test_pressure."""

import asyncio

from pytest_aiohttp import AiohttpClient

from gateway.rpc.streams import Pool
from tests.support.kept import Kept, gateway_for, until
from tests.support.rpc import Way


async def test_reading_that_waits_goes_on_waiting_with_another_link(aiohttp_client: AiohttpClient) -> None:
    kept = await Kept.open(await gateway_for(aiohttp_client))
    kept.connection.wait()
    await kept.cut()
    await kept.link()
    assert "result" in await kept.resume()
    await kept.request("gateway.ping", {"n": 1})
    await asyncio.sleep(0.05)
    session = kept.connection.session
    assert session is not None
    assert (session.received, kept.connection.link.waits) == (0, 1)
    kept.connection.go_on()
    assert (await kept.next())["result"] == {"n": 1}


async def test_who_was_held_up_goes_on_when_the_link_is_lost(aiohttp_client: AiohttpClient) -> None:
    kept, sender = await Kept.open(await gateway_for(aiohttp_client)), Way()
    kept.connection.hold_up(sender)
    assert sender.waits == 1
    kept.connection.hold_up(sender)
    assert sender.waits == 1
    await kept.cut()
    await until(lambda: sender.waits == 0)
    assert not kept.connection.unheeding


async def test_what_is_held_moves_with_the_account(aiohttp_client: AiohttpClient) -> None:
    connection = (await Kept.open(await gateway_for(aiohttp_client))).connection
    before, after = connection.account, type(connection.account)(100.0)
    held = before.held
    assert connection.hold(10)
    connection.charge(after)
    assert (before.held, after.held) == (held, 10)
    connection.let_go(10)
    assert after.held == 0


async def test_there_is_room_for_streams_as_far_as_nothing_waits(aiohttp_client: AiohttpClient) -> None:
    client = await gateway_for(aiohttp_client, limits={"max_outbox_bytes": 4_000_000, "max_held_bytes": 2_000_000})
    kept, plain = await Kept.open(client), await Kept.open(client)
    session = kept.connection.session
    assert session is not None
    assert kept.connection.room == 1_500_000, "three quarters of what may be kept, which is less than the outbox"
    kept.connection.send(b"[%b]" % (b" " * 99_998))
    assert kept.connection.room == 1_400_000
    await kept.ack(session.sent)
    await until(lambda: kept.connection.room == 1_500_000)
    plain.connection.session = None
    assert plain.connection.room == 3_000_000 - plain.connection.outbox_bytes
    plain.connection.charge(type(plain.connection.account)(5_000_000))
    assert plain.connection.room == 2_500_000
    plain.connection.account.held = 2_600_000
    assert plain.connection.room == -100_000


async def test_what_is_sent_leaves_at_once_only_by_a_link_whose_peer_reads(aiohttp_client: AiohttpClient) -> None:
    kept = await Kept.open(await gateway_for(aiohttp_client))
    connection = kept.connection
    assert connection.flowing
    for _ in range(2):  # the first is more than the kernel takes, so the second is kept
        connection.link.pass_on(b"[%b]" % (b" " * 3_000_000))
        connection.link.flush()
    assert not connection.flowing
    for _ in range(2):
        await kept.ws.receive()
    await until(lambda: connection.flowing)
    await kept.cut()
    assert not connection.flowing
    await kept.back()
    await until(lambda: connection.flowing)


async def test_streams_go_on_when_their_peer_reads_acknowledges_or_is_back(aiohttp_client: AiohttpClient) -> None:
    kept = await Kept.open(await gateway_for(aiohttp_client))
    connection, told = kept.connection, list[str]()

    class Wanting:
        def __init__(self, name: str) -> None:
            self.name = name

        def tell(self) -> bool:
            told.append(self.name)
            return True

    pool = connection.pool = Pool()
    pool.wanting, pool.unread = {Wanting("room"): None}, {Wanting("read"): None}
    connection.on_drained(connection.link)
    assert told == ["room"]
    await until(lambda: told == ["room", "read"])
    await kept.ack(0)
    await until(lambda: told == ["room", "read", "room"])
    told.clear()
    await kept.cut()
    await kept.back()
    await until(lambda: told == ["room", "read"])


async def test_what_has_a_number_waits_in_one_lane_and_does_not_keep_the_peer_from_being_read(
    aiohttp_client: AiohttpClient,
) -> None:
    kept = await Kept.open(await gateway_for(aiohttp_client))
    connection = kept.connection
    for _ in range(2):  # the first is more than the kernel takes, so the second is kept
        connection.send(b"[%b]" % (b" " * 3_000_000))
        connection.link.flush()
    assert connection.link.blocked
    for number in range(1000):
        connection.send(b"[%d]" % number)
        connection.pass_on(b'["%b"]' % (b"x" * 100))
    connection.link.flush()
    assert not connection.link.stalled
    assert [len(await kept.next()) for _ in range(2)] == [0, 0]
    for number in range(1000):
        came: list[object] = [await kept.next(), await kept.next()]
        assert came == [[number], ["x" * 100]]
    await until(lambda: connection.flowing)
    await kept.ack()
    await until(lambda: connection.session is not None and connection.session.octets == 0)
