"""How what one process has reaches the others: `memory` is a gateway alone.

The interface is that of subjects with wildcards, queue groups and reply subjects, as NATS has them. Events go through
it already. A call reaches another process by way of `nodes.NodePeer`: a node there is a node here whose peer
publishes what it is sent, with a reply subject of its own, and hands what comes back to `calls.Calls`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Handler = Callable[[str, bytes, str], None]
"""Takes the subject, the payload and the reply subject, which is empty where no answer is wanted. Must not raise."""


class Bus(Protocol):
    """Messages between the processes of a cluster. Every call is plain and returns at once."""

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Hand a message to everybody who has subscribed, this process included, in the order of the calls."""

    def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], None]:
        """Take messages of a subject, or of a pattern such as ``event.>``; returns what ends that, once.

        Of those with the same ``queue`` one gets each message.
        """
