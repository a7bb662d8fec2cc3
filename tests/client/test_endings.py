"""Ends of connections: which of them a client comes back after."""

import pytest

from gateway import errors
from gateway.client.endings import MAX_PAUSE, End, refusal, retry_after


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1006, 1009, 1011, 1013, 3000, 4000, 4001, 4002, 4003, 4004, 4499])
def test_these_close_codes_mean_come_back(code: int) -> None:
    assert not End(code).final


@pytest.mark.parametrize("code", [1002, 1003, 1007, 4500, 4501, 4502, 4503, 4999])
def test_these_close_codes_do_not(code: int) -> None:
    assert End(code).final


def test_the_gateways_own_ends_go_by_the_ranges() -> None:
    for end in errors.DISCONNECTS:
        if end.code >= 4000:
            assert End(end.code).final is (end.code >= 4500), end


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 421, 426])
def test_these_statuses_do_not(status: int) -> None:
    assert End(status).final


@pytest.mark.parametrize("status", [200, 408, 429, 500, 502, 503, 504])
def test_these_statuses_mean_come_back(status: int) -> None:
    assert not End(status).final


DATE = "Mon, 23 Nov 2026 06:56:25 GMT"
NOW = 1795416985.0
"""The same moment."""


@pytest.mark.parametrize(
    ("value", "pause"),
    [
        *[("5", 5.0), (" 7 ", 7.0), ("0", 0.0), ("99999", MAX_PAUSE), ("9" * 5000, None), ("-1", None), ("1.5", None)],
        *[("", None), ("\u0665", None), ("soon", None), ("Mon, 99 Nov 2026 06:56:25 GMT", None), (DATE * 9, None)],
        ("Mon, 23 Nov 2026 06:56:32 GMT", 7.0),
        ("Monday, 23-Nov-26 06:56:32 GMT", 7.0),
        ("Mon Nov 23 06:56:32 2026", 7.0),
        ("Mon, 23 Nov 2026 06:56:20 GMT", 0.0),
        ("Wed, 23 Nov 2050 06:56:25 GMT", MAX_PAUSE),
        ("Mon, 23 Nov 99999 06:56:25 GMT", None),
    ],
)
def test_retry_after(value: str, pause: float | None) -> None:
    assert retry_after({"Retry-After": value}, NOW) == pause
    by_its_own_clock = {"Retry-After": value, "Date": DATE}
    assert retry_after(by_its_own_clock, 0.0) == pause
    assert refusal(503, "full", by_its_own_clock).retry_after == pause


def test_a_refusal_has_our_words_and_those_of_the_gateway() -> None:
    assert refusal(503, "the gateway is draining", {}).reason == "full or draining: the gateway is draining"
    assert refusal(418, "", {}).reason == "the connection was refused"
    assert refusal(401, "two\nlines", {}).reason == "the credential was refused"
    moved = refusal(302, "", {"Location": "https://other.example/"})
    assert (moved.reason, moved.final) == ("the gateway is said to be elsewhere: https://other.example/", True)
    page = refusal(200, "", {})
    assert (page.reason, page.final) == ("a web server answers there, and no gateway", True)


def test_what_is_mistaken_is_final() -> None:
    assert End(1006, mistaken=True).final
    assert not End(1006).final


def test_an_end_as_text() -> None:
    assert str(End(503, "full")) == "HTTP 503 full"
    assert str(End(1006)) == "1006"
    assert str(End(1006, "the transport was lost")) == "the transport was lost"
