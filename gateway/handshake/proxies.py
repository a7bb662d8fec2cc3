"""Finds a client's address behind reverse proxies, in X-Forwarded-For or Forwarded. Pure.

Each proxy adds the address of its own peer at the right. So the header is read from right to left, up to the first
address that is not a trusted proxy's. Everything left of that was written by a stranger, and is ignored.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

UNIX: Final = "unix"
"""The ``remote`` of every peer on a Unix socket, and the entry of `server.trusted_proxies` that trusts them."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def format_address(address: object) -> str:
    """Format a socket address for the log, as ``addr:port`` or ``[addr]:port``. Without a port it is ``unix``."""
    if not isinstance(address, tuple) or len(address) < 2:
        return UNIX
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_LONGEST: Final = 45
"""Characters of the longest way to write an address: IPv6 that ends in IPv4."""

_PORT: Final = re.compile(r"[0-9]{1,5}")
_VALUE: Final = re.compile(r'"[^"]*"|[^\s"]*')


def forwarded_for(element: str) -> str | None:
    """Return the address in one element of Forwarded (RFC 7239 section 4), or None if it has none or is malformed.

    The caller splits the header at every comma, even within quotes: a quote that a stranger has left open must not
    swallow the elements after it.
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
    """The proxies that are trusted. ``entries`` are those of `server.trusted_proxies`."""

    __slots__ = ("_networks", "_unix")

    def __init__(self, entries: Iterable[str]) -> None:
        entries = tuple(entries)
        self._unix = UNIX in entries
        self._networks = tuple(ipaddress.ip_network(entry) for entry in entries if entry != UNIX)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def trusts(self, remote: str) -> bool:
        """Whether this peer is a trusted proxy. ``remote`` is ``addr:port``, ``[addr]:port`` or ``unix``."""
        if remote == UNIX:
            return self._unix
        address, zone, rest = remote.partition("%")
        # The kernel names the zone of a link-local peer, which is about this machine and in no network's name.
        hop = _hop(address + rest[rest.find("]") :] if zone else remote)
        return hop is not None and self._is_trusted(hop[0])

    def client(self, remote: str, hops: Iterable[str | None]) -> str:
        """Return the client's address, in the form of ``remote``, with port 0 if the proxy did not write the port.

        ``remote`` is the trusted peer, and ``hops`` are the addresses in the header, from left to right. An entry that
        is not an address, such as ``unknown``, ends the search at the proxy that has written it.
        """
        for text in reversed(list(hops)):
            hop = _hop(text or "")
            if hop is None:
                break
            address, port = hop
            remote = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
            if not self._is_trusted(address):
                break
        return remote

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def _hop(text: str) -> tuple[_Address, int] | None:
    """Parse an address with or without a port (RFC 7239 section 6). Returns None if it is neither.

    It may be ``192.0.2.1``, ``192.0.2.1:47011``, ``2001:db8::1`` or ``[2001:db8::1]:47011``. Without a port it is 0. A
    zone, which may have any length and any letters, means nothing to another machine: an address with one is none.
    """
    text = text.strip()
    port = "0"
    if text.startswith("["):
        text, _, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else rest or "0"
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
    if len(text) > _LONGEST or "%" in text or not _PORT.fullmatch(port) or int(port) > 65535:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address, int(port)
