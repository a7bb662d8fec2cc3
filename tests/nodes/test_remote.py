"""A node at another gateway, as the router has it: what becomes of what is sent to it."""

import json

import pytest

from gateway import errors
from gateway.auth.scopes import ANONYMOUS
from gateway.nodes.remote import RemotePeer
from gateway.rpc.calls import FIRST_ID
from gateway.rpc.method import Refusal
from tests.support.cluster import Two
from tests.support.rpc import Listing, NodeListing


class Scene:
    """A caller, and a node at another gateway, which does not read its mail."""

    def __init__(self) -> None:
        self.it = Two()
        self.node: NodeListing = self.it.serve("pi", ["snap"], streams=True)
        self.caller: Listing = self.it.caller()
        self.it.b.link.stopped = True
        peer = self.it.there("pi").peer
        assert isinstance(peer, RemotePeer)
        self.peer = peer

    def mail(self) -> list[tuple[str, str, str]]:
        """What has come: kind, token and payload, with `NODE` for the node's connId."""
        arrived, self.it.b.link.arrived = list(self.it.b.link.arrived), type(self.it.b.link.arrived)()
        parts = [(parcel.subject.decode().split("."), parcel.payload.decode()) for parcel in arrived]
        return [
            (subject[3], ".".join(subject[5:]), payload.replace(self.node.conn_id, "NODE"))
            for subject, payload in parts
        ]


@pytest.fixture
async def scene() -> Scene:
    return Scene()


async def test_a_call_is_mailed_with_its_node_the_fence_and_its_time(scene: Scene) -> None:
    scene.it.ask(scene.caller, '{"jsonrpc":"2.0","id":"a","method":"snap","params":{"n": 1}}')
    assert scene.mail() == [("call", f"{FIRST_ID}-1", 'NODE 1 30000\n,"method":"snap","params":{"n": 1}}')]


async def test_a_stream_is_mailed_with_its_grant_beside_it(scene: Scene) -> None:
    params = ',"stream":{"credit":9,"bytes":9}}'
    text = {"jsonrpc": "2.0", "id": 1, "method": "snap", "params": [params], "stream": {"credit": 3, "bytes": 40}}
    scene.it.ask(scene.caller, json.dumps(text))
    told = json.dumps([params])
    assert scene.mail() == [("call", f"{FIRST_ID}-1", f'NODE 1 30000 3 40\n,"method":"snap","params":{told}}}')]


async def test_a_notification_is_mailed_whole(scene: Scene) -> None:
    text = '{"jsonrpc":"2.0","method":"snap","params":[1 ]}'
    scene.it.ask(scene.caller, text)
    assert scene.mail() == [("note", "", f"NODE 1 0\n{text}")]


async def test_what_is_told_of_a_call_goes_by_its_token(scene: Scene) -> None:
    scene.it.ask(scene.caller, '{"jsonrpc":"2.0","id":1,"method":"snap"}')
    scene.mail()
    scene.caller.running[b"1"].cancel(errors.CANCELLED)
    assert scene.mail() == [("cancel", f"{FIRST_ID}-1", "")]
    assert scene.peer.calls == {}


async def test_it_is_barred_with_its_gateway(scene: Scene) -> None:
    assert not scene.peer.link.pressed
    scene.it.a.relay._of(scene.it.a.member("b")).link.pressed = True
    assert scene.peer.link.pressed and scene.peer.link.barred
    with pytest.raises(Refusal, match="pi has not read what was sent to it before"):
        scene.it.ask(scene.caller, '{"jsonrpc":"2.0","id":1,"method":"snap"}')


async def test_it_is_open_as_long_as_its_gateway_is_a_member(scene: Scene) -> None:
    assert (scene.peer.is_open, scene.peer.flowing, scene.peer.leaving) == (True, True, False)
    member = scene.it.a.member("b")
    scene.it.a.members.unreachable(member)
    assert not scene.peer.is_open
    late = scene.it.a.relay.peer(member, "pi", "x", "127.0.0.1:1", ANONYMOUS)
    assert not late.is_open


async def test_nothing_ends_it_from_here(scene: Scene) -> None:
    scene.peer.end(errors.REPLACED)
    scene.peer.link.flush()
    scene.peer.unheard(b"1")
    assert scene.mail() == []
