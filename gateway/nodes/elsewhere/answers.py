"""What other gateways say of our calls to nodes there: results, errors, reports, grants, and why there is no answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Raw

from gateway import errors
from gateway.errors import NOT_DELIVERED, RPC_ERRORS, UNKNOWN
from gateway.nodes.elsewhere.distant import Distant
from gateway.nodes.elsewhere.mail import SEPARATOR, MailError, numbers
from gateway.nodes.routed import RoutedCall
from gateway.nodes.routing import Router
from gateway.nodes.streams import Streams
from gateway.rpc import jsonrpc
from gateway.rpc.jsonrpc import Message
from gateway.rpc.streams import Grant
from gateway.telemetry.counts import NODE_ERROR, OK, Tally

Act = Callable[[Distant, bytes, bytes], None]
"""Takes what is said of one call: by whom, the call's token, and what it is. May raise MailError."""

_NAMES: Final = frozenset(error.name for error in RPC_ERRORS)


class Answers:
    """Ends our calls to nodes at other gateways, as those say. ``streams`` is what peers have, too."""

    def __init__(self, router: Router, streams: Streams) -> None:
        self._router = router
        self._calls = router.calls
        self._streams = streams
        self.called: Final = Tally(NODE_ERROR)
        """How long calls took that were answered."""
        self.late = 0
        """How many answers to calls came that were over."""
        self.acts: Final[dict[bytes, Act]] = {
            b"error": self._error,
            b"refused": self._refused,
            b"ended": self._ended,
            b"gone": self._gone,
            b"progress": self._progress,
            b"demand": self._demand,
        }
        """What is said of calls, apart from their results."""

    def results(self, distant: Distant, payload: bytes) -> None:
        """Take a pack of results."""
        fields = payload.split(SEPARATOR)
        if len(fields) % 2:
            raise MailError(f"not tokens and results: {payload[: jsonrpc.MAX_DETAIL]!r}")
        router, peers, ended = self._router, distant.peers, self.called.ended
        brief, now = router.brief, router.clock()
        pairs = iter(fields)
        for token, value in zip(pairs, pairs, strict=True):
            call_id, _, number = token.partition(b"-")
            peer = peers.get(number)
            call = None if peer is None else peer.calls.pop(call_id, None)
            if not isinstance(call, RoutedCall):
                self.late += 1
                continue
            del call.slot[call]  # all this as Calls.answered() and RoutedCall.answered() do
            ended(OK, now - call.begun)
            parts = b'{"jsonrpc":"2.0","id":', call.request_id, b',"result":', value, b"}"
            if call.caller.link.pressed or len(value) > brief:
                call.reply_with_care(OK, parts)
            else:
                call.over(OK, b"".join(parts))

    def _take(self, distant: Distant, token: bytes) -> RoutedCall | None:
        """Return a call that is over now; None if it was over before."""
        call_id, _, number = token.partition(b"-")
        peer = distant.peers.get(number)
        call = None if peer is None else self._calls.take(peer, call_id)
        if isinstance(call, RoutedCall):
            return call
        self.late += 1
        return None

    def _error(self, distant: Distant, token: bytes, error: bytes) -> None:
        call = self._take(distant, token)
        if call is not None:
            self.called.ended(NODE_ERROR, self._router.clock() - call.begun)
            call.answered(Message("2.0", error=Raw(error)))

    def _refused(self, distant: Distant, token: bytes, said: bytes) -> None:
        name, _, error = _verdict(said)
        call = self._take(distant, token)
        if call is not None:
            call.over(name, b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (call.request_id, error))

    def _ended(self, distant: Distant, token: bytes, said: bytes) -> None:
        name, outcome, error = _verdict(said)
        call = self._take(distant, token)
        if call is not None:
            call.over(name, self._router.ended_elsewhere(call, name, outcome, error))

    def _gone(self, distant: Distant, token: bytes, said: bytes) -> None:
        call = self._take(distant, token)
        if call is not None:
            call.failed(errors.NODE_NOT_REACHED)

    def _progress(self, distant: Distant, token: bytes, value: bytes) -> None:
        call_id, _, number = token.partition(b"-")
        peer = distant.peers.get(number)
        if peer is not None:
            self._router.progress(peer, call_id, value)

    def _demand(self, distant: Distant, token: bytes, said: bytes) -> None:
        call_id, _, number = token.partition(b"-")
        grant, peer = Grant(*numbers(said, 2)), distant.peers.get(number)
        if peer is not None:
            self._streams.demand(peer, call_id, grant)


def _verdict(said: bytes) -> tuple[str, str, bytes]:
    """Return the name of an error, its outcome, and its object. Raises MailError if they are anything else."""
    head, _, error = said.partition(b"\n")
    name, _, outcome = head.decode("ascii", "replace").partition(" ")
    if name not in _NAMES or outcome not in {NOT_DELIVERED, UNKNOWN} or error[:1] != b"{":
        raise MailError(f"not a verdict: {said[: jsonrpc.MAX_DETAIL]!r}")
    return name, outcome, error
