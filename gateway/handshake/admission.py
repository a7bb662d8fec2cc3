"""Which connections come in, and until when: their credentials, and whether there is a place.

`upgrade.Gatekeeper` checks the request before. `places.Places` counts those that are in. What a principal may do is in
`auth.scopes`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from aiohttp import hdrs

from gateway import errors
from gateway.auth.credentials import (
    ANYBODY,
    MAX_CREDENTIAL,
    NO_CREDENTIAL,
    Authenticator,
    Credential,
    CredentialError,
    is_too_long,
)
from gateway.auth.expiry import Expiries
from gateway.auth.scopes import origin
from gateway.config import Config
from gateway.connections.connection import Connection
from gateway.handshake.places import NO_PLACES, Places
from gateway.handshake.rejections import Stage
from gateway.handshake.upgrade import RETRY_AFTER, RefusedError
from gateway.limits import Counts, Failures, address_key
from gateway.rpc import work
from gateway.rpc.method import Refusal, not_run
from gateway.rpc.steps import Steps
from gateway.rpc.work import Work
from gateway.status import Phase, Status
from gateway.telemetry.lines import AUTHENTICATED, REFRESHED, Line, Lines

logger = logging.getLogger(__name__)

_CHALLENGE: Final[dict[str, str]] = {hdrs.WWW_AUTHENTICATE: 'Bearer realm="aisopod-gateway", error="invalid_token"'}
_TOO_LONG: Final = f"a credential has at most {MAX_CREDENTIAL} bytes"
_AT_ONCE: Final = 2
"""How many credentials of one connection are verified in one event-loop iteration."""
_SLICE: Final = 200
"""How many connections a reload checks in one event-loop iteration."""


class _WaitError(Exception):
    """A credential is not looked at for so many ``seconds``."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(why)
        self.seconds = seconds


class GuestError(Exception):
    """There is no room for a connection, but its principal has some that are held: it may come for one of these alone.

    ``credential`` is the one that it has brought.
    """

    def __init__(self, credential: Credential) -> None:
        super().__init__("only to resume a connection")
        self.credential = credential


class Admission:
    """The bounds and the credentials. Every call but ``renew`` is plain, and each is made once for an event.

    ``rescoped`` is called with each open connection that has taken another credential, and returns the work of ending
    what that does not allow. ``at_once`` returns whether that is little work for a connection. If it is not, `renew`
    leaves it to ``steps``.
    """

    def __init__(
        self,
        config: Config,
        status: Status,
        authenticator: Authenticator,
        rescoped: Callable[[Connection], Work[None]],
        lines: Lines,
        *,
        at_once: Callable[[Connection], bool],
        steps: Steps,
    ) -> None:
        self._guests = Counts()
        self._lines = lines
        self._status = status
        self._limits = config.limits
        self._authenticator = authenticator
        self._rescoped = rescoped
        self.refreshes_at_once: Final = at_once
        """Returns whether it is little work to give a connection another credential."""
        self._steps = steps
        self._failures = Failures(time.monotonic)
        self._verifying: dict[Connection, int] = {}
        self._expiries = Expiries(config.auth.expiry_notice)
        self.places: Final = Places(config.limits, principals=authenticator.asks)
        self._owing = Counts()
        self._owing_in_all = 0

    # At the upgrade

    def at_upgrade(self, authorization: Sequence[str], remote: str) -> Credential:
        """Return the credential of a request, or `NO_CREDENTIAL` if it is to follow.

        Raises RefusedError, or GuestError.

        ``authorization`` has the headers of that name.

        A connection that owes its credential takes no place until it has brought it. It may come as long as there is a
        place of any kind, because it may turn out to be an admin's.

        Nothing may await between this call and `owes`, `entered` or `invited`, which count the connection. Otherwise
        several requests at once would all find the room that there is for one.
        """
        if self._status.phase is not Phase.READY:
            raise _unavailable(f"the gateway is {self._status.phase}")
        if (
            not self._authenticator.asks
            and not self._limits.max_connections_per_address
            and not self.places.are_taken()
        ):
            return ANYBODY
        address = address_key(remote)
        why = self.places.why_nobody(address)
        if why and not self.places.any_held:
            raise _no_room(why)
        if not self._authenticator.asks:
            return self._placed(ANYBODY, address)
        if authorization:
            return self._bearer(authorization, address)
        if self._owing_in_all >= self._limits.max_unauthenticated:
            raise _unavailable("too many connections owe their credential; see limits.max_unauthenticated")
        if address and self._owing.of(address) >= self._limits.max_unauthenticated_per_address:
            why = "too many connections from this address owe their credential"
            raise _too_many(f"{why}; see limits.max_unauthenticated_per_address")
        return NO_CREDENTIAL

    def _placed(self, credential: Credential, address: str) -> Credential:
        """Return a credential for which there is a place. If there is none, a connection that is held may go for it.

        Raises GuestError if the principal has some that are held, otherwise RefusedError.
        """
        why = self.places.why_not(credential.principal, address)
        if why and self.may_return(credential):
            raise GuestError(credential)
        if why and not self.places.make_room(why, credential.principal, address):
            raise _no_room(why)
        return credential

    def may_return(self, credential: Credential) -> bool:
        """Return whether a principal has more connections that are held than it has guests."""
        name = credential.principal.name
        return self.places.held_of(name) > self._guests.of(name)

    def invited(self, connection: Connection) -> None:
        """Count a guest."""
        self._guests.enter(connection.principal.name)

    def leaves(self, connection: Connection) -> None:
        """Stop counting a guest."""
        self._guests.leave(connection.principal.name)

    def _bearer(self, authorization: Sequence[str], address: str) -> Credential:
        scheme, _, token = authorization[0].strip().partition(" ")
        token = token.strip()
        if len(authorization) > 1 or scheme.lower() != "bearer" or not token:
            raise _unauthenticated("the Authorization header must be Bearer and a token, once")
        if is_too_long(token):
            raise _unauthenticated(_TOO_LONG)
        try:
            credential = self._verified(token, address)
        except _WaitError as error:
            raise _too_many(str(error), math.ceil(error.seconds), stage="authenticate") from None
        except CredentialError as error:
            raise _unauthenticated(str(error)) from None
        return self._placed(credential, address)

    # By a message

    def refresh(self, connection: Connection, token: str) -> Work[None]:
        """Handle `gateway.authenticate` of an open connection, in steps. The first one takes the new credential.

        If name, role, scopes and expiry stay as they are, nothing else happens and nothing is logged. Raises Refusal in
        the first step if the connection is to keep the credential that it has. All other steps must be taken, because
        they end what the new credential does not allow.
        """
        before, credential = connection.principal, self.by_message(connection, token)
        if self._authenticator.asks:
            connection.adopt(credential)
            if credential.principal != before:
                self._changed(connection)
                self._log(REFRESHED, connection)
                yield
                yield from self._rescoped(connection)

    def by_message(self, connection: Connection, token: str) -> Credential:
        """Return the credential of a `gateway.authenticate`. Raises Refusal.

        The connection owes a credential, or refreshes the one that it has.
        """
        if is_too_long(token):
            raise Refusal(errors.INVALID_PARAMS, f"token: {_TOO_LONG}")
        if not self._authenticator.asks:
            return ANYBODY
        address = address_key(connection.remote)
        try:
            credential = self._verified(token, address, connection)
        except _WaitError as error:
            raise not_run(errors.RATE_LIMITED, str(error), retryAfterMs=math.ceil(error.seconds * 1000)) from None
        except CredentialError as error:
            raise Refusal(errors.UNAUTHENTICATED, str(error)) from None
        before = connection.credential
        if before is NO_CREDENTIAL:
            self._check_room(credential)
        elif credential.principal.name != before.principal.name:
            raise Refusal(errors.CONFLICT, f"this connection is {before.principal.name}'s")
        return credential

    def _check_room(self, credential: Credential) -> None:
        """Look for a place for a connection that has owed its credential. Raises Refusal or GuestError."""
        if self.places.why_not(credential.principal) and self.may_return(credential):
            raise GuestError(credential)
        self.check_room(credential)

    def check_room(self, credential: Credential, remote: str = "") -> None:
        """Look for a place for a connection that has none yet. If all are taken, one that is held may go for it.

        Its address counts if ``remote`` is given. Raises Refusal if there is no place.
        """
        address = address_key(remote)
        why = self.places.why_not(credential.principal, address)
        if why and not self.places.make_room(why, credential.principal, address):
            raise not_run(errors.OVERLOADED, why, retryAfterMs=errors.RETRY_FULL_MS)

    def _verified(self, token: str, address: str, connection: Connection | None = None) -> Credential:
        """Return what a credential gives. Raises CredentialError, or _WaitError if it has not been looked at.

        A credential that a digest shows to be right never waits. So an address that brings wrong ones does not keep its
        neighbours out, and learns nothing either, because only a right credential is answered differently.
        """
        now = time.time()
        known = self._authenticator.known(token, now)
        if known is not None:
            return known
        wait = self._failures.wait(address) if address else 0.0
        if wait:
            raise _WaitError("too many wrong credentials from this address", wait)
        if connection is not None:
            self._count(connection)
        try:
            return self._authenticator.verify(token, now)
        except CredentialError:
            if address:
                self._failures.failed(address)
            raise

    def _count(self, connection: Connection) -> None:
        """Count a verification for a connection. Raises _WaitError if one message, a batch, brings too many."""
        if not self._verifying:
            asyncio.get_running_loop().call_soon(self._verifying.clear)
        count = self._verifying[connection] = self._verifying.get(connection, 0) + 1
        if count > _AT_ONCE:
            raise _WaitError("too many credentials at once", errors.RETRY_BUSY_MS / 1000)

    # The life of a connection

    def owes(self, connection: Connection) -> None:
        """Count a connection that is open, and owes its credential."""
        address = address_key(connection.remote)
        self.places.of_address.enter(address)
        self._owing.enter(address)
        self._owing_in_all += 1

    def owes_no_more(self, connection: Connection) -> None:
        """Stop counting a connection as owing: it has brought its credential, or is over."""
        address = address_key(connection.remote)
        self.places.of_address.leave(address)
        self._owing.leave(address)
        self._owing_in_all -= 1

    def entered(self, connection: Connection) -> None:
        """Count a connection that is open, with the credential that it has."""
        self.places.enter(connection)
        if self._authenticator.asks:
            self._expiries.watch(connection)

    def adopted(self, connection: Connection, credential: Credential) -> None:
        """Give a connection the credential of the link by which it goes on. What that does not allow ends in steps."""
        before = connection.principal
        connection.adopt(credential)
        if self._authenticator.asks:
            self._changed(connection)  # what is still to be told of its expiry is told again
            if credential.principal != before:
                self._steps.begin(self._rescoped(connection))

    def authenticated(self, connection: Connection) -> None:
        """Log that a connection has brought the credential that it owed."""
        self._log(AUTHENTICATED, connection)

    def _log(self, line: Line, connection: Connection) -> None:
        principal = connection.principal
        fields = {
            "connId": connection.conn_id,
            "remote": connection.remote,
            "principal": principal.name,
            "role": principal.role,
        }
        key = origin(principal, connection.remote)
        self._lines.log(logger, line, key, "%s authenticated", principal.name, fields=fields)

    def left(self, connection: Connection) -> None:
        """Stop counting a connection that has entered, and is over."""
        self.places.leave(connection)
        if self._authenticator.asks:
            self._expiries.forget(connection)

    async def renew(self, authenticator: Authenticator, connections: Iterable[Connection]) -> int:
        """Ask ``authenticator``, whose tokens or keys have just been read, about each open connection's credential.

        A connection whose credential is gone is ended. If it now has other scopes, or expires at another time, the
        connection gets the new ones at once. Returns how many connections were ended.
        """
        self._authenticator = authenticator
        revoked = 0
        for number, connection in enumerate(list(connections), 1):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            if not connection.is_open:
                continue
            before = connection.principal
            if not self.renewed(connection):
                revoked += 1
            elif connection.principal != before:
                await self._rescope(connection)
        return revoked

    def renewed(self, connection: Connection) -> bool:
        """Give a connection its credential as it is under the tokens or keys that were read last.

        Returns False if it is gone; that ends the connection. `renew` asks for each connection that has entered. For a
        guest, or to hand the credential on, this is asked anew: a reload may have come meanwhile, or be at work.
        """
        before, renewed = connection.principal, self._authenticator.renewed(connection.credential)
        if renewed is None:
            connection.end(errors.CREDENTIAL_REVOKED)
            return False
        if renewed is not connection.credential:
            connection.adopt(renewed)
            if renewed.principal != before and connection in self.places:
                self._changed(connection)
        return True

    async def _rescope(self, connection: Connection) -> None:
        if self.refreshes_at_once(connection):
            work.at_once(self._rescoped(connection))
        else:
            await self._steps.take(self._rescoped(connection))

    def _changed(self, connection: Connection) -> None:
        """Count a connection as what its other credential makes it."""
        self.places.review(connection)
        self._expiries.watch(connection)


def _no_room(why: str) -> RefusedError:
    return _unavailable(why) if why in NO_PLACES else _too_many(why)


def _unavailable(why: str) -> RefusedError:
    return RefusedError(503, why, {hdrs.RETRY_AFTER: str(RETRY_AFTER)})


def _too_many(why: str, retry_after: int = RETRY_AFTER, stage: Stage = "request") -> RefusedError:
    return RefusedError(429, why, {hdrs.RETRY_AFTER: str(retry_after)}, stage)


def _unauthenticated(why: str) -> RefusedError:
    return RefusedError(401, why, _CHALLENGE, "authenticate")
