"""How many connections may be in, of whom and from where; and which of those that are held goes for a newcomer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from gateway.auth.scopes import ADMIN, Principal
from gateway.config.schema import Limits
from gateway.connections.connection import Connection
from gateway.limits import Counts, address_key

_FULL: Final = "the gateway is full; see limits.max_connections"
_RESERVED: Final = "the places that are left are kept for admins; see limits.reserved_for_admin"
_OF_ADDRESS: Final = "too many connections from this address; see limits.max_connections_per_address"
_OF_PRINCIPAL: Final = "too many connections of this principal; see limits.max_connections_per_principal"

NO_PLACES: Final = frozenset({_FULL, _RESERVED})
"""The reasons that have nothing to do with the newcomer's address or name. For these alone one that is held may go."""


class Held(Protocol):
    """The connections that have lost their link, and have a place each (`connections.sessions.Sessions`)."""

    @property
    def held(self) -> int:
        """How many there are."""

    def held_of(self, principal: str) -> int:
        """How many are of the principal with this name."""

    def make_room(self, fits: Callable[[Connection], bool]) -> bool:
        """End the one that is held longest of those that fit. Returns whether there was one."""


class Places:
    """The connections that have entered. ``principals`` is whether they are counted by principal, and admins apart.

    ``of_address`` also counts those that owe their credential.
    """

    def __init__(self, limits: Limits, *, principals: bool) -> None:
        self.held: Held | None = None
        """The connections that are held, once there can be any."""
        self.of_address: Final = Counts()
        self._limits = limits
        self._principals = principals
        self._of_principal = Counts()
        self._entered: set[Connection] = set()
        self._admins: set[Connection] = set()

    def __contains__(self, connection: Connection) -> bool:
        """Return whether a connection has entered."""
        return connection in self._entered

    # Those that are in

    def enter(self, connection: Connection) -> None:
        """Count a connection that is open, with the credential that it has."""
        self._entered.add(connection)
        if self._limits.max_connections_per_address:
            self.of_address.enter(address_key(connection.remote))
        if self._principals:
            self._of_principal.enter(connection.principal.name)
            self.review(connection)

    def review(self, connection: Connection) -> None:
        """Count a connection as an admin's or not, because it has another credential of its principal."""
        if connection.principal.allows(ADMIN):
            self._admins.add(connection)
        else:
            self._admins.discard(connection)

    def move(self, connection: Connection, before: str) -> None:
        """Count a connection at another address than ``before``, because it goes on by another link."""
        if self._limits.max_connections_per_address:
            self.of_address.leave(address_key(before))
            self.of_address.enter(address_key(connection.remote))

    def leave(self, connection: Connection) -> None:
        """Stop counting a connection that has entered, and is over."""
        self._entered.discard(connection)
        self._admins.discard(connection)
        if self._limits.max_connections_per_address:
            self.of_address.leave(address_key(connection.remote))
        if self._principals:
            self._of_principal.leave(connection.principal.name)

    # Those that are held

    @property
    def any_held(self) -> bool:
        """Whether any connections are held."""
        return self.held is not None and self.held.held > 0

    def held_of(self, principal: str) -> int:
        """Return how many connections are held of the principal with this name."""
        return 0 if self.held is None else self.held.held_of(principal)

    def make_room(self, why: str, principal: Principal, address: str = "") -> bool:
        """End the connection that is held longest of those whose place this newcomer may have. ``why`` it has none.

        Returns whether there was one.
        """
        if self.held is None or why not in NO_PLACES:
            return False
        return self.held.make_room(lambda gone: not self.why_not(principal, address, gone))

    # Newcomers

    def why_not(self, principal: Principal, address: str = "", gone: Connection | None = None) -> str:
        """Return why there is no place for a newcomer; empty if there is one. Its address counts if it is given.

        With ``gone`` this is the answer for the time after that connection has left.
        """
        why = self.why_nobody(address, gone)
        if why:
            return why
        if self._are_reserved(gone) and not principal.allows(ADMIN):
            return _RESERVED
        return _OF_PRINCIPAL if self._is_crowded(principal.name, gone) else ""

    def why_nobody(self, address: str, gone: Connection | None = None) -> str:
        """Return why there is no place for a newcomer from this address, whoever it is; empty if there may be one."""
        if self.are_taken(gone):
            return _FULL
        most = self._limits.max_connections_per_address
        if not most or not address:
            return ""
        leaves = gone is not None and address_key(gone.remote) == address
        return _OF_ADDRESS if self.of_address.of(address) - leaves >= most else ""

    def are_taken(self, gone: Connection | None = None) -> bool:
        """Return whether all places are taken."""
        return len(self._entered) - (gone is not None) >= self._limits.max_connections

    def _are_reserved(self, gone: Connection | None) -> bool:
        """Return whether all places that are left are kept for admins."""
        leaves = gone is not None and gone not in self._admins
        others = len(self._entered) - len(self._admins) - leaves
        return others >= self._limits.max_connections - self._limits.reserved_for_admin

    def _is_crowded(self, name: str, gone: Connection | None) -> bool:
        most = self._limits.max_connections_per_principal
        leaves = gone is not None and gone.principal.name == name
        return bool(most) and self._of_principal.of(name) - leaves >= most
