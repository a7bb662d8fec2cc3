"""What goes out is JSON that the gateway can read."""

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from gateway.client.sending.encoding import encode


@pytest.mark.parametrize("value", [None, 0, "ä", {"a": (1, None)}, Raw(b" [1]"), ["[" * 2000], [[]] * 2000])
def test_json(value: Any) -> None:
    assert encode(value) == msgspec.json.encode(value)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"1 2", b'1,"method":"x"', b'"\xff"', b'"\\ud83d"', b"[NaN]", b"]", b"1],[2"]
)
def test_a_raw_that_is_no_json(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode(Raw(text))


@pytest.mark.parametrize("levels", [960, 1000, 100_000])
def test_a_value_that_the_gateway_could_not_decode(levels: int) -> None:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    with pytest.raises(RecursionError):
        encode(value)
    with pytest.raises(RecursionError):
        encode(Raw(b'{"a":' * levels + b"1" + b"}" * levels))
