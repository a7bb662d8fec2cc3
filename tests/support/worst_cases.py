"""The worst legal messages of each method: a table of what makes them, for `tests.support.worst`.

A maker prepares a peer, and returns the `Message` that is measured. The peer holds as much as one peer may hold, and
the message says as much as it may say. The names of the topics, nodes and patterns are those of `worst.Stage.fill`.
"""

import itertools
import json
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

from gateway.auth.credentials import MAX_CREDENTIAL
from tests.support.credentials import Holder, signed
from tests.support.peers import Opcode, RawPeer

MIB: Final = 1 << 20
ROOM: Final = MIB - 400
"""Bytes of the largest parameters: what is around them has its room."""
DEEP: Final = ".".join("a" * 11)
"""What the names of all topics begin with, so that very many patterns can meet each of them."""
SCOPES: Final = ("admin", "call:>", "serve:>", "share:>", "subscribe:>", "publish:>")
EVERYONE: Final = "everyone.*"
"""The pattern to which every connection is subscribed."""


class Message(NamedTuple):
    """What a peer sends: a method and its parameters, as JSON; or ``raw``, a message that is none of one method.

    ``codes`` are the errors that may answer it. ``replies`` is how many texts answer ``raw``, None if the peer is cut
    off instead of sending anything, and ``sender`` who sends it if ``peer`` only hears.
    """

    peer: RawPeer
    method: str = ""
    params: bytes = b""
    codes: tuple[int, ...] = ()
    raw: bytes = b""
    replies: int | None = 1
    sender: RawPeer | None = None


class Stage(Protocol):
    """The gateway and its population (`worst.Stage`)."""

    async def enter(self, name: str = "actor", scopes: Iterable[str] = SCOPES) -> RawPeer:
        """Open a connection, which is closed after the message."""

    async def ask(self, peer: RawPeer, method: str, params: object) -> Any:
        """Call a method that must succeed, and return its result."""

    async def kept(self) -> dict[str, str]:
        """Publish as many messages as are kept of the topics under ``kept``, and return their epochs."""

    async def grown_old(self) -> None:
        """Publish very many messages, and let them become too old."""

    async def refill(self) -> None:
        """Publish on each of the topics again, so that another topic is the first to make room."""

    def conn_id(self, peer: RawPeer) -> str:
        """Return a peer's connId."""


Maker = Callable[[Stage], Awaitable[Message]]
WORST: Final[dict[str, dict[str, Maker]]] = {}
"""The makers by method, under a few words about what is bad. Messages of no method are under an empty name."""


ALONE: Final = {
    "after very many messages have become too old",
    "a mebibyte",
    "to everyone, on a topic for which another one of everyone's makes room",
    "a subscription to all topics",
    "beyond the credit",
}
"""What is sent as a request only."""


def worst(method: str, about: str) -> Callable[[Maker], Maker]:
    """Enter a maker into the table."""

    def enter(maker: Maker) -> Maker:
        WORST.setdefault(method, {})[about] = maker
        return maker

    return enter


def encoded(value: object) -> bytes:
    """Return JSON without blanks."""
    return json.dumps(value, separators=(",", ":")).encode()


def filled(unit: bytes, size: int = ROOM) -> bytes:
    """Return an array of very many of these, of ``size`` bytes at most."""
    return b"[" + b",".join([unit] * ((size - 2) // (len(unit) + 1))) + b"]"


SHAPES: Final = {
    "empty arrays": filled(b"[]"),
    "empty objects": filled(b"{}"),
    "digits": filled(b"1"),
    "empty texts": filled(b'""'),
    "floats": filled(b"1.5e-300"),
    "arrays as deep as can be": filled(b"[" * 900 + b"]" * 900),
    "keys": b"{" + b",".join(b'"%x":1' % number for number in range(110_000)) + b"}",
    "one number": b"[" + b"9" * (ROOM - 2) + b"]",
    "one text": b'["' + b"x" * (ROOM - 4) + b'"]',
    "escapes": b'["' + rb"\ud83d\ude00" * (ROOM // 12 - 1) + b'"]',
    "escaped lines": b'["' + rb"\n" * (ROOM // 2 - 4) + b'"]',
    "beyond ASCII": b'["' + "\U0001f600".encode() * (ROOM // 4 - 2) + b'"]',
    "blanks": b"[" + b" " * (ROOM - 2) + b"]",
}
"""Parameters as large as they may be, each of a shape that costs a parser something else."""

LONG: Final = "x" * 200
"""A name as long as it may be."""


def texts(count: int) -> list[str]:
    """Return so many short texts."""
    return [f"{number:x}" for number in range(count)]


def deep_patterns(count: int, last: str = "*") -> list[str]:
    """Return so many patterns, each of which meets every topic."""
    return [".".join((*parts, last)) for parts in itertools.islice(itertools.product("a*", repeat=11), count)]


def methods(count: int, prefix: str = "", summary: str = "") -> list[dict[str, str]]:
    """Return what `node.register` takes."""
    more = {"summary": summary} if summary else {}
    return [{"name": f"{prefix}m{number:03}", **more} for number in range(count)]


def _shapes(method: str, before: bytes = b"", after: bytes = b"", codes: tuple[int, ...] = ()) -> None:
    """Enter a message of each shape."""
    for about, params in SHAPES.items():

        async def make(stage: Stage, params: bytes = params) -> Message:
            return Message(await stage.enter(), method, before + params + after, codes)

        worst(method, about)(make)
        ALONE.add(about)


_shapes("gateway.ping")
_shapes("gateway.info", codes=(-32602, -32004))
_shapes("gateway.authenticate", codes=(-32001, -32602))
_shapes("rpc.discover", codes=(-32602,))
_shapes("rpc.cancel", b'{"id":', b"}")
_shapes("rpc.progress", b'{"id":1,"value":', b"}")
_shapes("rpc.push", b'{"id":1,"value":', b"}")
_shapes("rpc.credit", b'{"credit":1,"bytes":1,"id":', b"}")
_shapes("rpc.demand", b'{"credit":1,"bytes":1,"id":', b"}")
_shapes("event.publish", b'{"topic":"shape","data":', b"}", codes=(-32009,))
_shapes("event.subscribe", codes=(-32602,))
_shapes("event.unsubscribe", codes=(-32602,))
_shapes("node.register", codes=(-32602,))
_shapes("node.unregister", codes=(-32602,))
_shapes("node.list", codes=(-32602,))
_shapes("node.get", codes=(-32004, -32602))
_shapes("node.call", codes=(-32602,))
_shapes("connection.list", codes=(-32602,))
_shapes("connection.get", codes=(-32004, -32602))
_shapes("connection.close", codes=(-32004, -32602))
_shapes("connection.history", codes=(-32602,))
_shapes("connection.keep", codes=(-32600, -32602))
_shapes("connection.resume", codes=(-32600, -32602))
_shapes("connection.ack", codes=(-32600, -32602))


# gateway.*


async def full(stage: Stage, name: str = "actor") -> RawPeer:
    """Return a peer that holds what one peer may: patterns that meet all topics, and methods."""
    peer = await stage.enter(name)
    await stage.ask(peer, "event.subscribe", {"topics": deep_patterns(1000)})
    await stage.ask(peer, "node.register", {"methods": methods(1000)})
    return peer


def as_many(scope: str) -> list[str]:
    """Return as many scopes of this form as a JWT may have."""
    room, scopes = MAX_CREDENTIAL * 3 // 4 - 600, list[str]()
    while room > 0 and len(scopes) < 999:
        scopes.append(scope.format(len(scopes)))
        room -= len(scopes[-1]) + 1
    return scopes


@worst("gateway.info", "as it is")
async def _info(stage: Stage) -> Message:
    return Message(await stage.enter(), "gateway.info")


@worst("gateway.authenticate", "fewer scopes, of a peer that holds what it may")
async def _rescoped(stage: Stage) -> Message:
    peer = await full(stage)
    return Message(peer, "gateway.authenticate", encoded({"token": signed(Holder("actor", "node", ("call:a",)))}))


@worst("gateway.authenticate", "half of the scopes, of a peer that holds what it may")
async def _half_rescoped(stage: Stage) -> Message:
    peer = await full(stage)
    token = signed(Holder("actor", "node", (f"subscribe:a.{DEEP[2:]}.*", "subscribe:a.*.>")))
    return Message(peer, "gateway.authenticate", encoded({"token": token}))


@worst("gateway.authenticate", "very many scopes")
async def _very_many_scopes(stage: Stage) -> Message:
    peer = await full(stage)
    scopes = as_many(f"subscribe:{DEEP}.*.{{:x}}")
    return Message(peer, "gateway.authenticate", encoded({"token": signed(Holder("actor", "node", tuple(scopes)))}))


@worst("gateway.authenticate", "a token that is none, as long as may be")
async def _no_token(stage: Stage) -> Message:
    return Message(
        await stage.enter(), "gateway.authenticate", encoded({"token": "x" * MAX_CREDENTIAL}), (-32001, -32002)
    )


@worst("gateway.authenticate", "a token with nothing but a head, as long as may be")
async def _large_token(stage: Stage) -> Message:
    head = urlsafe_b64encode(filled(b"[]", MAX_CREDENTIAL * 3 // 4 - 20)).rstrip(b"=")
    token = b".".join((head, b"e30", b"AAAA")).decode()
    return Message(await stage.enter(), "gateway.authenticate", encoded({"token": token}), (-32001, -32002))


# rpc.*


@worst("rpc.discover", "all methods of all nodes")
async def _discover(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.ask(peer, "node.register", {"methods": methods(1)})  # so that no document is remembered
    return Message(peer, "rpc.discover", codes=(-32009,))


@worst("rpc.cancel", "a subscription to all topics")
async def _cancel_subscription(stage: Stage) -> Message:
    peer = await stage.enter()
    params = encoded({"topics": deep_patterns(1000)})
    batch = b'[{"jsonrpc":"2.0","id":"x","method":"event.subscribe","params":%b},' % params
    batch += b'{"jsonrpc":"2.0","id":"y","method":"rpc.cancel","params":{"id":"x"}}]'
    return Message(peer, "", raw=batch, codes=(-32800,))


@worst("rpc.cancel", "an id as long as can be")
async def _cancel_long(stage: Stage) -> Message:
    return Message(await stage.enter(), "rpc.cancel", encoded({"id": "x" * (ROOM - 20)}))


@worst("rpc.progress", "a mebibyte for a caller")
async def _progress(stage: Stage) -> Message:
    node, caller = await stage.enter("worker"), await stage.enter()
    await stage.ask(node, "node.register", {"methods": [{"name": "worker.work"}]})
    await caller.send_json({"jsonrpc": "2.0", "id": 1, "method": "worker.work"})
    call_id = (await node.recv_json())["id"]
    return Message(node, "rpc.progress", b'{"id":%d,"value":%b}' % (call_id, filled(b"[]", ROOM - 100)))


async def _streamed(stage: Stage, **stream: int) -> tuple[RawPeer, RawPeer, int]:
    """Return the node and the caller of the stream s, and the node's id of it."""
    node, caller = await stage.enter("worker"), await stage.enter()
    await stage.ask(node, "node.register", {"methods": [{"name": "worker.work"}], "streams": True})
    await caller.send_json({"jsonrpc": "2.0", "id": "s", "method": "worker.work", "stream": stream})
    return node, caller, (await node.recv_json())["id"]


@worst("rpc.progress", "a mebibyte of a stream")
async def _value(stage: Stage) -> Message:
    node, _, call_id = await _streamed(stage, credit=1, bytes=1)
    return Message(node, "rpc.progress", b'{"id":%d,"value":%b}' % (call_id, filled(b"[]", ROOM - 100)))


@worst("rpc.push", "a mebibyte for a node")
async def _push(stage: Stage) -> Message:
    node, caller, call_id = await _streamed(stage)
    await node.send_json({"jsonrpc": "2.0", "method": "rpc.demand", "params": {"id": call_id, "credit": 1, "bytes": 1}})
    await caller.recv_json()
    return Message(caller, "rpc.push", b'{"id":"s","value":%b}' % filled(b"[]", ROOM - 100))


@worst("rpc.push", "beyond the credit")
async def _push_too_much(stage: Stage) -> Message:
    _, caller, _ = await _streamed(stage)
    return Message(caller, "rpc.push", b'{"id":"s","value":%b}' % filled(b"[]", ROOM - 100), (-32600,))


@worst("rpc.credit", "for a stream")
async def _credit(stage: Stage) -> Message:
    _, caller, _ = await _streamed(stage)
    return Message(caller, "rpc.credit", encoded({"id": "s", "credit": 1024, "bytes": 1 << 20}))


@worst("rpc.credit", "of very many streams that want room")
async def _credit_of_many(stage: Stage) -> Message:
    node, caller, _ = await _streamed(stage, credit=1024, bytes=1 << 21)
    for number in range(2, 65):
        stream = {"credit": 1024, "bytes": 1 << 21}
        await caller.send_json({"jsonrpc": "2.0", "id": number, "method": "worker.work", "stream": stream})
        await node.recv_json()
    return Message(caller, "rpc.credit", encoded({"id": 64, "credit": 1024, "bytes": 1 << 20}))


@worst("rpc.demand", "for a stream")
async def _demand(stage: Stage) -> Message:
    node, _, call_id = await _streamed(stage)
    return Message(node, "rpc.demand", encoded({"id": call_id, "credit": 1024, "bytes": 1 << 20}))


# connection.*


@worst("connection.list", "a page of a role of which there is only one")
async def _list_rare(stage: Stage) -> Message:
    return Message(await stage.enter(), "connection.list", encoded({"limit": 200, "role": "operator"}))


@worst("connection.list", "a page of a role that is none")
async def _list_none(stage: Stage) -> Message:
    return Message(await stage.enter(), "connection.list", encoded({"limit": 200, "role": "nobody's"}))


@worst("connection.list", "a page as long as may be")
async def _list(stage: Stage) -> Message:
    return Message(await stage.enter(), "connection.list", encoded({"limit": 200}))


@worst("connection.list", "a short page from the middle")
async def _list_middle(stage: Stage) -> Message:
    return Message(await stage.enter(), "connection.list", encoded({"limit": 1, "after": "8"}))


@worst("connection.get", "a connection that holds what it may")
async def _get(stage: Stage) -> Message:
    peer = await full(stage)
    return Message(peer, "connection.get", encoded({"connId": stage.conn_id(peer)}))


@worst("connection.close", "a connection that holds what it may")
async def _close(stage: Stage) -> Message:
    victim = await full(stage, "victim")
    conn_id = stage.conn_id(victim)
    return Message(await stage.enter(), "connection.close", encoded({"connId": conn_id, "reason": "é" * 150_000}))


@worst("connection.history", "as long as may be")
async def _history(stage: Stage) -> Message:
    return Message(await stage.enter(), "connection.history", encoded({"limit": 1000}))


@worst("connection.history", "a connection that is not in it")
async def _history_of(stage: Stage) -> Message:
    return Message(await stage.enter(), "connection.history", encoded({"limit": 1, "connId": "x" * (ROOM - 50)}))


# node.*


@worst("node.register", "as many methods as may be, with names as long as may be")
async def _register_long(stage: Stage) -> Message:
    specs = methods(1000, prefix="x" * 196)
    return Message(await stage.enter(), "node.register", encoded({"methods": specs}))


@worst("node.register", "as many methods as may be, again")
async def _register_again(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.ask(peer, "node.register", {"methods": methods(1000, summary="x" * 200)})
    return Message(peer, "node.register", encoded({"methods": methods(1000, summary="y" * 200)}))


@worst("node.register", "a full node in the place of another one, with methods of many nodes")
async def _register_instead(stage: Stage) -> Message:
    victim = await full(stage)
    await stage.ask(victim, "node.register", {"methods": methods(1000)})
    return Message(await stage.enter(), "node.register", encoded({"methods": methods(1000)}))


@worst("node.register", "text as long as may be, each character an escape")
async def _register_text(stage: Stage) -> Message:
    specs = b",".join(b'{"name":"x%d","params":%b}' % (n, filled(b"[]", 250)) for n in range(950))
    return Message(await stage.enter(), "node.register", b'{"methods":[%b]}' % specs)


@worst("node.register", "more than may be")
async def _register_too_much(stage: Stage) -> Message:
    specs = b",".join(b'{"name":"x%d","params":%b}' % (n, filled(b"[]", 1000)) for n in range(999))
    return Message(await stage.enter(), "node.register", b'{"methods":[%b]}' % specs, (-32009,))


@worst("node.register", "a node for which as many calls wait as may")
async def _register_awaited(stage: Stage) -> Message:
    params = {"node": "actor", "method": "awaited", "waitMs": 600_000, "params": ["x" * 60_000]}
    call = {"jsonrpc": "2.0", "method": "node.call", "params": params}
    for _ in range(4):
        caller = await stage.enter(scopes=(*SCOPES, "call:awaited"))
        for _ in range(64):
            await caller.send_frame(Opcode.TEXT, encoded(call))
        await stage.ask(caller, "gateway.ping", {})
    return Message(await stage.enter(), "node.register", encoded({"methods": [{"name": "awaited"}]}))


@worst("node.register", "one method of a full node")
async def _register_one(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.ask(peer, "node.register", {"methods": methods(1000, prefix="x" * 190)})
    return Message(peer, "node.register", encoded({"methods": methods(1, prefix="x" * 190)}))


@worst("node.unregister", "a full node")
async def _unregister(stage: Stage) -> Message:
    return Message(await full(stage), "node.unregister")


@worst("node.unregister", "very many names")
async def _unregister_many(stage: Stage) -> Message:
    return Message(await full(stage), "node.unregister", encoded({"methods": texts(130_000)}), (-32602,))


@worst("node.unregister", "one method of a full node")
async def _unregister_one(stage: Stage) -> Message:
    return Message(await full(stage), "node.unregister", encoded({"methods": ["none"]}))


@worst("node.list", "a page as long as may be")
async def _list_nodes(stage: Stage) -> Message:
    return Message(await stage.enter(), "node.list", encoded({"limit": 200}))


@worst("node.list", "a page from which a caller with very many scopes may call nothing")
async def _list_no_nodes(stage: Stage) -> Message:
    scopes = as_many("call:m{0:03}.*.{0:x}")
    return Message(await stage.enter(scopes=scopes), "node.list", encoded({"limit": 200}))


@worst("node.get", "a full node")
async def _get_node(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.ask(peer, "node.register", {"methods": methods(1000, summary="x" * 220)})
    return Message(peer, "node.get", encoded({"name": "actor"}))


@worst("node.get", "a full node, with text that has to be escaped")
async def _get_escaped(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.ask(peer, "node.register", {"methods": methods(1000, summary="\x01" * 35)})
    return Message(peer, "node.get", encoded({"name": "actor"}))


@worst("node.call", "a mebibyte")
async def _call_node(stage: Stage) -> Message:
    node, caller, _ = await _called(stage)
    params = b'{"node":"worker","method":"worker.work","params":%b}' % filled(b"[" * 400 + b"]" * 400, ROOM - 5000)
    return Message(node, raw=b'{"jsonrpc":"2.0","id":"x","method":"node.call","params":%b}' % params, sender=caller)


@worst("node.call", "no such node")
async def _call_nothing(stage: Stage) -> Message:
    params = b'{"node":"%b","method":"m000"}' % (b"x" * (ROOM - 100))
    return Message(await stage.enter(), "node.call", params, (-32004,))


# event.*


@worst("event.publish", "to everyone")
async def _publish(stage: Stage) -> Message:
    return Message(await stage.enter(), "event.publish", encoded({"topic": "everyone.hears", "data": "x" * 200}))


@worst("event.publish", "to everyone, on a topic for which another one of everyone's makes room")
async def _publish_evicting(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.ask(peer, "event.publish", {"topic": "everyone.heard", "data": 1})
    await stage.refill()
    return Message(peer, "event.publish", encoded({"topic": f"everyone.hears-{id(peer)}", "data": 1}))


@worst("event.publish", "a topic that very many patterns meet")
async def _publish_met(stage: Stage) -> Message:
    return Message(await stage.enter(), "event.publish", encoded({"topic": f"{DEEP}.new", "data": 1}))


@worst("event.publish", "a name of very many parts")
async def _publish_parts(stage: Stage) -> Message:
    return Message(await stage.enter(), "event.publish", encoded({"topic": ".".join("a" * 100), "data": 1}))


@worst("event.publish", "after very many messages have become too old")
async def _publish_old(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.grown_old()
    return Message(peer, "event.publish", encoded({"topic": "x.y", "data": 1}))


@worst("event.subscribe", "all topics by as many patterns as may be")
async def _subscribe(stage: Stage) -> Message:
    return Message(await stage.enter(), "event.subscribe", encoded({"topics": deep_patterns(1000)}))


@worst("event.subscribe", "all topics by one pattern")
async def _subscribe_all(stage: Stage) -> Message:
    return Message(await stage.enter(), "event.subscribe", encoded({"topics": [">"]}))


@worst("event.subscribe", "as many names as may be, of topics that have not begun")
async def _subscribe_names(stage: Stage) -> Message:
    names = [f"{'x' * 190}.{number}" for number in range(1000)]
    return Message(await stage.enter(), "event.subscribe", encoded({"topics": names}))


@worst("event.subscribe", "all that was missed")
async def _subscribe_since(stage: Stage) -> Message:
    peer = await stage.enter()
    names = await stage.kept()
    params = {"topics": ["kept.*"], "since": {name: {"epoch": epoch, "offset": 0} for name, epoch in names.items()}}
    return Message(peer, "event.subscribe", encoded(params))


@worst("event.subscribe", "as many positions as may be, of topics that are none")
async def _subscribe_nothing(stage: Stage) -> Message:
    since = {".".join([*"a" * 11, f"none{number}"]): {"epoch": "e", "offset": 0} for number in range(1000)}
    return Message(await stage.enter(), "event.subscribe", encoded({"topics": deep_patterns(1000), "since": since}))


@worst("event.subscribe", "as a peer with very many scopes")
async def _subscribe_scopes(stage: Stage) -> Message:
    scopes = [*as_many(f"subscribe:{DEEP}.*.{{:x}}"), "subscribe:x.>"]
    names = [f"x.{number}" for number in range(1000)]
    return Message(await stage.enter(scopes=scopes), "event.subscribe", encoded({"topics": names}))


@worst("event.unsubscribe", "all topics by as many patterns as may be")
async def _unsubscribe(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.ask(peer, "event.subscribe", {"topics": deep_patterns(1000)})
    return Message(peer, "event.unsubscribe", encoded({"topics": deep_patterns(1000)}))


@worst("event.unsubscribe", "all topics by one pattern")
async def _unsubscribe_all(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.ask(peer, "event.subscribe", {"topics": [">"]})
    return Message(peer, "event.unsubscribe", encoded({"topics": [">"]}))


@worst("event.unsubscribe", "nothing, as a peer with many subscriptions")
async def _unsubscribe_nothing(stage: Stage) -> Message:
    peer = await stage.enter()
    await stage.ask(peer, "event.subscribe", {"topics": [f"{'x' * 190}.{number}" for number in range(1000)]})
    return Message(peer, "event.unsubscribe", encoded({"topics": ["none"]}))


# Of no method: routed calls and their answers, batches, what is no message, and the end


async def _called(stage: Stage, count: int = 1) -> tuple[RawPeer, RawPeer, list[int]]:
    """Return a node and its caller, with the ids of so many calls in flight."""
    node, caller = await stage.enter("worker"), await stage.enter()
    await stage.ask(node, "node.register", {"methods": [{"name": "worker.work"}]})
    for number in range(count):
        await caller.send_json({"jsonrpc": "2.0", "id": number, "method": "worker.work"})
    return node, caller, [(await node.recv_json())["id"] for _ in range(count)]


@worst("", "a routed call, with a mebibyte for the node")
async def _routed(stage: Stage) -> Message:
    node, caller, _ = await _called(stage)
    params = b'{"jsonrpc":"2.0","id":1,"method":"worker.work","params":%b}' % filled(
        b"[" * 400 + b"]" * 400, ROOM - 5000
    )
    return Message(node, raw=params, sender=caller)


@worst("", "an answer of a mebibyte")
async def _answered(stage: Stage) -> Message:
    node, caller, (call_id,) = await _called(stage)
    answer = b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (call_id, filled(b"[" * 400 + b"]" * 400, ROOM - 5000))
    return Message(caller, raw=answer, sender=node)


@worst("", "an error of a mebibyte in the gateway's name")
async def _renamed(stage: Stage) -> Message:
    node, caller, (call_id,) = await _called(stage)
    data = b'{"retry\\u0041fterMs":1,"a":%b}' % filled(b"[" * 400 + b"]" * 400, ROOM - 5000)
    error = b'{"code":1,"message":"","data":%b}' % data
    return Message(caller, raw=b'{"jsonrpc":"2.0","id":%d,"error":%b}' % (call_id, error), sender=node, codes=(1,))


@worst("", "an answer of a mebibyte that is no JSON-RPC")
async def _garbled(stage: Stage) -> Message:
    node, caller, (call_id,) = await _called(stage)
    answer = b'{"jsonrpc":"1.0","id":%d,"result":%b}' % (call_id, filled(b"[" * 400 + b"]" * 400, ROOM - 5000))
    return Message(caller, raw=answer, sender=node, codes=(-32603,))


@worst("", "an answer of a mebibyte that nobody waits for")
async def _late(stage: Stage) -> Message:
    answer = b'{"jsonrpc":"2.0","id":7,"result":%b}' % filled(b"[" * 400 + b"]" * 400, ROOM - 5000)
    return Message(await stage.enter(), raw=answer, replies=0)


@worst("", "a call of a method that very many nodes serve")
async def _spread(stage: Stage) -> Message:
    return Message(await stage.enter(), raw=b'{"jsonrpc":"2.0","method":"m000"}', replies=0)


@worst("", "a batch of notifications to a method that very many nodes serve")
async def _spread_batch(stage: Stage) -> Message:
    return Message(await stage.enter(), raw=filled(b'{"jsonrpc":"2.0","method":"m000"}', 34 * 100), replies=0)


@worst("", "a batch of more elements than may be")
async def _batch_too_long(stage: Stage) -> Message:
    return Message(await stage.enter(), raw=filled(b"[]"), codes=(-32600,))


@worst("", "a batch of what is no message, nested as deep as can be")
async def _batch_deep(stage: Stage) -> Message:
    return Message(await stage.enter(), raw=filled(filled(b"[" * 400 + b"]" * 400, 10_000), ROOM), codes=(-32600,))


@worst("", "what is no message")
async def _no_message(stage: Stage) -> Message:
    wrong = b'{"jsonrpc":"1.0","id":1,"method":"x","params":%b}' % filled(b"[" * 400 + b"]" * 400)
    return Message(await stage.enter(), raw=wrong, codes=(-32600,))


@worst("", "what shows only at its end that it is no message")
async def _no_message_late(stage: Stage) -> Message:
    wrong = b'{"params":%b,"id":1,"method":"x","jsonrpc":"1.0"}' % filled(b"[" * 400 + b"]" * 400)
    return Message(await stage.enter(), raw=wrong, codes=(-32600,))


@worst("", "a batch of one that shows only at its end that it is no message")
async def _batch_no_message_late(stage: Stage) -> Message:
    wrong = b'[{"params":%b,"id":1,"method":"x","jsonrpc":"1.0"}]' % filled(b"[" * 400 + b"]" * 400)
    return Message(await stage.enter(), raw=wrong, codes=(-32600,))


@worst("", "a batch of one, nested as deep as can be")
async def _batch_of_one(stage: Stage) -> Message:
    params = b'{"topic":"deep","data":%b}' % filled(b"[" * 400 + b"]" * 400)
    raw = b'[{"jsonrpc":"2.0","id":1,"method":"event.publish","params":%b}]' % params
    return Message(await stage.enter(), raw=raw, codes=(-32009,))


@worst("event.publish", "by position, nested as deep as can be")
async def _deep_by_position(stage: Stage) -> Message:
    deep = filled(b"[" * 900 + b"]" * 900)
    return Message(await stage.enter(), "event.publish", b'["deep",%b]' % deep, codes=(-32009,))


@worst("", "what is no JSON at its end")
async def _no_json(stage: Stage) -> Message:
    wrong = b'{"jsonrpc":"2.0","id":1,"method":"x","params":%b' % filled(b"[" * 400 + b"]" * 400)
    return Message(await stage.enter(), raw=wrong, codes=(-32700,))


@worst("", "nested more deeply than can be")
async def _too_deep(stage: Stage) -> Message:
    return Message(
        await stage.enter(), raw=b'{"params":' + b"[" * (ROOM // 2) + b"]" * (ROOM // 2) + b"}", codes=(-32600,)
    )


@worst("", "the end of a connection that holds what it may")
async def _end(stage: Stage) -> Message:
    return Message(await full(stage), replies=None)


@worst("", "the end of a node that has not answered very many calls")
async def _end_of_node(stage: Stage) -> Message:
    node = await stage.enter("worker")
    await stage.ask(node, "node.register", {"methods": [{"name": "worker.work"}]})
    for _ in range(4):
        caller = await stage.enter()
        for number in range(64):
            await caller.send_json({"jsonrpc": "2.0", "id": number, "method": "worker.work"})
    for _ in range(256):
        await node.recv_json()
    return Message(node, replies=None)


@worst("", "the end of a caller with as many calls as may be")
async def _end_of_caller(stage: Stage) -> Message:
    _, caller, _ = await _called(stage, 64)
    return Message(caller, replies=None)
