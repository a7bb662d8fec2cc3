"""Why a link ended or was refused, in words, and whether to reconnect: docs/protocol.md, "Close codes" and "HTTP"."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

import aiohttp

MAX_PAUSE: Final = 300.0
"""The longest pause, in seconds, that a gateway can ask for; a longer one is cut to this."""

LOST: Final = 1006
"""The code that stands for an end without a close frame (RFC 6455 section 7.1.5)."""

CLIENT_CLOSE: Final = 1000
SHUTDOWN: Final = 1001
UNAUTHENTICATED: Final = 4500

REFUSED_CREDENTIAL: Final = frozenset({401, UNAUTHENTICATED, 4503})
"""The codes of a credential that is wrong, missing or revoked: another credential may be taken."""

_FINAL_CODES: Final = frozenset({1002, 1003, 1007, 1008, 1010})
"""1009 is not among them, because it is about one message."""
_TEMPORARY_STATUSES: Final = frozenset({408, 425, 429})
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"})
_NO_ISSUER: Final = frozenset({18, 19, 20, 21})
"""OpenSSL's verify codes for a certificate that no trusted authority has signed."""

_WORDS: Final = {
    401: "the credential was refused",
    404: "there is no gateway at this path",
    407: "the proxy wants a credential",
    429: "too many connections or attempts",
    502: "the gateway cannot be reached from there",
    503: "full or draining",
    504: "the gateway does not answer from there",
}


class End(NamedTuple):
    """The end of a link, or of an attempt at one.

    ``code`` is a close code, 1006 if there was no close frame, or below 1000 the HTTP status of a refusal.
    ``retry_after`` is the pause in seconds that the gateway has asked for, or None. ``mistaken``: what answers there is
    no gateway, or not this one, so that the address, or the trust in certificates, is wrong.
    """

    code: int
    reason: str = ""
    retry_after: float | None = None
    mistaken: bool = False

    @property
    def final(self) -> bool:
        """Whether another attempt would end in the same way until something has changed."""
        if self.code < 1000:
            return self.mistaken or (300 <= self.code < 500 and self.code not in _TEMPORARY_STATUSES)
        return self.mistaken or self.code in _FINAL_CODES or 4500 <= self.code <= 4999

    def __str__(self) -> str:
        if self.code == LOST and self.reason:
            return self.reason  # a code that is never sent says nothing
        what = f"HTTP {self.code}" if self.code < 1000 else str(self.code)
        return f"{what} {self.reason}".rstrip()


CLOSED: Final = End(CLIENT_CLOSE, "closed by this client")


def refusal(status: int, said: str, headers: Mapping[str, str]) -> End:
    """Return the end of an attempt that got this HTTP answer; ``said`` is what it says of itself, or empty."""
    if status < 300:
        words = "a web server answers there, and no gateway"
    elif 300 <= status < 400:
        words = f"the gateway is said to be elsewhere: {headers.get('Location', '')}"
    else:
        words = _WORDS.get(status, "the connection was refused")
    if said and said.isprintable() and not said.startswith(str(status)):
        words = f"{words}: {said}"
    return End(status, words, retry_after(headers), mistaken=status < 300)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds from 0 to `MAX_PAUSE` that `Retry-After` asks for, or None.

    It is a number of seconds, or a date (RFC 9110 section 10.2.3). A date counts from the answer's own `Date`, so that
    the two clocks do not matter; without one from ``now``, in seconds since 1970.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        # A longer number is no pause, and converting one of very many digits would be slow.
        return min(float(value), MAX_PAUSE) if len(value) < 10 else None
    at = _timestamp(value)
    if at is None:
        return None
    begin = _timestamp(headers.get("Date", ""))
    if begin is None:
        begin = time.time() if now is None else now
    return min(max(0.0, at - begin), MAX_PAUSE)


def _timestamp(date: str) -> float | None:
    if len(date) > 64:
        return None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def unanswered(error: Exception, *, secure: bool) -> End:
    """Return the end of an attempt that got no answer from a gateway, in words; ``secure``: it was over TLS."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        words = _WORDS.get(error.status, "the proxy refused the tunnel")
        return End(error.status, f"{words} (the proxy's answer)", retry_after(error.headers or {}))
    reason, mistaken = _cause(error, secure=secure)
    return End(LOST, reason, mistaken=mistaken)


def _cause(error: Exception, *, secure: bool) -> tuple[str, bool]:
    """Return what went wrong, and whether the address, or what is trusted, must be wrong."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            cause = _untrusted(error.certificate_error), True
        case aiohttp.ClientConnectorSSLError():
            cause = _without_tls(error.os_error)
        case aiohttp.ClientConnectorDNSError():
            # The resolver's other errors pass: while the network is not there yet, for example.
            unknown = error.os_error.errno == socket.EAI_NONAME
            cause = f"the name {error.host} does not resolve: {_text(error.os_error)}", unknown
        case aiohttp.ClientProxyConnectionError():
            cause = f"the proxy cannot be reached: {_text(error.os_error)}", False
        case aiohttp.ClientConnectorError():
            cause = f"cannot connect to {error.host}:{error.port}: {_text(error.os_error)}", False
        case aiohttp.WSServerHandshakeError():  # a 101 with wrong headers
            cause = f"what answers there speaks no WebSocket: {error.message}", True
        case aiohttp.ClientResponseError():
            # The first bytes of a TLS alert, which is how a TLS server may answer to plain text.
            tls = "\\x15\\x03" in error.message
            what = "TLS: the URL has to begin with wss://" if tls else "no HTTP: perhaps the port is another service's"
            cause = f"what answers there speaks {what}", True
        case aiohttp.ServerDisconnectedError():
            hint = "" if secure else "; if it speaks TLS, the URL has to begin with wss://"
            cause = f"the connection was closed without an answer{hint}", False
        case _:
            cause = _text(error), False
    return cause


def _untrusted(error: Exception) -> str:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"the gateway's certificate is not trusted: {error}"
    hint = "; a private authority has to be given (cafile)" if error.verify_code in _NO_ISSUER else ""
    return f"the gateway's certificate is not trusted: {error.verify_message.rstrip('.')}{hint}"


def _without_tls(error: OSError) -> tuple[str, bool]:
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "the connection was closed during the TLS handshake", False
    reason = str(getattr(error, "reason", None) or "")
    if reason in _NO_TLS:
        return "what answers there speaks no TLS; perhaps the URL has to begin with ws://", True
    return f"TLS failed: {reason.lower().replace('_', ' ') or _text(error)}", True


def _text(error: BaseException) -> str:
    """Return one line: the system's words for its errors, not those of the library, which repeat the address."""
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and (error.errno or 0) > 0:
        return os.strerror(error.errno or 0)
    if isinstance(error, ConnectionError) and not str(error):
        return os.strerror(errno.ECONNRESET)  # asyncio says no more when a TLS handshake is cut
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text if text.isprintable() else type(error).__name__
