"""Values as JSON that the gateway can read."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.rpc import jsonrpc

_MARGIN: Final = 50
"""How many levels less than here may be left of the recursion limit where the gateway decodes."""
_SHALLOW: Final = 500

_decode: Final = msgspec.json.Decoder(msgspec.Raw).decode


def encode(value: Any) -> bytes:
    """Encode any value to JSON as msgspec does.

    Nothing that msgspec has encoded is wrong, but a `msgspec.Raw` goes out as it is. One that is no JSON would be
    answered to nobody, or cost the link; so would a value that is nested more deeply than the gateway bears.

    Raises TypeError for a type that JSON does not have, ValueError for text that is not Unicode and for a Raw that is
    no JSON, and RecursionError for a value that is nested too deeply.
    """
    encoded = jsonrpc.encode(value)
    encoded.decode()
    _decode(encoded)
    if encoded.count(b"[") + encoded.count(b"{") > _SHALLOW:
        _decode(b"".join((b"[" * _MARGIN, encoded, b"]" * _MARGIN)))
    return encoded
