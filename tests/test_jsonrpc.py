"""The codec: what is a message, what is refused and how, and that payloads pass through it byte for byte."""

import json
from typing import Any

import pytest
from msgspec import Raw

from gateway import errors, jsonrpc
from gateway.jsonrpc import Invalid, Request, Response, decode


def raw(text: bytes) -> Raw:
    return Raw(text)


def invalid(data: bytes) -> Invalid:
    message = decode(data)
    assert isinstance(message, Invalid), message
    return message


# In


@pytest.mark.parametrize("identity", [b'"a"', b"1", b"-7", b"0", b"null", b'""', b"123456789012345678901234567890"])
def test_ids_are_strings_integers_and_null(identity: bytes) -> None:
    message = decode(b'{"jsonrpc":"2.0","id":%b,"method":"m"}' % identity)
    assert isinstance(message, Request)
    assert (bytes(message.id), message.method, bytes(message.params)) == (identity, "m", b"")


@pytest.mark.parametrize("identity", [b"1.5", b"1e3", b"true", b"[1]", b"{}"])
def test_other_ids_are_refused(identity: bytes) -> None:
    message = invalid(b'{"jsonrpc":"2.0","id":%b,"method":"m"}' % identity)
    assert (message.error, bytes(message.id)) == (errors.INVALID_REQUEST, b"null")


def test_without_an_id_it_is_a_notification() -> None:
    message = decode(b'{"jsonrpc":"2.0","method":"m","params":[]}')
    assert isinstance(message, Request)
    assert not message.id


@pytest.mark.parametrize("params", [b'{ "a" : 1.50, "b":"\\u00e9\\/" }', b"[1,  2]", b"{}", b"[]"])
def test_params_are_kept_byte_for_byte(params: bytes) -> None:
    message = decode(b'{"jsonrpc":"2.0","id":1,"method":"m","params":%b}' % params)
    assert isinstance(message, Request)
    assert bytes(message.params) == params


@pytest.mark.parametrize("params", [b"1", b'"x"', b"null", b"true"])
def test_params_are_an_array_or_an_object(params: bytes) -> None:
    message = invalid(b'{"jsonrpc":"2.0","id":7,"method":"m","params":%b}' % params)
    assert (message.error, bytes(message.id)) == (errors.INVALID_REQUEST, b"7")


@pytest.mark.parametrize(
    ("members", "result", "error"),
    [
        (b'"result": {"a":  1}', b'{"a":  1}', b""),
        (b'"result": null', b"null", b""),
        (b'"error": {"code":1, "message":"x"}', b"", b'{"code":1, "message":"x"}'),
    ],
)
def test_responses(members: bytes, result: bytes, error: bytes) -> None:
    message = decode(b'{"jsonrpc":"2.0","id":"c",%b}' % members)
    assert isinstance(message, Response)
    assert (bytes(message.id), bytes(message.result), bytes(message.error)) == (b'"c"', result, error)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b"\x00",
        b"[1,",
        b'{"jsonrpc":"2.0",}',
        b'{"a":1}{"b":2}',
        b'{"jsonrpc":"2.0","id":"\\ud83d","method":"m"}',
    ],
)
def test_no_json(data: bytes) -> None:
    assert invalid(data).error is errors.PARSE_ERROR


@pytest.mark.parametrize(
    "data",
    [
        b"1",
        b"null",
        b'"text"',
        b"{}",
        b"[]",
        b" [ ] ",
        b'{"id":1,"method":"m"}',
        b'{"jsonrpc":"1.0","id":1,"method":"m"}',
        b'{"jsonrpc":2.0,"id":1,"method":"m"}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":1,"method":5}',
        b'{"jsonrpc":"2.0","result":1}',
        b'{"jsonrpc":"2.0","id":1,"result":1,"error":{}}',
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    ],
    ids=lambda data: repr(data[:45]),
)
def test_json_that_is_no_request(data: bytes) -> None:
    assert invalid(data).error is errors.INVALID_REQUEST


def test_a_batch_is_a_list_in_its_order() -> None:
    batch = decode(b' [{"jsonrpc":"2.0","id":1,"method":"a"}, 5, {"jsonrpc":"2.0","method":"b"}]')
    assert isinstance(batch, list)
    assert [type(message) for message in batch] == [Request, Invalid, Request]


# Out


def test_an_error_reply_has_all_that_the_contract_promises() -> None:
    reply = json.loads(jsonrpc.error_reply(raw(b'"a b"'), errors.OVERLOADED, retryAfterMs=100))
    assert reply == {
        "jsonrpc": "2.0",
        "id": "a b",
        "error": {
            "code": -32009,
            "message": "Too many calls in flight",
            "data": {"code": "overloaded", "temporary": True, "retryAfterMs": 100},
        },
    }


def test_a_detail_replaces_the_sentence_and_needs_no_id() -> None:
    reply = json.loads(jsonrpc.error_reply(jsonrpc.NO_ID, errors.PARSE_ERROR, 'no "}"\n'))
    assert (reply["id"], reply["error"]["message"]) == (None, 'no "}"\n')


@pytest.mark.parametrize("params", [{"a": [1, None]}, [1, "ü"], {}])
def test_a_notification_has_no_id(params: Any) -> None:
    assert json.loads(jsonrpc.notification("a.b", params)) == {"jsonrpc": "2.0", "method": "a.b", "params": params}


def test_a_batch_of_replies_is_one_array() -> None:
    replies = [jsonrpc.error_reply(raw(b"%d" % number), errors.TIMEOUT) for number in range(3)]
    assert [reply["id"] for reply in json.loads(jsonrpc.batch(replies))] == [0, 1, 2]
