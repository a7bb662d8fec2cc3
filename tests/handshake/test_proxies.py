"""The client's address behind reverse proxies: from right to left, and no further than the word of a trusted one."""

import pytest

from gateway.handshake.proxies import Proxies, format_address

TRUSTED = ("10.0.0.0/8", "192.0.2.53", "2001:db8:ffff::/48", "::1")
NGINX = "10.0.0.1:40000"


@pytest.mark.parametrize(
    ("entries", "remote", "trusted"),
    [
        (TRUSTED, "10.0.0.1:40000", True),
        (TRUSTED, "10.255.255.255:1", True),
        (TRUSTED, "11.0.0.1:40000", False),
        (TRUSTED, "192.0.2.53:40000", True),
        (TRUSTED, "192.0.2.54:40000", False),
        (TRUSTED, "[2001:db8:ffff:1::1]:40000", True),
        (TRUSTED, "[2001:db8:fffe::1]:40000", False),
        (TRUSTED, "[::1]:40000", True),
        (TRUSTED, "127.0.0.1:40000", False),
        (TRUSTED, "[::ffff:10.0.0.1]:40000", True),  # the IPv4 address of a socket that serves both
        (TRUSTED, "[::ffff:11.0.0.1]:40000", False),
        (TRUSTED, "unix", False),
        (("fe80::/10",), "[fe80::1%eth0]:40000", True),
        (("0.0.0.0/0",), "203.0.113.7:40000", True),
        (("0.0.0.0/0",), "[2001:db8::1]:40000", False),
        (("0.0.0.0/0", "::/0"), "unix", False),
        (("unix",), "unix", True),
        (("unix",), "10.0.0.1:40000", False),
        (("unix", "10.0.0.1"), "10.0.0.1:40000", True),
        ((), "127.0.0.1:40000", False),
        ((), "unix", False),
    ],
)
def test_who_is_trusted(entries: tuple[str, ...], remote: str, trusted: bool) -> None:
    assert Proxies(entries).trusts(remote) is trusted


@pytest.mark.parametrize(("entries", "any_at_all"), [((), False), (("unix",), True), (("10.0.0.1",), True)])
def test_whether_there_is_a_proxy_at_all(entries: tuple[str, ...], any_at_all: bool) -> None:
    assert bool(Proxies(entries)) is any_at_all


@pytest.mark.parametrize(
    ("hops", "client"),
    [
        # One proxy: it has added the address that it was called from.
        (["203.0.113.7"], "203.0.113.7:0"),
        (["203.0.113.7:47011"], "203.0.113.7:47011"),
        # What a stranger wrote stands at the left, whatever it claims.
        (["127.0.0.1", "203.0.113.7"], "203.0.113.7:0"),
        (["10.9.9.9", "203.0.113.7"], "203.0.113.7:0"),
        (["10.9.9.9", "10.8.8.8", "198.51.100.1", "203.0.113.7"], "203.0.113.7:0"),
        (["nonsense", "", "203.0.113.7"], "203.0.113.7:0"),
        (["unix", "203.0.113.7"], "203.0.113.7:0"),
        # A chain of trusted ones, and who called the first of them.
        (["203.0.113.7", "10.0.0.2"], "203.0.113.7:0"),
        (["203.0.113.7", "192.0.2.53", "2001:db8:ffff::2", "10.0.0.2"], "203.0.113.7:0"),
        (["127.0.0.1", "203.0.113.7:47011", "10.0.0.2:4000"], "203.0.113.7:47011"),
        # One that is not trusted ends the chain, even where trusted ones stand left of it.
        (["203.0.113.7", "10.0.0.2", "198.51.100.1", "10.0.0.3"], "198.51.100.1:0"),
        # All of them trusted: the leftmost is the client.
        (["10.0.0.2"], "10.0.0.2:0"),
        (["10.0.0.4:4711", "10.0.0.3", "10.0.0.2"], "10.0.0.4:4711"),
        # Nobody said anything.
        ([], NGINX),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_not_trusted(hops: list[str], client: str) -> None:
    assert Proxies(TRUSTED).client(NGINX, hops) == client


@pytest.mark.parametrize(
    "hop",
    [
        "unknown",
        "Unknown",
        "_hidden",
        "_hidden:47011",
        "unix",
        "",
        " ",
        None,
        "localhost",
        "example.org",
        "256.0.0.1",
        "10.0.0",
        "10.0.0.0/8",
        "10.0.0.1:",
        "10.0.0.1:port",
        "10.0.0.1:-1",
        "10.0.0.1:1.5",
        "10.0.0.1:123456",
        "10.0.0.1:٤٢",  # digits, but of another script
        "10.0.0.1 10.0.0.2",
        "10.0.0.1;10.0.0.2",
        "010.0.0.1",  # eight or ten?
        "10.0.0.1:000080",
        "10.0.0.1:" + "0" * 7000,
        "fe80::1%eth0",
        "fe80::1%" + "z" * 7000,
        "[fe80::1%" + "z" * 7000 + "]:80",
        "0" * 7000 + ":" * 2,
        "[2001:db8::1]:port",
        "[2001:db8::1]:123456",
        "[example.org]:80",
        "[]",
        "[",
        "]",
        ":",
        "::1::",
        '"10.0.0.1"',
    ],
)
def test_what_is_no_address_ends_the_search_at_the_proxy_that_wrote_it(hop: str | None) -> None:
    proxies = Proxies(TRUSTED)
    assert proxies.client(NGINX, [hop]) == NGINX
    assert proxies.client(NGINX, ["203.0.113.7", hop]) == NGINX
    assert proxies.client(NGINX, ["203.0.113.7", hop, "10.0.0.2:4711"]) == "10.0.0.2:4711"
    assert proxies.client(NGINX, [hop, "203.0.113.7"]) == "203.0.113.7:0", "nobody asks what is left of a stranger"


@pytest.mark.parametrize(
    ("hop", "client"),
    [
        ("203.0.113.7", "203.0.113.7:0"),
        ("203.0.113.7:1", "203.0.113.7:1"),
        ("203.0.113.7:65535", "203.0.113.7:65535"),
        (" \t203.0.113.7:47011 ", "203.0.113.7:47011"),
        ("2001:db8::7", "[2001:db8::7]:0"),
        ("[2001:db8::7]", "[2001:db8::7]:0"),
        ("[2001:db8::7]:47011", "[2001:db8::7]:47011"),
        (" [2001:db8::7]:47011", "[2001:db8::7]:47011"),
        ("2001:DB8:0:0:0:0:0:7", "[2001:db8::7]:0"),
        ("::", "[::]:0"),
        ("::ffff:203.0.113.7", "203.0.113.7:0"),
        ("[::ffff:203.0.113.7]:47011", "203.0.113.7:47011"),
        ("::ffff:cb00:7107", "203.0.113.7:0"),
    ],
)
def test_each_form_of_an_address_becomes_the_logs(hop: str, client: str) -> None:
    assert Proxies(TRUSTED).client(NGINX, [hop]) == client


def test_a_trusted_proxy_is_known_in_every_form_of_its_address() -> None:
    forms = ("10.0.0.2", "10.0.0.2:4711", "::ffff:10.0.0.2", "[::ffff:10.0.0.2]:4711", "::1", "[::1]:4711", "0:0::1")
    for form in forms:
        assert Proxies(TRUSTED).client(NGINX, ["203.0.113.7", form]) == "203.0.113.7:0", form


def test_who_comes_by_a_unix_socket_is_where_the_proxy_says_or_nowhere() -> None:
    proxies = Proxies(("unix",))
    assert proxies.client("unix", ["198.51.100.1", "203.0.113.7:47011"]) == "203.0.113.7:47011"
    assert proxies.client("unix", ["203.0.113.7", "unknown"]) == "unix"
    assert proxies.client("unix", []) == "unix"


def test_a_long_header_is_read_no_further_than_it_is_believed() -> None:
    hops = ["10.0.0.9"] * 5000 + ["203.0.113.7"]
    assert Proxies(TRUSTED).client(NGINX, hops) == "203.0.113.7:0"


def test_hops_may_come_one_at_a_time() -> None:
    assert Proxies(TRUSTED).client(NGINX, iter(["198.51.100.1", "203.0.113.7", "10.0.0.2"])) == "203.0.113.7:0"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 4321), "127.0.0.1:4321"),
        (("::1", 4321, 0, 0), "[::1]:4321"),
        (("fe80::1%eth0", 4321, 0, 2), "[fe80::1%eth0]:4321"),
        ("", "unix"),
        (b"\0abstract", "unix"),
        (None, "unix"),
    ],
)
def test_addresses_as_the_log_has_them(address: object, text: str) -> None:
    assert format_address(address) == text
