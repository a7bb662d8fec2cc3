"""What a client is given to connect with: what is made of it, and which words name what is wrong with it."""

import ssl
from pathlib import Path

import pytest

from gateway.client.address import DEFAULT_URL, address, credential, line, proxy_for, trusting
from tests.support.certs import Authority

CONTROL = ("\n", "\r\n", "\t", "\0", "\x7f", "\x1b[2J", "\u2028", "\udcff")
"""What is not printable, and so has no place inside of a name."""


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ws://h", "ws://h/ws"),
        ("ws://h:8765", "ws://h:8765/ws"),
        ("ws://h:8765/", "ws://h:8765/ws"),
        ("wss://h?a=b", "wss://h/ws?a=b"),
        ("ws://h/ws", "ws://h/ws"),
        ("ws://h/behind/a/proxy/", "ws://h/behind/a/proxy/"),
        ("http://h:1", "ws://h:1/ws"),
        ("HTTPS://h/x", "wss://h/x"),
        ("ws://[::1]:1", "ws://[::1]:1/ws"),
        (" ws://h/ws\r\n", "ws://h/ws"),
        ("ws://h/ws#part", "ws://h/ws"),
        (DEFAULT_URL, DEFAULT_URL),
    ],
)
def test_an_address(url: str, expected: str) -> None:
    assert address(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:8765", "ftp://x/ws", "ws://", "/ws", "h", "ws://:1/ws"),
        *("ws://h:99999/ws", "ws://h:0/ws", "ws://a:b/ws", "ws://[::1/ws", "ws://h h/ws", "ws://h/w s"),
        *("ws://a..b/ws", f"ws://{'a' * 300}/ws", "ws://\udcff/ws"),
        *(f"ws://h/w{what}s" for what in CONTROL),
        *(f"ws://h{what}h/ws" for what in CONTROL),
    ],
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a gateway: ") as refused:
        address(url)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("url", ["ws://me:secret@h/ws", "ws://secret@h", "ws://me:secret@", "ftp://me:secret@h/\n"])
def test_no_credential_in_a_url(url: str) -> None:
    with pytest.raises(ValueError, match="a credential does not belong in a URL") as refused:
        address(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("token", [" t\n", "t", "\tt\r\n"])
def test_white_space_around_a_token_does_not_count(token: str) -> None:
    assert credential(token) == "t"


@pytest.mark.parametrize(
    ("token", "words"),
    [
        *((f"secret{what}b", "the token has a line break inside") for what in CONTROL),
        *[("", "the token is empty"), (" \n", "the token is empty")],
        *[("secret b", "the token has spaces or"), ("secretü", "the token has spaces or characters other than ASCII")],
    ],
)
def test_a_token_that_no_header_holds_is_refused_in_words(token: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        credential(token)
    assert "secret" not in str(refused.value)


def test_a_name_is_one_line() -> None:
    assert line(" the küche \n", "the name") == "the küche"
    for name in ("", "\n", *(f"a{what}b" for what in CONTROL)):
        with pytest.raises(ValueError, match=r"the name (is empty|has a line break inside)"):
            line(name, "the name")


def test_a_file_of_authorities(tmp_path: Path, certificates: Authority) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(
        "".join(map(ssl.DER_cert_to_PEM_cert, certificates.client_context().get_ca_certs(binary_form=True)))
    )
    assert len(trusting(file).get_ca_certs()) == len(trusting(str(file)).get_ca_certs()) == 1
    file.write_text("nothing")
    for wrong in (file, tmp_path, tmp_path / "none", f"{file}\0"):
        with pytest.raises(ValueError, match=r"cafile: .*(cannot be read|no certificate)"):
            trusting(wrong)


ENVIRONMENT = {
    "HTTP_PROXY": "http://plain.example:3128",
    "https_proxy": "secure.example:3129",
    "NO_PROXY": "direct.example,.local",
}


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("ws://gateway.example/ws", "http://plain.example:3128"),
        ("wss://gateway.example/ws", "http://secure.example:3129"),
        ("wss://direct.example/ws", None),
        ("wss://kitchen.local:8765/ws", None),
        ("ws://localhost/ws", None),
        ("ws://127.0.0.7:8765/ws", None),
        ("ws://[::1]:8765/ws", None),
    ],
)
def test_the_proxy_that_the_environment_names(url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    _environment(monkeypatch, ENVIRONMENT)
    assert proxy_for(url, True) == proxy
    assert proxy_for(url, False) is proxy_for(url, "") is None
    assert proxy_for(url, " http://me:secret@other.example:1\n") == "http://me:secret@other.example:1"


def test_one_proxy_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    _environment(monkeypatch, {"all_proxy": "http://all.example:1", "no_proxy": ""})
    assert proxy_for("ws://h/ws", True) == proxy_for("wss://h/ws", True) == "http://all.example:1"
    _environment(monkeypatch, {})
    assert proxy_for("ws://h/ws", True) is None


@pytest.mark.parametrize("proxy", ["socks5://h:1", "http://", "http://me:secret@h\n:1", "http://h:99999", "a b"])
def test_a_proxy_that_is_none(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _environment(monkeypatch, {"HTTPS_PROXY": proxy})
    for given, source in ((proxy, "proxy"), (True, "the environment's proxy")):
        with pytest.raises(ValueError, match=f"^{source}: not the URL of an HTTP proxy") as refused:
            proxy_for("wss://h/ws", given)
        assert "secret" not in str(refused.value)


def _environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
