"""What a request for `/ws` must look like to upgrade, and the answer if it does not."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from yarl import URL

from gateway.config import Server, is_loopback
from gateway.handshake.proxies import Proxies, format_address, forwarded_for
from gateway.handshake.rejections import Stage
from gateway.websocket.opening import RequestProtocol

RETRY_AFTER: Final = 5
"""Seconds that a client is asked to wait if the gateway is full, starting or draining."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST: Final = re.compile(
    r"(\[[0-9A-Fa-f:.]+\]|\[[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\]"
    r"|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?"
)
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==")
_UPGRADE_HEADERS: Final[dict[str, str]] = {
    hdrs.CONNECTION: "close, Upgrade",  # RFC 9110 section 7.8
    hdrs.UPGRADE: "websocket",
    hdrs.SEC_WEBSOCKET_VERSION: "13",
}


class RefusedError(Exception):
    """A request may not upgrade. It has the HTTP status of the answer, the text that says why, and further headers.

    ``stage`` is the stage that the rejection counts under.

    This is not a `web.HTTPException`, because aiohttp keeps those, with the frames that raised them, until a garbage
    collection.
    """

    def __init__(
        self, status: int, why: str, headers: Mapping[str, str] | None = None, stage: Stage = "request"
    ) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.headers = headers
        self.stage: Stage = stage


def refused(refusal: RefusedError) -> web.Response:
    """Make the answer to a request that is refused; the HTTP connection is closed after it."""
    answer = web.Response(status=refusal.status, text=f"{refusal.why}\n", headers=refusal.headers)
    answer.force_close()
    return answer


class Gatekeeper:
    """Admits a request for `/ws`, or raises `RefusedError`."""

    def __init__(self, server: Server) -> None:
        self._allowed_hosts = frozenset(server.allowed_hosts)
        self._allowed_origins = frozenset(server.allowed_origins)
        on_loopback = not server.unix_socket and all(map(is_loopback, server.hosts))
        self.loopback_only = on_loopback and not server.allowed_hosts
        self._proxies = Proxies(server.trusted_proxies)
        self._has_proxies = bool(self._proxies)

    def admit(self, request: web.Request) -> None:
        """Check the head of a request. Raises RefusedError."""
        if request.version < HttpVersion11:
            raise RefusedError(400, "WebSocket needs HTTP/1.1 (RFC 6455 section 4.1)")
        host = self.check_host(request)
        self._check_origin(request, host)
        _check_upgrade(request)

    def is_proxy(self, remote: str) -> bool:
        """Return whether a peer is a trusted proxy, behind which there may be any number of clients."""
        return self._has_proxies and self._proxies.trusts(remote)

    def remote_of(self, request: web.Request) -> str:
        """Return where a request comes from. If a trusted proxy has passed it on, that is where the proxy says.

        X-Forwarded-For is preferred to Forwarded: a proxy that adds to the first passes the second on as a stranger
        wrote it.
        """
        remote = remote_of(request)
        if not self.is_proxy(remote):
            return remote
        lines = request.headers.getall(hdrs.X_FORWARDED_FOR, [])
        if lines:
            return self._proxies.client(remote, ",".join(lines).split(","))
        elements = ",".join(request.headers.getall(hdrs.FORWARDED, [])).split(",")
        return self._proxies.client(remote, map(forwarded_for, elements))

    def check_host(self, request: web.Request) -> str:
        """Return the one Host that a request has. Raises RefusedError unless it is served here."""
        hosts = request.headers.getall(hdrs.HOST, [])
        if len(hosts) != 1 or not hosts[0]:
            raise RefusedError(400, "exactly one Host header is needed (RFC 9112 section 3.2)")
        name = host_name(hosts[0])
        if name is None:
            raise RefusedError(400, "Host must be a name or an address, with or without a port (RFC 9110 section 7.2)")
        if self._allowed_hosts:
            allowed = name in self._allowed_hosts
        else:
            allowed = not self.loopback_only or name in _LOOPBACK or is_loopback(name.strip("[]")) or _is_unix(request)
        if not allowed:
            raise RefusedError(421, "this host name is not served here; see server.allowed_hosts")
        return hosts[0]

    def _check_origin(self, request: web.Request, host: str) -> None:
        """Refuse pages of other origins. A request without an Origin is no browser's, and is fine."""
        origins = request.headers.getall(hdrs.ORIGIN, [])
        if not origins or (len(origins) == 1 and origins[0].lower() in self._allowed_origins):
            return
        if len(origins) > 1 or not _is_same_origin(origins[0], host):
            raise RefusedError(403, "this origin is not allowed; see server.allowed_origins")


def remote_of(request: web.Request) -> str:
    """Return where a request comes from: ``addr:port``, ``[addr]:port`` or ``unix``."""
    if isinstance(request.protocol, RequestProtocol):
        return request.protocol.remote
    transport = request.transport
    return format_address(None if transport is None else transport.get_extra_info("peername"))


def _check_upgrade(request: web.Request) -> None:
    """Check what RFC 6455 section 4.2.1 demands of a request. Raises RefusedError."""
    headers = request.headers
    if not _has_token(headers.get(hdrs.UPGRADE, ""), "websocket"):
        raise _upgrade_required("this is a WebSocket endpoint")
    if headers.get(hdrs.SEC_WEBSOCKET_VERSION, "").strip() != "13":
        raise _upgrade_required("only version 13 is spoken here")
    if not _has_token(headers.get(hdrs.CONNECTION, ""), "upgrade"):
        raise RefusedError(400, 'the Connection header must have "Upgrade"')
    if hdrs.TRANSFER_ENCODING in headers or headers.get(hdrs.CONTENT_LENGTH, "0").strip() != "0":
        raise RefusedError(400, "an upgrade has no body")
    keys = headers.getall(hdrs.SEC_WEBSOCKET_KEY, [])
    if len(keys) != 1 or not _KEY.fullmatch(keys[0].strip()):
        raise RefusedError(400, "Sec-WebSocket-Key must be 16 bytes in base64, once")


def _upgrade_required(why: str) -> RefusedError:
    return RefusedError(426, why, _UPGRADE_HEADERS)


@lru_cache(64)  # nearly all requests have the same few
def _has_token(value: str, token: str) -> bool:
    """Return whether the value of a header that is a list has this token, in any case."""
    return token in (part.strip() for part in value.lower().split(","))


@lru_cache(64)  # nearly all requests have the same few
def host_name(host: str) -> str | None:
    """Return the name in a Host header, in lower case and without its port. An IPv6 address stays in brackets.

    Returns None if the header is not ``uri-host [":" port]`` (RFC 9110 section 7.2, RFC 3986 section 3.2.2), such as
    ``localhost:1@evil.example``, in which other parsers find another host.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return None
    name = match[1].lower()
    if name.startswith("[") and not name.startswith("[v"):  # v: an address of the future
        try:
            ipaddress.IPv6Address(name[1:-1])
        except ValueError:
            return None
    return name


def _is_same_origin(origin: str, host: str) -> bool:
    """Return whether an origin has the host and the port of the Host header (RFC 6454 section 5).

    In both a port that is left out is the default of the origin's scheme, because a proxy may have taken TLS off.
    """
    try:
        theirs = URL(origin)
        mine = URL(f"{theirs.scheme}://{host}")
    except ValueError:
        return False
    return bool(theirs.host) and (theirs.host, theirs.port) == (mine.host, mine.port)


def _is_unix(request: web.Request) -> bool:
    """Return whether a request comes by a Unix socket, which no host name can lead a page to."""
    sock = None if request.transport is None else request.transport.get_extra_info("socket")
    return sock is not None and sock.family == socket.AF_UNIX
