"""What stands for everybody and for nobody."""

import time

import pytest

from gateway.auth import authenticators
from gateway.auth.credentials import ANYBODY, MAX_CREDENTIAL, NO_CREDENTIAL, Credential, is_too_long
from gateway.auth.scopes import ANONYMOUS, NOBODY, Principal
from gateway.config import parse
from gateway.names import is_peer_name


def test_who_owes_a_credential_is_nobody_with_no_scope() -> None:
    assert NO_CREDENTIAL.principal is NOBODY
    assert (NOBODY.name, NOBODY.role, NOBODY.scopes, NOBODY.expires_at) == ("", "", (), None)
    assert not any(map(NOBODY.allows, ("call:a", "serve:a", "subscribe:a", "publish:a", "admin", "*", "")))


def test_a_name_can_never_be_that_of_nobody() -> None:
    assert not is_peer_name(NOBODY.name)


def test_a_credential_has_whom_it_is_for_and_what_vouches_for_it_and_no_more() -> None:
    principal = Principal("kitchen-pi", "node", ("serve:>",), 1e9)
    assert Credential._fields == ("principal", "voucher")
    assert Credential(principal, b"a") == Credential(principal, b"a")
    assert Credential(principal, b"a") != Credential(principal, b"b"), "the same principal by another token"
    assert ANYBODY != NO_CREDENTIAL


@pytest.mark.parametrize("token", ["", "secret", "a.b.c", "\ud800", "x" * 100_000])
def test_in_mode_none_everybody_is_anonymous_whatever_they_bring(token: str) -> None:
    everybody = authenticators.load(parse({}).auth)
    assert not everybody.asks
    credential = everybody.verify(token, time.time())
    assert credential is ANYBODY
    assert (credential.principal, credential.voucher) == (ANONYMOUS, b"")
    assert everybody.known(token, time.time()) is ANYBODY
    assert everybody.renewed(credential) is credential


def test_a_credential_is_measured_in_bytes() -> None:
    assert MAX_CREDENTIAL == 16_384
    assert not any(map(is_too_long, ("", "x" * 16_384, "ü" * 8_192, "\ud800" * 5_461)))
    assert all(map(is_too_long, ("x" * 16_385, "ü" * 8_193, "\ud800" * 5_462, "x" * 1_048_576)))
