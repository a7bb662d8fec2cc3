"""How many connections may be in, and which of those that are held goes for which newcomer."""

from collections.abc import Callable
from typing import NamedTuple, cast

import pytest

from gateway.auth.scopes import Principal
from gateway.config import parse
from gateway.connections.connection import Connection
from gateway.handshake.places import NO_PLACES, Places

OP = Principal("op", "operator", ("admin",))
PI = Principal("pi", "node", ("serve:>",))
PAGE = Principal("page", "ui", ("call:>",))
HERE, THERE = "192.0.2.1", "192.0.2.2"


class One(NamedTuple):
    """What is counted of a connection."""

    number: int
    principal: Principal
    remote: str


class House:
    """Few places, and those that are in. Those that are held are in ``order``, the longest held first."""

    def __init__(self, **limits: int) -> None:
        self.places = Places(parse({"limits": {"reserved_for_admin": 0} | limits}).limits, principals=True)
        self.places.held = self
        self.order: list[Connection] = []
        self._came = 0

    def enter(self, principal: Principal, address: str = HERE, *, held: bool = False) -> Connection:
        """Let a connection in."""
        self._came += 1
        connection = cast(Connection, One(self._came, principal, f"{address}:{self._came}"))
        self.places.enter(connection)
        if held:
            self.order.append(connection)
        return connection

    @property
    def held(self) -> int:
        return len(self.order)

    def held_of(self, principal: str) -> int:
        return sum(one.principal.name == principal for one in self.order)

    def make_room(self, fits: Callable[[Connection], bool]) -> bool:
        for one in self.order:
            if fits(one):
                self.order.remove(one)
                self.places.leave(one)
                return True
        return False

    def comes(self, principal: Principal, address: str = HERE) -> str:
        """Let a newcomer in, or return why not."""
        why = self.places.why_not(principal, address)
        if why and not self.places.make_room(why, principal, address):
            return why
        assert not self.places.why_not(principal, address)
        self.enter(principal, address)
        return ""


def test_the_longest_held_goes_for_a_newcomer() -> None:
    house = House(max_connections=3)
    first, second = (house.enter(PI, held=True) for _ in range(2))
    house.enter(PI)
    assert house.comes(PAGE) == ""
    assert first not in house.places and house.order == [second]
    assert house.comes(PAGE) == ""
    assert house.comes(PAGE) in NO_PLACES


def test_no_admin_goes_for_others_if_that_leaves_a_reserved_place() -> None:
    house = House(max_connections=4, reserved_for_admin=2)
    admin, pi, _ = house.enter(OP, held=True), house.enter(PI), house.enter(PI)
    assert house.comes(PAGE).endswith("limits.reserved_for_admin")
    assert admin in house.places
    house.order.append(pi)
    assert house.comes(PAGE) == ""
    assert pi not in house.places and house.order == [admin]


def test_nor_if_the_gateway_is_full() -> None:
    house = House(max_connections=4, reserved_for_admin=2)
    admins = [house.enter(OP, held=True) for _ in range(2)]
    house.enter(PI), house.enter(PI)
    assert house.comes(PAGE).endswith("limits.max_connections")
    assert house.order == admins
    assert house.comes(OP) == ""
    assert house.order == admins[1:]


def test_an_admin_that_has_a_place_of_all_goes_for_others() -> None:
    house = House(max_connections=3, reserved_for_admin=1)
    house.enter(OP, held=True), house.enter(OP), house.enter(PI)
    assert house.comes(PAGE) == ""
    assert not house.order


def test_none_goes_if_others_have_too_many_even_then() -> None:
    house = House(max_connections=4, reserved_for_admin=2)
    admins = [house.enter(OP) for _ in range(2)]
    pi = house.enter(PI, held=True)
    house.enter(PI)
    for admin in admins:
        house.places._admins.discard(admin)  # as after a reload that has narrowed its scopes
    assert house.comes(PAGE) in NO_PLACES
    assert house.order == [pi]


@pytest.mark.parametrize("bound", ["max_connections_per_principal", "max_connections_per_address"])
def test_none_goes_for_one_too_many_of_a_principal_or_an_address(bound: str) -> None:
    house = House(**{"max_connections": 2, bound: 1})
    other = house.enter(PAGE, THERE, held=True)
    house.enter(PI)
    assert house.comes(PI)
    assert house.order == [other]


@pytest.mark.parametrize("bound", ["max_connections_per_principal", "max_connections_per_address"])
def test_but_its_own_does(bound: str) -> None:
    house = House(**{"max_connections": 2, bound: 1})
    other, own = house.enter(PAGE, THERE, held=True), house.enter(PI, held=True)
    assert house.comes(PI) == ""
    assert house.order == [other] and own not in house.places


def test_what_leaves_or_moves_is_counted_no_more() -> None:
    house = House(max_connections_per_principal=1, max_connections_per_address=1)
    here = house.enter(PI)
    assert house.comes(PAGE).endswith("limits.max_connections_per_address")
    assert house.comes(PI, THERE).endswith("limits.max_connections_per_principal")
    there = cast(Connection, One(1, PI, f"{THERE}:1"))
    house.places.move(there, here.remote)
    assert house.comes(PAGE) == ""
    assert house.comes(OP, THERE).endswith("limits.max_connections_per_address")
    assert house.comes(OP, "") == "", "an address that is not known is not counted"
