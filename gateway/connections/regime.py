"""The limits that all links of a process live under, and what these links share."""

from __future__ import annotations

from typing import Final

from gateway.config import Config
from gateway.deadlines import Standstill
from gateway.limits import Accounts, Rate
from gateway.telemetry.lines import Lines
from gateway.websocket.cork import Cork
from gateway.websocket.owner import Closings
from gateway.websocket.turns import Turns

CONTROL_SECONDS: Final = 10
"""How many seconds' worth of `limits.control_rate` a peer may send at once."""


class Regime:
    """The limits of all links of a process, taken from the configuration once. Implements `websocket.owner.Regime`.

    It also has what the links share: the cork, the turns of those that owe a credential, the deadlines of those that
    are closing, what says whether the process has stood still, and what samples the lines of the log.
    """

    __slots__ = (
        "accounts",
        "close_timeout",
        "closings",
        "compression",
        "control_rate",
        "cork",
        "heartbeat_interval",
        "heartbeat_timeout",
        "lines",
        "max_message_bytes",
        "max_outbox_bytes",
        "outbox_timeout",
        "receive_timeout",
        "standstill",
        "subprotocols",
        "turns",
    )

    def __init__(self, config: Config) -> None:
        self.heartbeat_interval = config.heartbeat.interval
        self.heartbeat_timeout = config.heartbeat.timeout
        self.receive_timeout = config.server.receive_timeout
        self.close_timeout = config.server.close_timeout
        self.compression = config.server.compression
        self.subprotocols = frozenset(config.server.subprotocols)
        self.max_message_bytes = config.limits.max_message_bytes
        self.max_outbox_bytes = config.limits.max_outbox_bytes
        self.outbox_timeout = config.limits.outbox_timeout
        per_second = config.limits.control_rate
        self.control_rate = Rate(per_second, int(per_second * CONTROL_SECONDS)) if per_second else None
        self.cork = Cork()
        bounded = config.auth.mode != "none"  # otherwise all have one name
        self.accounts = Accounts(config.limits.max_principal_bytes if bounded else None)
        self.turns = Turns()
        self.standstill = Standstill(self.heartbeat_timeout)
        self.closings = Closings(self.close_timeout)
        self.lines = Lines()
