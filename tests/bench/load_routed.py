"""The load of `routed`: a caller that keeps calls in flight, and the node that answers them, both in this process."""

import gc
import json
import re
import secrets
import select
import socket
from dataclasses import asdict
from typing import Any

from tests.bench.client import PATIENCE, READ_SIZE, Target, ask, open_websocket, receive_text
from tests.bench.frames import FIN, MASKED, PING, PONG, TEXT, FrameReader, PeerError, masked
from tests.bench.load_rpc import FIRST_ID, Caller, End, RpcLoad, clock, close, request_ring

METHOD = "bench.echo"
REQUEST = b'{"jsonrpc":"2.0","id":%%d,"method":"%b","params":[1]}' % METHOD.encode()
REGISTER = b'{"jsonrpc":"2.0","id":1,"method":"node.register","params":{"name":"the-node","methods":[{"name":"%b"}]}}'
ANSWER = b'{"jsonrpc":"2.0","id":%b,"result":[1]}'
# A call's id, with and without the blanks that the stdlib's json writes.
IDENTITY = re.compile(rb'"id": ?(\d+), ?"method"')
FIRST = FIN | TEXT


class Node:
    """The connection that answers calls: with one send, whatever one read has brought.

    Its frames are masked with four equal octets, so that one `bytes.translate` masks all frames of a send. What the
    mask must not change, the headers, has been masked once before.
    """

    __slots__ = ("_before", "_mask", "_pieces", "_reader", "_sock", "_target")

    errors = 0

    def __init__(self, sock: socket.socket, target: Target) -> None:
        self._sock = sock
        self._target = target
        self._reader = FrameReader()
        octet = 1 + secrets.randbelow(255)
        self._mask = bytes(octet ^ value for value in range(256))
        self._before: dict[int, bytes] = {}
        """Header and beginning of an answer, by the length of the id."""
        self._pieces = target.text(ANSWER % b"\0").split(b"\0")

    def ask(self, count: int, now: float) -> None:
        """A node asks nothing."""

    def take(self) -> tuple[int, float]:
        """Read once and answer. No replies to anything come here."""
        data = self._sock.recv(READ_SIZE)
        if not data:
            raise PeerError("the server ended the node's connection")
        identities = self.identities(data)
        if identities:
            self._sock.sendall(self.answers(identities))
        return 0, clock()

    def outstanding(self) -> int:
        """Nothing is."""
        return 0

    def close(self) -> None:
        """Close in order."""
        close(self._sock)

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
        after = self._pieces[1]
        parts: list[bytes] = []
        for identity in identities:
            parts += (self._before.get(len(identity)) or self._beginning(len(identity)), identity, after)
        return b"".join(parts).translate(self._mask)

    def _beginning(self, digits: int) -> bytes:
        size = sum(map(len, self._pieces)) + digits
        if size > 125:
            raise PeerError(f"a call has an id of {digits} digits")
        header = bytes([FIRST, MASKED | size]).translate(self._mask) + bytes(4)
        return self._before.setdefault(digits, header + self._pieces[0])

    def _cut(self, data: bytes) -> list[bytes]:
        found: list[bytes] = []
        for frame in self._reader.feed(data):
            if frame.opcode == PING:
                self._sock.sendall(masked(PONG, frame.payload))
                continue
            match = IDENTITY.search(frame.payload)
            if frame.opcode != TEXT or match is None:
                raise PeerError(f"no call: {frame.payload[:100]!r}")
            found.append(match[1])
        return found


def try_once(target: Target, caller: socket.socket, node_sock: socket.socket, node: Node) -> None:
    """Register the node, and have one call go there and back. PeerError when it comes back as anything else."""
    registered = ask(node_sock, target.text(REGISTER % METHOD.encode()))
    if b'"result"' not in registered:
        raise PeerError(f"the node was not registered: {registered!r}")
    caller.sendall(masked(TEXT, target.text(REQUEST % (FIRST_ID - 1))))
    if node_sock not in select.select([node_sock, caller], [], [], PATIENCE)[0]:
        raise PeerError("a call does not reach its node")
    node.take()
    reply = receive_text(caller)
    text = reply[reply.index(b"{") : reply.rindex(b"}") + 1]
    if json.loads(text) != {"jsonrpc": "2.0", "id": FIRST_ID - 1, "result": [1]}:
        raise PeerError(f"a call came back as {reply!r}")


def routed(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    """Keep calls in flight, from one connection to another.

    Job: inFlight, warmup and seconds (both in seconds). Result: RpcResult; messages are calls.
    """
    caller_sock, caller_rest = open_websocket(target, 0)
    node_sock, node_rest = open_websocket(target, 1)
    if caller_rest or node_rest:
        raise PeerError(f"the server spoke first: {caller_rest or node_rest!r}")
    node = Node(node_sock, target)
    try_once(target, caller_sock, node_sock, node)
    ring, frame = request_ring(target.text(REQUEST))
    latencies: list[tuple[float, int]] = []
    caller = Caller(caller_sock, memoryview(ring), frame, latencies)
    ends: dict[int, End] = {caller_sock.fileno(): caller, node_sock.fileno(): node}
    load = RpcLoad(target.pid, job["inFlight"], ends, latencies)
    gc.disable()
    return asdict(load.run(job["warmup"], job["seconds"]))
