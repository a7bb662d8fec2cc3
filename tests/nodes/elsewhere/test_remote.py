"""A node at another gateway, as the router has it: what becomes of what is sent to it."""

import json

import pytest

from gateway import errors
from gateway.auth.scopes import ANONYMOUS
from gateway.nodes.elsewhere.distant import PACK
from gateway.nodes.elsewhere.remote import RemotePeer
from gateway.rpc.calls import FIRST_ID
from gateway.rpc.jsonrpc import decode
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

    def ask(self, text: str) -> None:
        """Have a request sent on. Its mail does not leave yet."""
        message = decode(text.encode())
        self.it.a.router.call(self.caller, message, b"" + message.params, b"" + message.id, None)

    def mail(self) -> list[tuple[str, str, str]]:
        """What has come: the kind, what 503 would name, and the payload, with `NODE` for the node's connId."""
        self.it.settle()
        arrived, self.it.b.link.arrived = list(self.it.b.link.arrived), type(self.it.b.link.arrived)()
        return [
            (
                parcel.subject.decode().split(".")[3],
                parcel.reply.decode().rpartition(".")[2],
                parcel.payload.decode().replace(self.node.conn_id, "NODE"),
            )
            for parcel in arrived
        ]


def named(first: int = 0, last: int = 0) -> str:
    """What a 503 names: the gateway of the node, and the first and the last call."""
    return f"00000002_1-{FIRST_ID + first}-1-{FIRST_ID + last}-1"


@pytest.fixture
async def scene() -> Scene:
    return Scene()


async def test_a_call_is_mailed_with_its_node_the_fence_and_its_time(scene: Scene) -> None:
    scene.it.ask(scene.caller, '{"jsonrpc":"2.0","id":"a","method":"snap","params":{"n": 1}}')
    token = f"{FIRST_ID}-1"
    call = ',"method":"snap","params":{"n": 1}}'
    assert scene.mail() == [("call", named(), f'1\0{token}\0NODE "snap" 30000\0{call}')]


async def test_a_stream_is_mailed_with_its_grant_beside_it(scene: Scene) -> None:
    params = ',"stream":{"credit":9,"bytes":9}}'
    text = {"jsonrpc": "2.0", "id": 1, "method": "snap", "params": [params], "stream": {"credit": 3, "bytes": 40}}
    scene.it.ask(scene.caller, json.dumps(text))
    token, call = f"{FIRST_ID}-1", f',"method":"snap","params":{json.dumps([params])}}}'
    assert scene.mail() == [("call", named(), f'1\0{token}\0NODE "snap" 30000 3 40\0{call}')]


async def test_a_notification_is_mailed_whole(scene: Scene) -> None:
    text = '{"jsonrpc":"2.0","method":"snap","params":[1 ]}'
    scene.it.ask(scene.caller, text)
    assert scene.mail() == [("call", "", f"1\0\0NODE\0{text}")]


async def test_what_is_told_of_a_call_goes_by_its_token(scene: Scene) -> None:
    scene.it.ask(scene.caller, '{"jsonrpc":"2.0","id":1,"method":"snap"}')
    scene.mail()
    scene.caller.running[b"1"].cancel(errors.CANCELLED)
    assert scene.mail() == [("said", "", f"cancel\0{FIRST_ID}-1\0")]
    assert scene.peer.calls == {}


async def test_what_leaves_together_is_one_message_as_long_as_it_is_of_one_kind(scene: Scene) -> None:
    for number in range(3):
        scene.ask(f'{{"jsonrpc":"2.0","id":{number},"method":"snap"}}')
    scene.caller.running[b"1"].cancel(errors.CANCELLED)
    scene.ask('{"jsonrpc":"2.0","id":3,"method":"snap"}')
    calls, told, more = scene.mail()
    tokens = [f"{FIRST_ID + number}-1" for number in range(4)]
    assert (calls[1], told[1], more[1]) == (named(0, 2), "", named(3, 3))
    assert calls[2].split("\0")[1::3] == tokens[:3]
    assert told[2].split("\0") == ["cancel", tokens[1], ""]
    assert more[2].split("\0")[1::3] == tokens[3:]


async def test_a_503_names_the_first_call_of_a_message_and_the_last(scene: Scene) -> None:
    note, call = '{"jsonrpc":"2.0","method":"snap"}', '{"jsonrpc":"2.0","id":%d,"method":"snap"}'
    for text in (note, call % 1, note, call % 2, note):
        scene.ask(text)
    ((_, first, _),) = scene.mail()
    scene.ask(call % 3)
    ((_, second, _),) = scene.mail()
    assert (first, second) == (named(0, 1), named(2, 2))


@pytest.mark.parametrize("most", [PACK, 3000])
async def test_messages_are_no_larger_than_they_may_be_but_for_a_large_call(scene: Scene, most: int) -> None:
    scene.it.a.link.info.max_payload = most
    scene.it.a.relay._of(scene.it.a.member("b"))._most = most
    params = '"' + "x" * (most // 4) + '"'
    for number in range(7):
        scene.ask(f'{{"jsonrpc":"2.0","id":{number},"method":"snap","params":[{params}]}}')
    calls = [parcel.payload for parcel in scene.it.b.link.arrived]
    assert [payload.count(b'xx"') for payload in calls] == [3, 3]
    assert max(map(len, calls)) <= most
    scene.it.a.link.info.max_payload = 1 << 20
    large = '"' + "x" * PACK + '"'
    scene.ask(f'{{"jsonrpc":"2.0","id":9,"method":"snap","params":[{large}]}}')
    calls = [parcel.payload for parcel in scene.it.b.link.arrived]
    assert [payload.count(b'xx"') for payload in calls] == [3, 3, 1, 1], "the large one does not wait"
    assert scene.caller.sent == []


async def test_what_has_not_left_when_the_link_is_lost_was_not_delivered(scene: Scene) -> None:
    scene.ask('{"jsonrpc":"2.0","id":1,"method":"snap"}')
    scene.it.a.lose()
    (reply,) = map(json.loads, scene.caller.take())
    assert reply["error"]["data"]["outcome"] == "not_delivered"
    assert scene.peer.calls == {}


async def test_it_is_barred_with_its_gateway(scene: Scene) -> None:
    assert not scene.peer.link.pressed
    scene.it.a.relay._of(scene.it.a.member("b"))._press(True)
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
