"""What waits for a peer, and the order in which it leaves."""

from gateway.websocket.lanes import PIECE, Lanes


def all_of(lanes: Lanes) -> list[bytes]:
    """Take everything."""
    taken = []
    while not lanes.empty:
        taken.append(lanes.take())
    return taken


def test_own_replies_go_before_what_others_sent_and_each_lane_keeps_its_order() -> None:
    lanes = Lanes()
    large = bytes(PIECE)
    lanes.put_last(large + b"1")
    lanes.put_last(large + b"2")
    lanes.put(large + b"a")
    assert lanes.take()[-1:] == b"a"
    assert lanes.take()[-1:] == b"1"
    lanes.put(large + b"b")
    lanes.put(large + b"c")
    assert [data[-1:] for data in all_of(lanes)] == [b"b", b"c", b"2"]


def test_small_frames_of_a_lane_leave_together() -> None:
    lanes = Lanes()
    half = bytes(PIECE // 2)
    for data in (half, half, b"1"):
        lanes.put_last(data)
    for data in (b"a", b"b", half):
        lanes.put(data)
    assert [len(data) for data in all_of(lanes)] == [2 + PIECE // 2, PIECE, 1]


def test_what_waits_is_counted() -> None:
    lanes = Lanes()
    assert (lanes.empty, lanes.octets, lanes.own_octets) == (True, 0, 0)
    lanes.put_last(b"123")
    lanes.put(b"12")
    lanes.put(b"12")
    assert (lanes.empty, lanes.octets, lanes.own_octets) == (False, 7, 4)
    lanes.take()
    assert (lanes.empty, lanes.octets, lanes.own_octets) == (False, 3, 0)
    lanes.take()
    assert (lanes.empty, lanes.octets, lanes.own_octets) == (True, 0, 0)
