"""What a client is given to connect with, checked before it is used, so that a mistake is named at once."""

from __future__ import annotations

import ipaddress
import os
import ssl
import urllib.request
from typing import Final

from yarl import URL

DEFAULT_URL: Final = "ws://127.0.0.1:8765/ws"
"""Where a gateway listens that was not told otherwise."""

_SCHEMES: Final = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_PROXIED_AS: Final = {"ws": "http", "wss": "https"}


def address(url: str) -> str:
    """Return the address of a gateway's WebSocket: ``/ws`` where the URL has no path, and ws or wss for http or https.

    White space around it does not count. Raises ValueError if it is not the URL of a gateway, or has a credential.
    """
    text = str(url).strip()
    if "@" in text.partition("://")[2].partition("/")[0]:
        raise ValueError("a credential does not belong in a URL; give it as the token")
    parsed = _parsed(text)
    if parsed is None or parsed.scheme not in _SCHEMES:
        raise ValueError(f"not the URL of a gateway: {text!r}; such as {DEFAULT_URL} or wss://gateway.example/ws")
    if parsed.path == "/":
        parsed = parsed.with_path("/ws").with_query(parsed.query)
    return str(parsed.with_scheme(_SCHEMES[parsed.scheme]).with_fragment(None))


def _parsed(text: str) -> URL | None:
    """Return a URL that has a host and a port, or None. Control characters, which parsers skip, are not skipped."""
    try:
        parsed = URL(text)
        if not text.isprintable() or " " in text or not parsed.host or not parsed.port:
            return None
        parsed.host.encode("idna")  # as resolving will; it refuses labels that are empty or too long
    except ValueError:
        return None
    return parsed


def credential(token: str) -> str:
    """Return a token without the white space around it, such as the line break at the end of a file.

    Raises ValueError if it is none: see `flaw`.
    """
    token = token.strip()
    if wrong := flaw(token):
        raise ValueError(f"the token {wrong}")
    return token


def flaw(token: str) -> str:
    """Say why a text cannot be a token, which has to fit into a header; empty if it can."""
    fits = token.isascii() and " " not in token
    return _not_a_line(token) or ("" if fits else "has spaces or characters other than ASCII")


def line(text: str, what: str) -> str:
    """Return a name without the white space around it. Raises ValueError, with ``what``, if it is not one line."""
    text = text.strip()
    if wrong := _not_a_line(text):
        raise ValueError(f"{what} {wrong}")
    return text


def _not_a_line(text: str) -> str:
    if not text:
        return "is empty"
    return "" if text.isprintable() else "has a line break inside, or another character that is not printable"


def trust(given: ssl.SSLContext | bool | None, cafile: str | os.PathLike[str] | None) -> ssl.SSLContext | bool:
    """Return how to verify the gateway: as ``given``, by the authorities in ``cafile``, or as Python does.

    Raises ValueError if both are given, and what `trusting` raises.
    """
    if cafile is None:
        return True if given is None else given
    if given is not None:
        raise ValueError("cafile: ssl says already how to verify the gateway")
    return trusting(cafile)


def trusting(cafile: str | os.PathLike[str]) -> ssl.SSLContext:
    """Return a context for TLS that trusts the authorities in a PEM file, and no others.

    Raises ValueError if the file cannot be read, or has no certificate.
    """
    try:
        return ssl.create_default_context(cafile=os.fspath(cafile))
    except ssl.SSLError:
        raise ValueError(f"cafile: {os.fspath(cafile)!r} has no certificate in PEM") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cafile: {os.fspath(cafile)!r} cannot be read: {why}") from None


def proxy_for(url: str, given: str | bool) -> str | None:
    """Return the URL of the HTTP proxy through which an `address` is reached; None: directly.

    ``given`` is the proxy, or False for none. True takes what the environment names: HTTP_PROXY for ws, HTTPS_PROXY for
    wss, ALL_PROXY for both, as far as NO_PROXY allows it; a gateway on loopback is reached directly. Raises ValueError
    if it is not the URL of an HTTP proxy.
    """
    text, source = (_from_environment(URL(url)), "the environment's proxy") if given is True else (given, "proxy")
    if not text:
        return None
    text = text.strip()
    parsed = _parsed(text if "://" in text else f"http://{text}")
    if parsed is None or parsed.scheme not in ("http", "https"):
        # The text is not repeated, because it may have a password in it.
        raise ValueError(f"{source}: not the URL of an HTTP proxy, such as http://proxy.example:3128")
    return str(parsed)


def _from_environment(url: URL) -> str | None:
    host = url.host or ""
    if _is_loopback(host) or any(map(urllib.request.proxy_bypass, (host, url.authority))):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(_PROXIED_AS[url.scheme]) or proxies.get("all")


def _is_loopback(host: str) -> bool:
    # A proxy would look for it on its own machine.
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
