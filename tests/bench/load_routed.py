"""The load of `routed`: a caller that keeps calls in flight, and the node that answers them, both in this process."""

import gc
import json
import re
import secrets
import select
import socket
import time
from dataclasses import asdict, replace
from typing import Any

from tests.bench.client import PATIENCE, READ_SIZE, Target, ask, open_websocket, receive_text
from tests.bench.frames import (
    ACK_TEXT,
    FIN,
    MASKED,
    NATS_PONG,
    PING,
    TEXT,
    FrameReader,
    PeerError,
    ReplyCounter,
    masked,
    pong,
)
from tests.bench.kept import KeptCounter, Received, without_acks
from tests.bench.load_rpc import FIRST_ID, RING, Caller, End, RpcLoad, clock, close, request_ring
from tests.bench.nats import NatsCounter, NatsReader

METHOD = "bench.echo"
CALL = b'{"jsonrpc":"2.0","id":%%d,"method":"%b","params":[1]}'
REQUEST = CALL % METHOD.encode()
REGISTER = b'{"jsonrpc":"2.0","id":1,"method":"node.register","params":{"name":"%b","methods":[{"name":"%b"}]}}'
KNOWN = b'{"jsonrpc":"2.0","id":1,"method":"node.get","params":{"name":"%b"}}'
ANSWER = b'{"jsonrpc":"2.0","id":%b,"result":[1]}'
# A call's id, with and without the blanks that the stdlib's json writes.
IDENTITY = re.compile(rb'"id": ?(\d+), ?"method"')
FIRST = FIN | TEXT
# The call that is looked at has an id of its own, as long as the others.
TRIED = FIRST_ID + RING

# No +OK for each call and answer, and no check of each subject, both of which are on where nothing is said: as NATS's
# own clients connect. The PONG tells that the subscription is there.
NATS_SUBSCRIBE = b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB %b 1\r\nPING\r\n'
NATS_CALLS, NATS_REPLIES = b"bench.call", b"bench.reply"
NATS_REQUEST = b"PUB %b %b %d\r\n%b\r\n" % (NATS_CALLS, NATS_REPLIES, len(REQUEST % FIRST_ID), REQUEST)
NATS_ANSWER = b"PUB %b %d\r\n%b\r\n"


class Node:
    """The connection that answers calls: with one send, whatever one read has brought.

    Its frames are masked with four equal octets, so that one `bytes.translate` masks all frames of a send. What the
    mask must not change, the headers, has been masked once before.
    """

    __slots__ = ("_around", "_mask", "_reader", "_received", "_sock", "_target")

    errors = 0

    def __init__(self, sock: socket.socket, target: Target) -> None:
        self._sock = sock
        self._target = target
        self._reader = FrameReader()
        self._received = Received() if target.kept else None
        octet = 1 + secrets.randbelow(255)
        self._mask = bytes(octet ^ value for value in range(256))
        self._around: dict[int, tuple[bytes, bytes]] = {}
        """What an answer's frame has before the id and behind it, by the length of the id."""

    def ask(self, count: int, now: float) -> None:
        """A node asks nothing."""

    def take(self) -> tuple[int, float]:
        """Read once and answer. No replies to anything come here."""
        data = self._sock.recv(READ_SIZE)
        if not data:
            raise PeerError("the server ended the node's connection")
        frames = self.reply(data)
        if frames:
            self._sock.sendall(frames)
        return 0, clock()

    def outstanding(self) -> int:
        """Nothing is."""
        return 0

    def close(self) -> None:
        """Close in order."""
        close(self._sock)

    def reply(self, data: bytes) -> bytes:
        """Return the frames that answer what `data` completes. PeerError when that is anything but calls."""
        received = self._received
        if received is None:
            return self.answers(self.identities(data))
        identities = self.identities(without_acks(data) if self._reader.between_frames else data)
        received.messages += len(identities)
        return self.answers(identities) + received.acknowledgement()

    def identities(self, data: bytes) -> list[bytes]:
        """Return the ids of the calls that `data` completes. PeerError when anything else comes.

        The calls of a read are nearly always of one size: two slices tell that they are, and one search has all ids.
        """
        if self._reader.between_frames and len(data) > 2 and data[0] == FIRST and data[1] < 126:
            size = data[1] + 2
            count, rest = divmod(len(data), size)
            end = len(data) - rest
            if data[0:end:size] == data[:1] * count and data[1:end:size] == data[1:2] * count:
                found = IDENTITY.findall(data, 0, end)
                if len(found) != count:
                    raise PeerError(f"no call: {data[:100]!r}")
                return found + self._cut(data[end:]) if rest else found
        return self._cut(data)

    def answers(self, identities: list[bytes]) -> bytes:
        """Return the frames of the answers to calls with these ids."""
        parts: list[bytes] = []
        for identity in identities:
            before, after = self._around.get(len(identity)) or self._pieces(len(identity))
            parts += (before, identity, after)
        return b"".join(parts).translate(self._mask)

    def _text(self, answer: bytes) -> bytes:
        """What the frame of an answer has in it."""
        return self._target.text(answer)

    def _pieces(self, digits: int) -> tuple[bytes, bytes]:
        identity = bytes(digits)
        text = self._text(ANSWER % identity)
        if len(text) > 125:
            raise PeerError(f"a call has an id of {digits} digits")
        before, _, after = text.partition(identity)
        header = bytes([FIRST, MASKED | len(text)]).translate(self._mask) + bytes(4)
        return self._around.setdefault(digits, (header + before, after))

    def _cut(self, data: bytes) -> list[bytes]:
        found: list[bytes] = []
        for frame in self._reader.feed(data):
            if frame.opcode == PING:
                self._sock.sendall(pong(frame.payload))
                continue
            if frame.payload.startswith(ACK_TEXT):
                continue
            match = IDENTITY.search(frame.payload)
            if frame.opcode != TEXT or match is None:
                raise PeerError(f"no call: {frame.payload[:100]!r}")
            found.append(match[1])
        return found


class NatsNode(Node):
    """The node of NATS: it publishes each answer to the subject that the call's message names."""

    __slots__ = ("_messages", "_reply_to")

    def __init__(self, sock: socket.socket, target: Target) -> None:
        super().__init__(sock, target)
        self._messages = NatsReader()
        self._reply_to = b""

    def reply(self, data: bytes) -> bytes:
        """Return the frames that answer what `data` completes. PeerError when that is anything but calls."""
        frames: list[bytes] = []
        for reply_to, payloads in self._messages.messages(data):
            identities = IDENTITY.findall(b"".join(payloads))
            if len(identities) != len(payloads) or not reply_to:
                raise PeerError(f"no call: {payloads[0][:100]!r} with answers to {reply_to!r}")
            if reply_to != self._reply_to:
                self._reply_to = reply_to
                self._around.clear()
            frames.append(self.answers(identities))
        while self._messages.pings:
            self._sock.sendall(pong(self._messages.pings.pop()))
        return b"".join(frames)

    def _text(self, answer: bytes) -> bytes:
        return NATS_ANSWER % (self._reply_to, len(answer), answer)


def register(target: Target, caller: socket.socket, node: socket.socket) -> None:
    """Have the server send calls to the node; with NATS, answers to the caller as well. PeerError when it refuses."""
    if not target.nats:
        registered = ask(node, target.text(REGISTER % (b"the-node", METHOD.encode())))
        if b'"result"' not in registered:
            raise PeerError(f"the node was not registered: {registered!r}")
        return
    for sock, subject in ((node, NATS_CALLS), (caller, NATS_REPLIES)):
        subscribed = ask(sock, NATS_SUBSCRIBE % subject)
        if subscribed != NATS_PONG:
            raise PeerError(f"a subscription was answered {subscribed!r}")


def request_for(method: bytes) -> bytes:
    """Return a call of a method, with `%d` for an id of four digits."""
    return CALL % method


def register_elsewhere(caller: socket.socket, node: socket.socket, method: bytes = METHOD.encode()) -> None:
    """Register the node at another gateway than the caller's, and wait until that one knows it."""
    name = b"node-" + secrets.token_hex(8).encode()
    if b'"result"' not in (registered := ask(node, REGISTER % (name, method))):
        raise PeerError(f"the node was not registered: {registered!r}")
    deadline = clock() + PATIENCE
    while b'"result"' not in (known := ask(caller, KNOWN % name)):
        if clock() > deadline:
            raise PeerError(f"the caller's gateway does not know the node: {known!r}")
        time.sleep(0.01)


def try_once(target: Target, caller: socket.socket, node_sock: socket.socket, node: Node) -> None:
    """Have one call go there and back. PeerError when it comes back as anything else."""
    caller.sendall(masked(TEXT, request_of(target) % TRIED))
    if node_sock not in select.select([node_sock, caller], [], [], PATIENCE)[0]:
        raise PeerError("a call does not reach its node")
    node.take()
    reply = receive_text(caller)
    text = reply[reply.index(b"{") : reply.rindex(b"}") + 1]
    if json.loads(text) != {"jsonrpc": "2.0", "id": TRIED, "result": [1]}:
        raise PeerError(f"a call came back as {reply!r}")


def request_of(target: Target) -> bytes:
    """What the frame of a call has in it, with `%d` for an id of four digits."""
    return NATS_REQUEST if target.nats else target.text(REQUEST)


def routed(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    """Keep calls in flight, from one connection to another.

    Job: inFlight, warmup and seconds (both in seconds); where the node is connected to another server, its nodePort,
    the pids of both, and of what is beside them. Result: RpcResult; messages are calls. PeerError when one has not
    come back in the end.
    """
    elsewhere = job.get("nodePort")
    caller_sock, caller_rest = open_websocket(target, 0)
    node_sock, node_rest = open_websocket(replace(target, port=elsewhere) if elsewhere else target, 1)
    if caller_rest or node_rest:
        raise PeerError(f"the server spoke first: {caller_rest or node_rest!r}")
    node = NatsNode(node_sock, target) if target.nats else Node(node_sock, target)
    if elsewhere:
        register_elsewhere(caller_sock, node_sock)
    else:
        register(target, caller_sock, node_sock)
    try_once(target, caller_sock, node_sock, node)
    ring, frame = request_ring(request_of(target))
    latencies: list[tuple[float, int]] = []
    replies = NatsCounter() if target.nats else KeptCounter() if target.kept else ReplyCounter()
    caller = Caller(caller_sock, memoryview(ring), frame, latencies, replies)
    ends: dict[int, End] = {caller_sock.fileno(): caller, node_sock.fileno(): node}
    pids = job.get("pids", [target.pid]), job.get("beside", [])
    load = RpcLoad(pids, job["inFlight"], ends, latencies)
    gc.disable()
    result = load.run(job["warmup"], job["seconds"])
    if result.unanswered:
        raise PeerError(f"{result.unanswered} calls have not come back")
    return asdict(result)
