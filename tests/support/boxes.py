"""An outbox by itself, for tests of what it writes and when."""

import asyncio
from collections.abc import Callable

from gateway.deadlines import Standstill
from gateway.errors import Disconnect
from gateway.limits import Account
from gateway.websocket.cork import Cork
from gateway.websocket.frames import NOTHING_WRITTEN, State, Written
from gateway.websocket.outbox import Outbox


class Wire(asyncio.Transport):
    """A transport that notes what is written, and keeps as much of it as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.queued = 0
        self.closing = False
        self.on_write: Callable[[], object] = int

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Note it."""
        self.writes.append(bytes(data))
        self.on_write()

    def get_write_buffer_size(self) -> int:
        """What the test says."""
        return self.queued

    def is_closing(self) -> bool:
        """Whether the test has closed it."""
        return self.closing


class Flow:
    """Flow control as the test wants it."""

    writing_paused = False


class Box(Outbox):
    """An outbox alone, without a WebSocket."""

    def __init__(self, cork: Cork) -> None:
        self.standstill = Standstill(10.0)
        account = Account(10_000)
        super().__init__(cork, account, max_outbox_bytes=1000, outbox_timeout=5.0, standstill=self.standstill)
        self.loop = asyncio.get_running_loop()
        self.wire = self.transport = Wire()
        self.control = self.flow = Flow()
        self.state = State.OPEN
        self.ends: list[Disconnect] = []
        self.written = NOTHING_WRITTEN

    @property
    def past(self) -> Written:
        """What was written past it, and is not counted yet."""
        return self.written

    def end(self, end: Disconnect) -> None:
        """Note it."""
        self.ends.append(end)
        self.state = State.FLUSHING

    def on_blocked(self) -> None:
        """What is kept is written when the test says so."""

    def stall(self) -> None:
        """Note it."""
        self.stalled = True
