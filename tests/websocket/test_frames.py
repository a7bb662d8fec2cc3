"""Frames, byte for byte as RFC 6455 section 5.2 has them, and what fits into a close frame."""

import pytest

from gateway.websocket.frames import BINARY, CLOSE, PING, PONG, RSV1, TEXT, State, close_frame, cut, frame, text_frame


@pytest.mark.parametrize(
    ("made", "bytes_on_the_wire"),
    [
        (frame(TEXT, b"Hello"), b"\x81\x05Hello"),  # section 5.7
        (frame(PING, b"Hello"), b"\x89\x05Hello"),
        (frame(PONG, b""), b"\x8a\x00"),
        (frame(BINARY, bytes(256)), b"\x82\x7e\x01\x00" + bytes(256)),
        (frame(BINARY, bytes(65536)), b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + bytes(65536)),
        # RFC 7692, section 7.2.3.1
        (frame(TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00", RSV1), b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00"),
    ],
)
def test_example_of_the_specification(made: bytes, bytes_on_the_wire: bytes) -> None:
    assert made == bytes_on_the_wire


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (125, b"\x7d"),
        (126, b"\x7e\x00\x7e"),
        (127, b"\x7e\x00\x7f"),
        (65535, b"\x7e\xff\xff"),
        (65536, b"\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_length_takes_the_shortest_form(size: int, length: bytes) -> None:
    payload = b"x" * size
    assert frame(TEXT, payload) == text_frame(payload) == b"\x81" + length + payload


def test_close_frame_without_a_code_has_no_body() -> None:
    assert close_frame(None) == b"\x88\x00"
    assert close_frame(None, "left out") == b"\x88\x00"


def test_close_frame_has_code_and_reason() -> None:
    assert close_frame(1000) == b"\x88\x02\x03\xe8"
    assert close_frame(4002, "grüß") == b"\x88\x08\x0f\xa2" + "grüß".encode()


@pytest.mark.parametrize(
    "reason", ["x" * 124, "é" * 62, "x" * 122 + "é", "€" * 42, "𝄞" * 31, "\N{ZERO WIDTH JOINER}" * 99]
)
def test_long_reason_is_cut_between_characters(reason: str) -> None:
    made = close_frame(1011, reason)
    text = made[4:].decode()  # raises where a character is cut
    assert made[0] & 0x0F == CLOSE
    assert made[1] == len(made) - 2 <= 125
    assert reason.startswith(text)
    assert len(text.encode()) + len(reason[len(text)].encode()) > 123, "cut too early"


def test_reason_that_fits_is_left_alone() -> None:
    assert cut("x" * 123) == "x" * 123
    assert cut("é" * 61) == "é" * 61


def test_reason_with_a_lone_surrogate_is_still_text() -> None:
    assert close_frame(1002, "bad \ud83d")[4:] == b"bad ?"


def test_states_only_ever_grow() -> None:
    assert list(State) == sorted(State)
    assert [state.name for state in State] == ["OPENING", "OPEN", "CLOSING", "FLUSHING", "CLOSED"]
