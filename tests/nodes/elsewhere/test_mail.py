"""What is cut out of messages for mail between gateways."""

import pytest

from gateway.nodes.elsewhere.mail import RESULT, SAID, SEPARATOR, MailError, answered, cut, ends, numbers, verdict
from gateway.rpc.jsonrpc import decoded


@pytest.mark.parametrize(
    ("note", "parts"),
    [
        (b'{"jsonrpc":"2.0","method":"rpc.cancel","params":{"id":17}}', (b"cancel", b"17", b"")),
        (
            b'{"jsonrpc":"2.0","method":"rpc.progress","params":{"id":17,"value":"a,}" }}',
            (b"progress", b"17", b'"a,}" '),
        ),
        (b'{"jsonrpc":"2.0","method":"rpc.push","params":{"id":17,"value":[1,2]}}', (b"push", b"17", b"[1,2]")),
        (b'{"jsonrpc":"2.0","method":"rpc.push","params":{"id":17,"end":true}}', (b"finish", b"17", b"")),
        (
            b'{"jsonrpc":"2.0","method":"rpc.credit","params":{"id":17,"credit":1,"bytes":20}}',
            (b"credit", b"17", b"1,20"),
        ),
        (
            b'{"jsonrpc":"2.0","method":"rpc.demand","params":{"id":5-1,"credit":0,"bytes":0}}',
            (b"demand", b"5-1", b"0,0"),
        ),
    ],
)
def test_a_notification_is_cut(note: bytes, parts: tuple[bytes, bytes, bytes]) -> None:
    assert cut(note) == parts


def test_numbers() -> None:
    assert numbers(b"0", 1) == [0]
    assert numbers(b"12,3", 2) == [12, 3]
    for wrong in (b"", b"1,", b"-1", b"1,2", b"x", b"1" * 20):
        with pytest.raises(MailError):
            numbers(wrong, 1)


def test_a_verdict() -> None:
    assert verdict("timeout", "unknown", b"{}") == b"timeout unknown\n{}"


def test_the_first_name_of_calls_and_the_last() -> None:
    assert ends([b"", b"1-1", b"", b"2-1", b""]) == (b"1-1", b"2-1")
    assert ends([b"", b""]) == (b"", b"")


def test_what_a_pack_answers() -> None:
    assert answered(RESULT, [b"1-1", b"7", b"2-1", b"8"]) == [b"1-1", b"2-1"]
    assert answered(SAID, [b"gone", b"1-1", b"", b"error", b"2-1", b"{}"]) == [b"2-1"]


@pytest.mark.parametrize("value", ['"a%b"', '{"a%":1}', "[1,%2]", "%1", "1%"])
@pytest.mark.parametrize("member", ["params", "result", "error", "traceparent"])
def test_no_peer_can_send_what_stands_between_fields(member: str, value: str) -> None:
    """Otherwise it could say something in the name of others."""
    text = f'{{"jsonrpc":"2.0","id":1,"{member}":{value}}}'.encode()
    assert decoded(text.replace(b"%", b"")) is not None
    assert decoded(text.replace(b"%", SEPARATOR)) is None
