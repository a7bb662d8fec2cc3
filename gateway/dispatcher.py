"""What the messages of a connection mean: each request finds its method, or gets the refusal that it deserves."""

from __future__ import annotations

from typing import Final, Protocol

from gateway import errors, jsonrpc
from gateway.status import Phase, Status

_WHILE_DRAINING: Final = ("gateway.ping", "rpc.")


class Peer(Protocol):
    """The connection that a message came from, as far as it is answered."""

    def send(self, payload: bytes) -> None:
        """Send one JSON text."""


class Dispatcher:
    """Answers JSON-RPC messages."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def dispatch(self, peer: Peer, data: bytes) -> None:
        """Handle one text message of ``peer``. Never blocks; raises only for a defect."""
        message = jsonrpc.decode(data)
        if not isinstance(message, list):
            reply = self._answer(message)
            if reply is not None:
                peer.send(reply)
            return
        replies = [reply for reply in map(self._answer, message) if reply is not None]
        if replies:
            peer.send(jsonrpc.batch(replies))

    def _answer(self, message: jsonrpc.Message) -> bytes | None:
        if isinstance(message, jsonrpc.Invalid):
            return jsonrpc.error_reply(message.id, message.error, f"{message.error.message}: {message.detail}")
        if isinstance(message, jsonrpc.Response) or not message.id:
            return None
        if self._status.phase is Phase.DRAINING and not message.method.startswith(_WHILE_DRAINING):
            return jsonrpc.error_reply(message.id, errors.DRAINING)
        return jsonrpc.error_reply(
            message.id, errors.METHOD_NOT_FOUND, f"{errors.METHOD_NOT_FOUND.message}: {message.method}"
        )
