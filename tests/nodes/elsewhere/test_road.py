"""The way to another gateway, as a link: it keeps nobody from reading, and has nothing to flush."""

from gateway.nodes.elsewhere.road import Road


def test_nothing_waits_for_a_way_that_is_not_full() -> None:
    road = Road()
    for act in (road.wait, road.go_on, road.flush):
        act()
    assert not (road.pressed or road.barred)
    road.pressed = True
    assert road.barred
