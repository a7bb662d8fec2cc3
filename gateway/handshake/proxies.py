"""Whose connection it is, behind reverse proxies: X-Forwarded-For and Forwarded, from right to left. Pure.

Each proxy adds at the right the address that it was called from. What stands left of the first address that is not a
trusted proxy's was written by a stranger, and counts for nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

UNIX: Final = "unix"
"""The ``remote`` of who comes by a Unix socket, and the entry of `server.trusted_proxies` that trusts them."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def format_address(address: object) -> str:
    """A socket address as the log has it; anything but an IP address and port is ``unix``."""
    if not isinstance(address, tuple) or len(address) < 2:
        return UNIX
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_VALUE: Final = re.compile(r'"[^"]*"|[^\s"]*')


def forwarded_for(element: str) -> str | None:
    """The address in one element of Forwarded (RFC 7239 section 4); None where there is none, or it is malformed.

    Elements are told apart by commas alone: a quote that a stranger has left open must not swallow what follows.
    """
    address = None
    for pair in element.split(";"):
        name, _, value = pair.strip().partition("=")
        if not _VALUE.fullmatch(value):
            return None
        if name.lower() == "for":
            address = value.strip('"')
    return address


class Proxies:
    """The trusted ones; ``entries`` as in `server.trusted_proxies`."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, entries: Iterable[str]) -> None:
        entries = tuple(entries)
        self._unix = UNIX in entries
        self._networks = tuple(ipaddress.ip_network(entry) for entry in entries if entry != UNIX)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def trusts(self, remote: str) -> bool:
        """Whether the word of this peer is believed; ``remote`` is ``addr:port``, ``[addr]:port`` or ``unix``."""
        if remote == UNIX:
            return self._unix
        hop = _hop(remote)
        return hop is not None and self._knows(hop[0])

    def client(self, remote: str, hops: Iterable[str | None]) -> str:
        """The client's address, as `remote` has it, with port 0 where no proxy told the port.

        ``remote`` is the trusted peer, ``hops`` the addresses that the header has, from left to right; an entry that is
        no address, such as ``unknown``, ends the search at the proxy that has written it.
        """
        for text in reversed(list(hops)):
            hop = _hop(text or "")
            if hop is None:
                break
            address, port = hop
            remote = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
            if not self._knows(address):
                break
        return remote

    def _knows(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def _hop(text: str) -> tuple[_Address, int] | None:
    """``192.0.2.1``, ``192.0.2.1:47011``, ``2001:db8::1`` and ``[2001:db8::1]:47011`` (RFC 7239 section 6)."""
    text = text.strip()
    port = "0"
    if text.startswith("["):
        text, _, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else rest or "0"
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if not (port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address, int(port)
