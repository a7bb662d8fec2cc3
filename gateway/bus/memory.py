"""The bus of a gateway alone: a message is handed over within the call."""

from __future__ import annotations

from collections.abc import Callable

from gateway.bus import Handler
from gateway.names import matches


class MemoryBus:
    """A `bus.Bus` within one process."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], list[Handler]] = {}  # pattern and queue

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Call every handler that has subscribed; of each queue the one whose turn it is."""
        for (pattern, queue), handlers in list(self._groups.items()):
            if not matches(pattern, subject):
                continue
            if queue:
                handlers.append(handlers.pop(0))
                handlers[-1](subject, payload, reply)
            else:
                for handler in list(handlers):
                    handler(subject, payload, reply)

    def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], None]:
        """Add a handler; returns what takes it away."""
        group = self._groups.setdefault((subject, queue), [])
        group.append(handler)

        def end() -> None:
            group.remove(handler)
            if not group:
                del self._groups[subject, queue]

        return end
