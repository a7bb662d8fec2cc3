"""One run: several connections to one gateway, each sends burst after burst and accounts for every reply."""

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.fuzz.model import Burst, Expected, Got, Malformed, Model, read_reply, unmatched
from tests.fuzz.mutate import Source
from tests.support.peers import Opcode, PeerClosed, RawPeer, frame
from tests.support.process import GatewayProcess

CONFIG: Final = {"methods": {"modules": ["tests.fuzz.methods"]}}
"""What the gateway under test is configured with."""

GROWTH: Final = 12 << 20
"""Bytes by which the resident memory may grow once `WARM` of the messages are sent; what a run of any length may."""

WARM: Final = 0.1
MOST_IN_BURST: Final = 40
MOST_BYTES_IN_BURST: Final = 128 * 1024
PATIENCE: Final = 60.0
"""Seconds that the replies to one burst may take."""

RECURSION: Final = 5000
INVALID_UTF8: Final = 1007
SHOWN: Final = 20
"""Findings that are kept in words; all are counted."""

_BEHIND: Final = b'{"jsonrpc":"2.0","method":"gateway.ping","id":"behind the end"}'
METHODS: Final = (
    "gateway.ping",
    "gateway.info",
    "rpc.discover",
    "rpc.cancel",
    "connection.list",
    "connection.get",
    "connection.close",
    "connection.history",
    "fuzz.later",
    "fuzz.barrier",
)


@dataclass(slots=True)
class Outcome:
    """What a run has seen. `findings`: what must not be, in words; `found` counts all of them by kind."""

    messages: int = 0
    bytes: int = 0
    connections: int = 0
    seconds: float = 0.0
    replies: Counter[str] = field(default_factory=Counter)
    """By code, `result` for those without an error, `batch` for arrays."""
    rss: list[int] = field(default_factory=list)
    """Resident bytes of the gateway: when it was warm, and at the end."""
    found: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def find(self, kind: str, text: str) -> None:
        """Note what must not be."""
        self.found[kind] += 1
        if len(self.findings) < SHOWN or self.found[kind] == 1:
            self.findings.append(f"{kind}: {text}")

    @property
    def growth(self) -> int:
        """Bytes by which the gateway has grown since it was warm."""
        return self.rss[-1] - self.rss[0]


async def fuzz(gateway: GatewayProcess, seed: int, messages: int, connections: int) -> Outcome:
    """Send this many messages, shared by the connections. The gateway must be configured with `CONFIG`."""
    # The model must be able to read what the gateway can: messages nested as deeply as its own limit allows.
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, RECURSION))
    outcome = Outcome()
    begun = time.monotonic()
    shares = [messages // connections + (index < messages % connections) for index in range(connections)]
    lanes = [Lane(gateway, f"{seed}-{index}", outcome) for index in range(connections)]
    warm = [int(share * WARM) for share in shares]
    for part in (warm, [share - first for share, first in zip(shares, warm, strict=True)]):
        await asyncio.gather(*(lane.run(count) for lane, count in zip(lanes, part, strict=True)))
        outcome.rss.append(gateway.rss())
    sys.setrecursionlimit(before)
    for lane in lanes:
        lane.close()
    outcome.seconds = time.monotonic() - begun
    if outcome.growth > GROWTH:
        outcome.find("growth", f"{outcome.growth} bytes; {outcome.rss}")
    for line in gateway.lines:
        _look_at(line, outcome)
    return outcome


def _look_at(line: dict[str, object], outcome: Outcome) -> None:
    event = line.get("event")
    if line.get("traceback") or line.get("exc_info") or event in ("call.failed", "connection.defect"):
        outcome.find("traceback", str(line))
    elif event == "connection.closed" and line.get("code") not in (INVALID_UTF8, 1006):
        outcome.find("close", str(line))


class Lane:
    """One connection, opened anew when it has ended."""

    def __init__(self, gateway: GatewayProcess, seed: str, outcome: Outcome) -> None:
        self._gateway = gateway
        self._seed = seed
        self._outcome = outcome
        self._source = Source(seed)
        self._frames = random.Random(f"frames {seed}")
        self._model = Model(METHODS)
        self._peer: RawPeer | None = None
        self._bursts = 0

    async def run(self, messages: int) -> None:
        """Send so many messages, in bursts, and account for the replies."""
        left = messages
        while left > 0:
            left -= await self._burst(min(left, MOST_IN_BURST))

    def close(self) -> None:
        """Drop the connection. May be called twice."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    async def _burst(self, most: int) -> int:
        """One burst of so many messages at most; fewer where one ends the connection. Returns how many."""
        sent: list[bytes] = []
        size = 0
        cut = False
        while len(sent) < most and size < MOST_BYTES_IN_BURST and not cut:
            sent.append(self._source.message())
            size += len(sent[-1])
            cut = not _is_utf8(sent[-1])
        burst = Burst(cut=cut)
        expected = [self._model.expect(message.decode(), burst) for message in (sent[:-1] if cut else sent)]
        self._bursts += 1
        self._outcome.messages += len(sent)
        self._outcome.bytes += size
        try:
            async with asyncio.timeout(PATIENCE):
                got = await self._exchange(sent, cut)
        except (TimeoutError, OSError) as error:
            self._find("lost", f"{type(error).__name__} {error}", sent)
            self.close()
            return len(sent)
        self._account(sent, expected, got, burst)
        return len(sent)

    async def _exchange(self, sent: Sequence[bytes], cut: bool) -> list[Got | list[Got]]:
        """Send a burst and return the replies to it."""
        if self._peer is None:
            self._peer = await RawPeer.open(self._gateway)
            await self._peer.welcome()
            self._outcome.connections += 1
        barrier = f'"barrier {self._bursts}"'
        last = _BEHIND if cut else _barrier(barrier)
        await self._peer.send_raw(b"".join([*map(self._framed, sent), frame(Opcode.TEXT, last)]))
        replies: list[Got | list[Got]] = []
        while (reply := await self._reply(sent)) is not None:
            if isinstance(reply, Got) and reply.id == barrier:
                if reply.code is None:
                    break
                # Too many were in flight: ask again.
                await self._peer.send_frame(Opcode.TEXT, _barrier(barrier))
                continue
            replies.append(reply)
        if reply is None:
            self._ended(sent, cut)
        elif cut:
            self._find("no close", "a message that was no UTF-8 ended nothing", sent)
        return replies

    def _framed(self, message: bytes) -> bytes:
        """One message in a frame, or now and then in several."""
        if self._frames.random() > 0.05:
            return frame(Opcode.TEXT, message)
        cuts = sorted(self._frames.randrange(len(message) + 1) for _ in range(self._frames.randrange(1, 4)))
        ends = [*cuts, len(message)]
        return b"".join(
            frame(Opcode.CONTINUATION if index else Opcode.TEXT, message[begin:end], fin=index == len(cuts))
            for index, (begin, end) in enumerate(zip([0, *cuts], ends, strict=True))
        )

    async def _reply(self, sent: Sequence[bytes]) -> Got | list[Got] | None:
        """The next reply, None when the stream has ended."""
        assert self._peer is not None
        while True:
            try:
                got = await self._peer.recv_frame(PATIENCE)
            except PeerClosed:
                return None
            if got.opcode == Opcode.CLOSE:
                await self._peer.send_frame(Opcode.CLOSE, got.payload[:2])
            elif got.opcode == Opcode.PING:
                await self._peer.send_frame(Opcode.PONG, got.payload)
            else:
                try:
                    reply = read_reply(got.payload.decode())
                except (Malformed, UnicodeDecodeError) as error:
                    self._find("malformed reply", f"{error}: {got}", sent)
                    continue
                self._count(reply)
                return reply

    def _count(self, reply: Got | list[Got]) -> None:
        if isinstance(reply, list):
            self._outcome.replies["batch"] += 1
        for one in reply if isinstance(reply, list) else [reply]:
            self._outcome.replies["result" if one.code is None else str(one.code)] += 1

    def _ended(self, sent: Sequence[bytes], cut: bool) -> None:
        assert self._peer is not None
        code = self._peer.close_code
        if not cut or code != INVALID_UTF8:
            self._find("close", f"{code} {self._peer.close_reason!r}, wanted {INVALID_UTF8 if cut else 'none'}", sent)
        self.close()

    def _account(
        self, sent: Sequence[bytes], expected: Sequence[Expected], got: Sequence[Got | list[Got]], burst: Burst
    ) -> None:
        missing, unexplained = unmatched(expected, got, burst)
        strange = [got[index] for index in unexplained]
        for place in missing:
            self._find("no right reply", f"wanted {expected[place]}; not explained: {_words(strange)}", [sent[place]])
        if not missing and strange:
            self._find("reply too many", _words(strange), sent)

    def _find(self, kind: str, text: str, messages: Sequence[bytes]) -> None:
        about = b" | ".join(messages)
        where = f"connection {self._seed}, burst {self._bursts}"
        self._outcome.find(kind, f"{text:.300}\n  {where}: {about[:300]!r}")


def _words(replies: Sequence[Got | list[Got]]) -> str:
    texts = (f"[{_words(reply)}]" if isinstance(reply, list) else f"{reply} under {reply.id:.40}" for reply in replies)
    return "; ".join(texts) or "nothing"


def _barrier(identity: str) -> bytes:
    return b'{"jsonrpc":"2.0","method":"fuzz.barrier","id":%b}' % identity.encode()


def _is_utf8(message: bytes) -> bool:
    try:
        message.decode()
    except UnicodeDecodeError:
        return False
    return True
