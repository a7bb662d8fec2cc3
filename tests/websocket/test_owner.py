"""What a link's owner is told, how often and in which order, and what becomes of it after the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway import errors
from gateway.config import parse
from gateway.connections.regime import Regime
from gateway.errors import Disconnect
from gateway.websocket.frames import NOTHING_WRITTEN, TEXT, Payload, Written
from gateway.websocket.link import Link
from gateway.websocket.owner import NO_OWNER
from tests.support.fleet import until
from tests.support.peers import Opcode, RawPeer, Target


class Noting:
    """A link's owner, and its own endpoint, that notes each call. Implements `gateway.websocket.owner.Owner`."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[str] = []
        self.ends: list[Disconnect] = []
        self.links: list[Link] = []
        self._failing = failing
        """The call that raises."""

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call == self._failing:
            raise RuntimeError("a defect")

    @property
    def past(self) -> Written:
        """Nothing is written past the outbox."""
        return NOTHING_WRITTEN

    @property
    def endpoint(self) -> Noting:
        """It is its own endpoint."""
        return self

    def text(self, connection: object, data: Payload) -> None:
        """Note it."""
        self._note("text")

    def binary(self, connection: object, data: Payload) -> None:
        """Note it."""
        self._note("binary")

    def on_open(self, link: Link) -> None:
        """Note it, and the link."""
        self.links.append(link)
        self._note("open")

    def on_defect(self, error: BaseException) -> None:
        """Note it."""
        self._note("defect")

    def on_blocked(self, link: Link) -> None:
        """Note it."""
        self._note("blocked")

    def on_drained(self, link: Link) -> None:
        """Note it."""
        self._note("drained")

    def on_ending(self, link: Link) -> None:
        """Note it."""
        self._note("ending")

    def on_closed(self, link: Link, end: Disconnect) -> None:
        """Note it, and the end."""
        self._note("closed")
        self.ends.append(end)


@asynccontextmanager
async def served(owner: Noting) -> AsyncIterator[Target]:
    """Serve links for this owner."""
    regime = Regime(parse({}))

    async def websocket(request: web.Request) -> web.StreamResponse:
        link = Link(owner, regime.cork, regime, regime.closings)
        await link.prepare(request)
        await link.run()
        return link

    app = web.Application()
    app.router.add_get("/ws", websocket)
    async with TestServer(app, host="127.0.0.1") as server:
        assert server.port is not None
        yield Target(server.port)


async def test_a_life_from_its_opening_to_the_peers_close() -> None:
    owner = Noting()
    async with served(owner) as target:
        with await RawPeer.open(target) as peer:
            await peer.send_frame(Opcode.TEXT, b"1")
            await peer.send_frame(Opcode.BINARY, b"2")
            await peer.leave(4000)
        await until(lambda: bool(owner.ends), "never closed")
    assert owner.calls == ["open", "text", "binary", "blocked", "ending", "closed"]
    assert [(end.cause, end.code) for end in owner.ends] == [("client_close", 4000)]


async def test_a_transport_that_is_lost_while_the_link_is_open() -> None:
    """The ending is told in the next iteration, when the end itself is told already."""
    owner = Noting()
    async with served(owner) as target:
        with await RawPeer.open(target) as peer:
            peer.rst()
            await until(lambda: "ending" in owner.calls, "never ended")
    assert owner.calls == ["open", "blocked", "closed", "ending"]
    assert owner.ends == [errors.TRANSPORT_LOST]


@pytest.mark.parametrize(
    ("failing", "before"), [("open", ["open"]), ("text", ["open", "text"]), ("binary", ["open", "text", "binary"])]
)
async def test_a_defect_is_told_and_ends_the_link(failing: str, before: list[str]) -> None:
    owner = Noting(failing)
    async with served(owner) as target:
        with await RawPeer.open(target) as peer:
            await peer.send_frame(Opcode.TEXT, b"1")
            await peer.send_frame(Opcode.BINARY, b"2")
            await peer.recv_until_closed()
            assert peer.close_code == 1011
        await until(lambda: bool(owner.ends), "never closed")
    assert owner.calls == [*before, "defect", "blocked", "ending", "closed"]
    assert owner.ends == [errors.INTERNAL_FAILURE]


async def test_a_link_that_is_over_has_let_its_owner_go() -> None:
    """What still calls it, such as a timer, reaches nobody."""
    owner = Noting()
    async with served(owner) as target:
        with await RawPeer.open(target) as peer:
            await peer.leave()
        await until(lambda: bool(owner.ends), "never closed")
    (link,) = owner.links
    before = list(owner.calls)
    calls: list[Callable[[], object]] = [
        lambda: link.on_message(TEXT, b"late"),
        lambda: link.fail(RuntimeError("late")),
        lambda: link.end(errors.SHUTDOWN),
        link.abort,
        link.on_lost,
    ]
    for call in calls:
        call()
    assert link.owner is NO_OWNER and link.owner.endpoint is NO_OWNER
    assert (link.messages_out, link.outbox_bytes) == (0, 0)
    assert owner.calls == before
