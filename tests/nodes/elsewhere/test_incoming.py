"""Calls of another gateway to nodes here: what is begun, what is refused, and what is told of each."""

import json
from functools import partial

import pytest

from gateway.cluster.alive import Member
from gateway.nodes.elsewhere.distant import Distant
from gateway.nodes.elsewhere.unwritten import SLICE
from gateway.rpc.calls import FIRST_ID
from tests.support.cluster import Two


class Scene:
    """A node here, and another gateway that says by hand what it calls."""

    def __init__(self) -> None:
        self.it = Two()
        self.node = self.it.serve("pi", ["snap"], streams=True)
        self.told: list[tuple[str, ...]] = []
        for kind, count in ((b"result", 2), (b"said", 3)):
            self.it.a.members.on(kind, partial(self._tell, count))

    def _tell(self, count: int, member: Member, token: bytes, headers: bytes, payload: bytes) -> None:
        parts = iter(payload.decode().split("\0"))
        self.told += zip(*[parts] * count, strict=True)

    def call(self, *calls: bytes, more: bytes = b"") -> None:
        """Call with these texts as parameters and tokens, in one message, which has not been read yet."""
        where = b'%b "snap" 1000%b' % (self.node.conn_id.encode(), more)
        fields = [part for text in calls for part in (text, where, b',"method":"snap","params":[%b]}' % text)]
        self.say(b"call", b"1", *fields)

    def say(self, kind: bytes, *fields: bytes) -> None:
        """Say something, which has not been read yet."""
        self.it.a.members.tell(self.it.a.member("b"), kind, b"\0".join(fields))

    def take(self) -> list[tuple[int, int]]:
        """The ids and parameters that the node has got."""
        self.it.settle()
        return [(call["id"] - FIRST_ID, call["params"][0]) for call in map(json.loads, self.node.take())]

    @property
    def distant(self) -> Distant:
        """The other gateway."""
        return self.it.b.relay._of(self.it.b.member("a"))


@pytest.fixture
async def scene() -> Scene:
    return Scene()


async def test_the_calls_of_one_read_are_begun_and_answered_by_their_tokens(scene: Scene) -> None:
    scene.call(b"7", b"8")
    scene.call(b"9")
    assert scene.take() == [(0, 7), (1, 8), (2, 9)]
    assert list(scene.distant.running) == [b"7", b"8", b"9"]
    scene.it.answer(scene.node, f'{{"jsonrpc":"2.0","id":{FIRST_ID + 1},"result":[1 ]}}')
    scene.it.answer(scene.node, f'{{"jsonrpc":"2.0","id":{FIRST_ID},"error":{{"code":1,"message":""}}}}')
    assert scene.told == [("8", "[1 ]"), ("error", "7", '{"code":1,"message":""}')]
    assert list(scene.distant.running) == [b"9"]
    assert len(scene.it.b.calls) == 1


async def test_where_a_call_goes_is_looked_up_again_if_nodes_have_changed(scene: Scene) -> None:
    scene.call(b"7")
    assert scene.take() == [(0, 7)]
    scene.it.b.nodes.unregister(scene.node)
    scene.call(b"8")
    assert scene.take() == []
    assert scene.told == [("gone", "8", "")]


async def test_a_node_has_no_more_calls_than_it_may_have(scene: Scene) -> None:
    scene.call(*(b"%d" % number for number in range(11)))
    assert len(scene.take()) == 9
    assert [(kind, token) for kind, token, _ in scene.told] == [("refused", "9"), ("refused", "10")]
    assert scene.told[0][2].startswith("overloaded not_delivered\n{")


async def test_what_is_withdrawn_in_the_same_read_is_never_written(scene: Scene) -> None:
    scene.call(b"7", b"8", b"9")
    scene.say(b"said", b"cancel", b"8", b"")
    assert scene.take() == [(0, 7), (2, 9)]
    assert scene.told == []
    scene.say(b"said", b"cancel", b"7", b"")
    scene.it.settle()
    assert [json.loads(text)["method"] for text in scene.node.take()] == ["rpc.cancel"]


async def test_a_stream_has_its_grant(scene: Scene) -> None:
    scene.call(b"7", more=b" 3 40")
    scene.it.settle()
    (call,) = map(json.loads, scene.node.take())
    assert call["stream"] == {"credit": 3, "bytes": 40}
    assert scene.distant.running[b"7"].stream is not None


@pytest.mark.parametrize("what", [(b"credit", b"7", b"1,20"), (b"finish", b"7", b"")])
async def test_what_is_said_of_a_stream_in_the_same_read_comes_after_it(scene: Scene, what: tuple[bytes, ...]) -> None:
    scene.call(b"7", more=b" 3 40")
    scene.say(b"said", *what)
    scene.it.settle()
    methods = [json.loads(text)["method"] for text in scene.node.take()]
    assert methods == ["snap", "rpc.credit" if what[0] == b"credit" else "rpc.push"]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_node_that_is_cut_by_what_it_is_sent_ends_each_call_once(
    scene: Scene, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = scene.node.pass_on

    def cut(payload: bytes) -> None:
        send(payload)
        scene.node.is_open = scene.node.flowing = False
        scene.it.b.calls.lost(scene.node)

    monkeypatch.setattr(scene.node, "pass_on", cut)
    text = b'"%b"' % (b"x" if waits else b"x" * SLICE)
    where = b'%b "snap" 1000' % scene.node.conn_id.encode()
    rest = b',"method":"snap","params":[%b]}' % text
    scene.node.flowing = not waits
    scene.say(b"call", b"1", b"7", where, rest, b"8", where, rest)
    scene.it.settle()
    if waits:
        scene.node.flowing = True
        assert scene.node.pool is not None
        scene.node.pool.read_on()
        scene.it.settle()
    assert len(scene.node.take()) == 1
    second = "not_delivered" if waits else "unknown"
    assert [(kind, token, said.partition("\n")[0]) for kind, token, said in scene.told] == [
        ("ended", "7", "node_lost unknown"),
        ("ended", "8", f"node_lost {second}"),
    ]
    assert (scene.distant.running, scene.distant.queues) == ({}, {})


async def test_a_node_is_read_again_when_its_callers_are(scene: Scene) -> None:
    conn_id = scene.node.conn_id.encode()
    for kind, waits in ((b"wait", 1), (b"wait", 1), (b"on", 0), (b"on", 0)):
        scene.say(kind, conn_id)
        scene.it.settle()
        assert scene.node.link.waits == waits
