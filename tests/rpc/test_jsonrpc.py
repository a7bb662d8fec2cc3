"""JSON-RPC 2.0 on the wire: the specification's examples, and what is malformed, each with its exact answer."""

import re
from types import NoneType
from typing import NamedTuple

import pytest
from pytest_aiohttp import AiohttpClient

from gateway import errors
from gateway.rpc import jsonrpc, method
from gateway.rpc.jsonrpc import Invalid, Message
from tests.support import sample_methods
from tests.support.peers import Opcode, RawPeer, Target
from tests.support.rpc import Caller, accepted, notification, refused, request, serve

MAX_BATCH = 5
WORDS = "…"
"""In an expected answer: the decoder's own words, which another release of it may change."""


@pytest.fixture
async def caller(aiohttp_client: AiohttpClient) -> Caller:
    sample_methods.heard.clear()
    return await serve(aiohttp_client, [sample_methods], limits={"max_batch": MAX_BATCH})


def same(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, byte for byte but for the decoder's words."""
    pattern = re.escape(expected).replace(WORDS, r'(?:[^"\\]|\\.){1,200}')
    return re.fullmatch(pattern, answer) is not None


def invalid(detail: str = WORDS, id: str = "null") -> str:
    return refused(-32600, detail, id)


GARBLED = refused(-32700, WORDS, "null")
BAD_ID = invalid('"id" must be a string, an integer or null, of at most 1024 bytes')
NO_METHOD = '"method" is missing'
DEEP = invalid("nested too deeply")
NO_BATCH = invalid("an empty batch")
TOO_LONG = invalid(f"a batch of more than {MAX_BATCH}")


def batch(*messages: str) -> str:
    return f"[{','.join(messages)}]"


# Section 7 of the specification. What is asked is written as it is there; the errors have the gateway's own words.


class Example(NamedTuple):
    """One example: what goes in, what comes out, and the parameters of the notifications in it."""

    name: str
    asked: str
    answer: str | None
    heard: tuple[bytes, ...] = ()


EXAMPLES = [
    Example(
        "positional parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}',
        '{"jsonrpc":"2.0","id":1,"result":19}',
    ),
    Example(
        "positional parameters, the other way round",
        '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}',
        '{"jsonrpc":"2.0","id":2,"result":-19}',
    ),
    Example(
        "named parameters",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        '{"jsonrpc":"2.0","id":3,"result":19}',
    ),
    Example(
        "named parameters, the other way round",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        '{"jsonrpc":"2.0","id":4,"result":19}',
    ),
    Example(
        "a notification",
        '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}',
        None,
        (b"[1,2,3,4,5]",),
    ),
    Example("a notification to a method that is not there", '{"jsonrpc": "2.0", "method": "foobar"}', None),
    Example(
        "a method that is not there",
        '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}',
        refused(-32601, "foobar", '"1"', outcome="not_delivered"),
    ),
    Example("invalid JSON", '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', GARBLED),
    Example("an invalid request", '{"jsonrpc": "2.0", "method": 1, "params": "bar"}', invalid("…`$.method`")),
    Example(
        "a batch of invalid JSON",
        '[\n  {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},\n  {"jsonrpc": "2.0", "method"\n]',
        GARBLED,
    ),
    Example("an empty batch", "[]", NO_BATCH),
    Example("an invalid batch, not empty", "[1]", batch(invalid())),
    Example("an invalid batch", "[1,2,3]", batch(invalid(), invalid(), invalid())),
    Example(
        "a batch",
        """[
        {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
        {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
    ]""",
        batch(
            accepted("7", '"1"'),
            accepted("19", '"2"'),
            invalid("…`jsonrpc`"),
            refused(-32601, "foo.get", '"5"', outcome="not_delivered"),
            accepted('["hello",5]', '"9"'),
        ),
        (b"[7]",),
    ),
    Example(
        "a batch of notifications",
        """[
        {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}
    ]""",
        None,
        (b"[1,2,4]", b"[7]"),
    ),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
async def test_example_of_the_specification(aiohttp_client: AiohttpClient, example: Example) -> None:
    sample_methods.heard.clear()
    caller = await serve(aiohttp_client, [sample_methods])
    answers = await caller.answers(example.asked)
    assert len(answers) == (example.answer is not None)
    assert not answers or same(answers[0], example.answer or ""), answers
    assert tuple(sample_methods.heard) == example.heard


# What is malformed. `%` stands for `"jsonrpc":"2.0"`, to keep the lines short.


def nested(depth: int, *, close: bool = True) -> str:
    return "[" * depth + "]" * depth * close


MALFORMED = [
    # Not JSON
    ("", GARBLED),
    (" \r\n\t", GARBLED),
    ("{", GARBLED),
    ("}", GARBLED),
    ("[", GARBLED),
    ("[1", GARBLED),
    ("[%", GARBLED),
    ("nul", GARBLED),
    ("True", GARBLED),
    ("'a'", GARBLED),
    ('"a', GARBLED),
    ("\v{}", GARBLED),
    ("\u00a0{}", GARBLED),
    ("// a comment\n{}", GARBLED),
    ("\ufeff{%,'method':'get_data','id':1}".replace("'", '"'), GARBLED),
    ("\ufeff[]", GARBLED),
    ('{%,"method":"get_data","id":1', GARBLED),
    ('{%,"method":"get_data","id":1,}', GARBLED),
    ('{%,"method":"get_data","id":1]', GARBLED),
    ('{%,"method":"get_data","id":1} x', GARBLED),
    ('{%,"method":"get_data","id":1}]', GARBLED),
    ('{%,"method":"get_data","id":1}{%,"method":"get_data","id":2}', GARBLED),
    ('{%,"method":"get_data","id":1}\n{%,"method":"get_data","id":2}', GARBLED),
    ('{%,"method":"get_data","id":1}\x00', GARBLED),
    ('{%,"method":"get_data" "id":1}', GARBLED),
    ('{%,"method":"get_data","id"}', GARBLED),
    ('{%,"method":"get_data",id:1}', GARBLED),
    ("{%,'method':'get_data','id':1}", GARBLED),
    ('[{%,"method":"get_data","id":1},]', GARBLED),
    ('[{%,"method":"get_data","id":1}', GARBLED),
    ('[{%,"method":"get_data","id":1},{%,"method":"get_data","id":2]', GARBLED),
    ('{%,"method":"gateway.ping","params":[NaN],"id":1}', GARBLED),
    ('{%,"method":"gateway.ping","params":[Infinity],"id":1}', GARBLED),
    ('{%,"method":"gateway.ping","params":{"a":-Infinity},"id":1}', GARBLED),
    ('{%,"method":"gateway.ping","id":NaN}', GARBLED),
    ('{%,"method":"gateway.ping","id":1,"other":Infinity}', GARBLED),
    ('{%,"method":"gateway.ping","id":01}', GARBLED),
    ('{%,"method":"gateway.ping","id":-}', GARBLED),
    ('{%,"method":"gateway.ping","id":-01}', GARBLED),
    ('{%,"method":"gateway.ping","id":+1}', GARBLED),
    ('{%,"method":"gateway.ping","id":1.}', GARBLED),
    ('{%,"method":"gateway.ping","id":.5}', GARBLED),
    ('{%,"method":"gateway.ping","id":0x10}', GARBLED),
    ('{%,"method":"gateway.ping","params":[00],"id":1}', GARBLED),
    ('{%,"method":"gateway.ping","params":[1e],"id":1}', GARBLED),
    ('{%,"method":"gateway.ping","params":[1,],"id":1}', GARBLED),
    ('{%,"method":"gateway.ping","params":[,],"id":1}', GARBLED),
    ('{%,"method":"gateway.ping","params":["a\nb"],"id":1}', GARBLED),
    ('{%,"method":"gateway.ping","params":["a\x00b"],"id":1}', GARBLED),
    ('{%,"method":"gateway.ping","params":{"a\x1fb":1},"id":1}', GARBLED),
    ('{%,"method":"gateway\t.ping","id":1}', GARBLED),
    ('{%,"method":"gateway.ping","id":"a\x01"}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\x41"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\u00g0"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\u00"],"id":1}', GARBLED),
    # Half of a surrogate pair, anywhere
    (r'{%,"method":"gateway.ping","params":["\ud83d"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\ude00"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\ud83d and more text"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\ud83d\u0041"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\ud83d\ud83d"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\ud83d\n\ude00"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\ud83d","\ude00"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":["\ude00\ud83d"],"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":{"\ud83d":1},"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","params":{"a":{"b":["\uDE00"]}},"id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","id":"\ud83d"}', GARBLED),
    (r'{%,"method":"\ude00","id":1}', GARBLED),
    (r'{%,"method":"gateway.ping","id":1,"other":"\ud83d"}', GARBLED),
    (r'{%,"method":"gateway.ping","id":1,"\ude00":0}', GARBLED),
    (r'{"jsonrpc":"\ud83d","method":"gateway.ping","id":1}', GARBLED),
    (r'{%,"result":"\ud83d","id":1}', GARBLED),
    (r'{%,"error":{"code":1,"message":"\ude00"},"id":1}', GARBLED),
    (r'[{%,"method":"gateway.ping","id":1},{%,"method":"gateway.ping","params":["\ud83d"],"id":2}]', GARBLED),
    # JSON, but no message
    ("null", invalid()),
    ("true", invalid()),
    ("1", invalid()),
    ("-0.5e+3", invalid()),
    ('"gateway.ping"', invalid()),
    ("{}", invalid("…`jsonrpc`")),
    ('{"method":"gateway.ping","id":1}', invalid("…`jsonrpc`", "1")),
    ('{"JSONRPC":"2.0","method":"gateway.ping","id":1}', invalid("…`jsonrpc`", "1")),
    ('{"jsonrpc":"1.0","method":"gateway.ping","id":1}', invalid("…`$.jsonrpc`", "1")),
    ('{"jsonrpc":"2.0 ","method":"gateway.ping","id":"a"}', invalid("…`$.jsonrpc`", '"a"')),
    ('{"jsonrpc":"2","method":"gateway.ping","id":1}', invalid("…`$.jsonrpc`", "1")),
    ('{"jsonrpc":2.0,"method":"gateway.ping","id":1}', invalid("…`$.jsonrpc`", "1")),
    ('{"jsonrpc":2,"method":"gateway.ping","id":1}', invalid("…`$.jsonrpc`", "1")),
    ('{"jsonrpc":null,"method":"gateway.ping","id":1}', invalid("…`$.jsonrpc`", "1")),
    ('{"jsonrpc":["2.0"],"method":"gateway.ping","id":1}', invalid("…`$.jsonrpc`", "1")),
    ('{"jsonrpc":"1.0","method":"gateway.ping"}', invalid("…`$.jsonrpc`")),
    ('{"jsonrpc":"1.0","method":"gateway.ping","id":1.5}', invalid("…`$.jsonrpc`")),
    ('{"jsonrpc":"1.0","method":"gateway.ping","id":{}}', invalid("…`$.jsonrpc`")),
    ('{"jsonrpc":"1.0","params":[1e999],"id":1}', invalid("…`$.jsonrpc`", "1")),
    ('{"jsonrpc":"1.0","params":[%s],"id":1}' % ("9" * 400), invalid("…`$.jsonrpc`", "1")),
    ('{"jsonrpc":"1.0","params":[%s],"id":1}' % ("9" * 5000), invalid("…`$.jsonrpc`", "1")),
    ('{%,"jsonrpc":"1.0","method":"gateway.ping","id":1}', invalid("…`$.jsonrpc`", "1")),
    ('{"jsonrpc":"1.0",%,"method":"gateway.ping","id":1}', invalid("…`$.jsonrpc`", "1")),
    ('{%,"method":1,"id":1}', invalid("…`$.method`", "1")),
    ('{%,"method":null,"id":1}', invalid("…`$.method`", "1")),
    ('{%,"method":true,"id":1}', invalid("…`$.method`", "1")),
    ('{%,"method":["gateway.ping"],"id":1}', invalid("…`$.method`", "1")),
    ('{%,"method":{},"id":1}', invalid("…`$.method`", "1")),
    ('{%,"method":"gateway.ping","method":1,"id":1}', invalid("…`$.method`", "1")),
    ('{%,"method":"","id":1}', refused(-32601, "", outcome="not_delivered")),
    ('{%,"Method":"gateway.ping","id":1}', invalid(NO_METHOD, "1")),
    ("{%}", invalid(NO_METHOD)),
    ('{%,"id":1}', invalid(NO_METHOD, "1")),
    ('{%,"id":"a","params":[]}', invalid(NO_METHOD, '"a"')),
    ('{%,"method":"gateway.ping","id":1.5}', BAD_ID),
    ('{%,"method":"gateway.ping","id":"' + "x" * 1023 + '"}', BAD_ID),
    ('{%,"method":"gateway.ping","id":' + "1" * 1025 + "}", BAD_ID),
    ('{%,"method":"nix","id":-' + "1" * 1024 + "}", BAD_ID),
    ('{%,"id":"' + "x" * 1023 + '"}', invalid(NO_METHOD)),
    ('{"method":"gateway.ping","id":"' + "x" * 1023 + '"}', invalid("…`jsonrpc`")),
    ('{%,"method":"gateway.ping","id":1.0}', BAD_ID),
    ('{%,"method":"gateway.ping","id":-0.0}', BAD_ID),
    ('{%,"method":"gateway.ping","id":1e3}', BAD_ID),
    ('{%,"method":"gateway.ping","id":1E-2}', BAD_ID),
    ('{%,"method":"gateway.ping","id":true}', BAD_ID),
    ('{%,"method":"gateway.ping","id":false}', BAD_ID),
    ('{%,"method":"gateway.ping","id":{}}', BAD_ID),
    ('{%,"method":"gateway.ping","id":{"id":1}}', BAD_ID),
    ('{%,"method":"gateway.ping","id":[]}', BAD_ID),
    ('{%,"method":"gateway.ping","id":[1]}', BAD_ID),
    ('{%,"method":"foobar","id":[1]}', BAD_ID),
    ('{%,"method":"gateway.ping","id":1,"params":null}', invalid('"params" must be an array or an object', "1")),
    ('{%,"method":"gateway.ping","id":1,"params":1}', invalid('"params" must be an array or an object', "1")),
    ('{%,"method":"gateway.ping","id":1,"params":"[]"}', invalid('"params" must be an array or an object', "1")),
    ('{%,"method":"gateway.ping","id":1,"params":false}', invalid('"params" must be an array or an object', "1")),
    ('{%,"method":"foobar","id":null,"params":-1}', invalid('"params" must be an array or an object')),
    ('{%,"method":"update","params":7}', invalid('"params" must be an array or an object')),
    # Nested
    (nested(1000), DEEP),
    (nested(1000, close=False), DEEP),
    (nested(100_000), DEEP),
    (nested(100_000, close=False), DEEP),
    ('{"a":' * 100_000, DEEP),
    ('{"a":' * 1000 + "1" + "}" * 1000, DEEP),
    ('{%,"method":"gateway.ping","id":1,"params":' + nested(1000) + "}", DEEP),
    ('{%,"method":"gateway.ping","id":1,"params":' + nested(100_000) + "}", DEEP),
    ('{%,"method":"gateway.ping","id":1,"other":' + nested(1000) + "}", DEEP),
    ('{%,"method":"gateway.ping","id":' + nested(1000) + "}", DEEP),
    ('{%,"id":1,"result":' + nested(1000) + "}", DEEP),
    # Answers to nothing that are not even answers
    ('{%,"result":1}', invalid(NO_METHOD)),
    ('{%,"error":{"code":1,"message":"a"}}', invalid(NO_METHOD)),
    ('{%,"id":1,"result":1,"error":{"code":1,"message":"a"}}', invalid(NO_METHOD)),
    ('{%,"id":1,"result":null,"error":null}', invalid(NO_METHOD)),
    ('{%,"id":1.5,"result":1}', invalid(NO_METHOD)),
    ('{%,"id":true,"result":1}', invalid(NO_METHOD)),
    ('{%,"id":{},"error":{"code":1,"message":"a"}}', invalid(NO_METHOD)),
    ('{"id":1,"result":1}', invalid("…`jsonrpc`")),
    ('{"id":1,"params":[]}', invalid("…`jsonrpc`", "1")),
    # Batches
    ("[ ]", NO_BATCH),
    (" \n[]\t", NO_BATCH),
    ("[[]]", batch(invalid())),
    ("[{}]", batch(invalid("…`jsonrpc`"))),
    ("[null]", batch(invalid())),
    ('["a",{}]', batch(invalid(), invalid("…`jsonrpc`"))),
    ('[[{%,"method":"get_data","id":1}]]', batch(invalid())),
    (
        '[{%,"method":"get_data","id":1},[],{%,"method":"get_data","id":{}}]',
        batch(accepted('["hello",5]'), invalid(), BAD_ID),
    ),
    ('[{%,"method":"update"},1]', batch(invalid())),
    (
        '[{%,"method":"update","params":1},{%,"method":"update"}]',
        batch(invalid('"params" must be an array or an object')),
    ),
    (batch(*"1" * (MAX_BATCH + 1)), TOO_LONG),
    (batch(*['{%,"method":"get_data","id":1}'] * (MAX_BATCH + 1)), TOO_LONG),
    ("[" + "1," * 100_000 + "1]", TOO_LONG),
    ("[" + "1," * MAX_BATCH + "[]" * 2 + "]", GARBLED),
    ("[" + "1," * MAX_BATCH + r'"\ud83d"]', GARBLED),
    ("[" + "1," * MAX_BATCH + nested(1000) + "]", DEEP),
    # Proper requests that nobody serves
    ('{%,"method":"rpc.nothing","id":1}', refused(-32601, "rpc.nothing")),
    ('{%,"method":"rpc.","id":1}', refused(-32601, "rpc.")),
    ('{%,"method":"GET_DATA","id":1}', refused(-32601, "GET_DATA", outcome="not_delivered")),
    ('{%,"method":" get_data","id":1}', refused(-32601, " get_data", outcome="not_delivered")),
    ('{%,"method":"get_data ","id":null}', refused(-32601, "get_data ", "null", outcome="not_delivered")),
    (r'{%,"method":"\u0000","id":1}', refused(-32601, "\0", outcome="not_delivered")),
    ('{%,"method":"' + "x" * 1000 + '","id":1}', refused(-32601, "x" * 200, outcome="not_delivered")),
    ('{%,"method":"' + "é" * 1000 + '","id":1}', refused(-32601, "é" * 200, outcome="not_delivered")),
    ('{%,"method":"😀","id":1}', refused(-32601, "😀", outcome="not_delivered")),
]


def full(text: str) -> str:
    return text.replace("%", '"jsonrpc":"2.0"')


@pytest.mark.parametrize(("text", "expected"), MALFORMED, ids=[text[:60] for text, _ in MALFORMED])
async def test_what_is_malformed_gets_its_answer(caller: Caller, text: str, expected: str) -> None:
    answers = await caller.answers(full(text))
    assert len(answers) == 1
    assert same(answers[0], expected), (answers[0], expected)
    assert sample_methods.heard in ([], [b""])


def test_the_table_is_long_enough() -> None:
    assert len({text for text, _ in MALFORMED}) == len(MALFORMED) >= 60


# What is unusual, and proper

UNUSUAL = [
    # Ids come back byte for byte.
    ('{%,"method":"gateway.ping","id":"a"}', accepted("null", '"a"')),
    ('{%,"method":"gateway.ping","id":""}', accepted("null", '""')),
    (r'{%,"method":"gateway.ping","id":"\u0041\/\"\\"}', accepted("null", r'"\u0041\/\"\\"')),
    (r'{%,"method":"gateway.ping","id":"\ud83d\ude00"}', accepted("null", r'"\ud83d\ude00"')),
    ('{%,"method":"gateway.ping","id":"😀\u2028"}', accepted("null", '"😀\u2028"')),
    ('{%,"method":"gateway.ping","id":0}', accepted("null", "0")),
    ('{%,"method":"gateway.ping","id":-0}', accepted("null", "-0")),
    ('{%,"method":"gateway.ping","id":-7}', accepted("null", "-7")),
    ('{%,"method":"gateway.ping","id":18446744073709551617}', accepted("null", "18446744073709551617")),
    ('{%,"method":"gateway.ping","id":' + "9" * 1024 + "}", accepted("null", "9" * 1024)),
    ('{%,"method":"gateway.ping","id":-' + "9" * 1023 + "}", accepted("null", "-" + "9" * 1023)),
    ('{%,"method":"gateway.ping","id":"' + "x" * 1022 + '"}', accepted("null", '"' + "x" * 1022 + '"')),
    ('{%,"method":"gateway.ping","id":null}', accepted("null", "null")),
    (' {%\n,"method" :\t"gateway.ping","id": 7 }\r\n', accepted("null", "7")),
    (r'{%,"method":"foobar","id":"\u0041"}', refused(-32601, "foobar", r'"\u0041"', outcome="not_delivered")),
    ('{%,"method":"foobar","id":-0}', refused(-32601, "foobar", "-0", outcome="not_delivered")),
    (r'{"jsonrpc":"1.0","method":"gateway.ping","id":"\u0041"}', invalid("…`$.jsonrpc`", r'"\u0041"')),
    ('{"jsonrpc":"1.0","id":' + "9" * 1024 + "}", invalid("…`$.jsonrpc`", "9" * 1024)),
    # So do parameters that pass through.
    (r'{%,"method":"gateway.ping","id":1,"params":["\ud83d\ude00"]}', accepted(r'["\ud83d\ude00"]')),
    (r'{%,"method":"gateway.ping","id":1,"params":{"\uD83D\uDE00":"\/"}}', accepted(r'{"\uD83D\uDE00":"\/"}')),
    (r'{%,"method":"gateway.ping","id":1,"params":["\\ud83d"]}', accepted(r'["\\ud83d"]')),
    ('{%,"method":"gateway.ping","id":1,"params":[ -0, 1.0,1E+2 , 1e999 ]}', accepted("[ -0, 1.0,1E+2 , 1e999 ]")),
    ('{%,"method":"gateway.ping","id":1,"params":{"a":1,"a":2}}', accepted('{"a":1,"a":2}')),
    ('{%,"method":"gateway.ping","id":1,"params":["\x7f\u2028\ufeff😀"]}', accepted('["\x7f\u2028\ufeff😀"]')),
    ('{%,"method":"gateway.ping","id":1,"params":' + nested(500) + "}", accepted(nested(500))),
    # Of a member that comes twice the last one counts.
    ('{%,"method":"gateway.ping","id":1,"id":2}', accepted("null", "2")),
    ('{%,"method":"foobar","method":"gateway.ping","id":1}', accepted("null")),
    ('{%,"method":"gateway.ping","id":1,"params":[1],"params":[2]}', accepted("[2]")),
    ('{%,%,"method":"gateway.ping","id":1}', accepted("null")),
    # Names can be written in other ways, and members that nobody knows are nobody's business.
    (r'{"jsonrpc":"\u0032.0","method":"gateway.p\u0069ng","id":1}', accepted("null")),
    ('{%,"method":"gateway.ping","id":1,"result":1,"error":2,"other":{"id":3}}', accepted("null")),
    (
        '[{%,"method":"gateway.ping","id":1},{%,"method":"gateway.ping","id":1}]',
        f"[{accepted('null')},{accepted('null')}]",
    ),
    # No reply: notifications, whatever becomes of them, and answers that nobody waits for.
    ('{%,"method":"gateway.ping"}', None),
    ('{%,"method":"foobar"}', None),
    ('{%,"method":"subtract","params":["a"]}', None),
    ('{%,"method":"fail"}', None),
    ('[{%,"method":"foobar"},{%,"method":"subtract"}]', None),
    ('{%,"id":1,"result":null}', None),
    ('{%,"id":"a","error":{"code":-32700,"message":"a"}}', None),
    ('{%,"id":null,"error":{"code":-32700,"message":"a"}}', None),
    ('[{%,"id":1,"result":1},{%,"method":"gateway.ping"}]', None),
]


@pytest.mark.parametrize(("text", "expected"), UNUSUAL, ids=[text[:60] for text, _ in UNUSUAL])
async def test_what_is_unusual_is_taken_as_it_is_meant(caller: Caller, text: str, expected: str | None) -> None:
    answers = await caller.answers(full(text))
    assert len(answers) == (expected is not None)
    assert not answers or same(answers[0], expected or ""), answers


async def test_a_batch_may_be_as_long_as_configured(caller: Caller) -> None:
    (answer,) = await caller.answers(f"[{','.join(request('get_data', id=n) for n in range(MAX_BATCH))}]")
    assert answer == batch(*(accepted('["hello",5]', str(n)) for n in range(MAX_BATCH)))


@pytest.mark.parametrize("place", ['"params":["%s"],"id":1', '"id":"%s"', '"id":1,"other":"%s"', '"id":1,"%s":0'])
@pytest.mark.parametrize("garbage", [b"\xff", b"\xed\xa0\xbd", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
async def test_invalid_utf8_ends_the_connection(caller: Caller, place: str, garbage: bytes) -> None:
    head, _, tail = ('{"jsonrpc":"2.0","method":"gateway.ping",' + place + "}").encode().partition(b"%s")
    assert caller.client.port is not None
    with await RawPeer.open(Target(caller.client.port)) as peer:
        await peer.welcome()
        await peer.send_frame(Opcode.TEXT, head + garbage + tail)
        assert (await peer.recv_frame()).opcode == Opcode.CLOSE
    assert peer.close_code == 1007


# The codec by itself


def test_a_single_message_is_decoded_with_its_members_as_they_came() -> None:
    found = jsonrpc.decode(rb'{"jsonrpc":"2.0","method":"m","id": "\u0041" ,"params": [ 1 ]}')
    assert (found.method, bytes(found.id), bytes(found.params)) == ("m", rb'"\u0041"', b"[ 1 ]")
    assert (bytes(found.result), bytes(found.error)) == (b"", b"")


def decode_other(data: bytes) -> Invalid | list[Message | Invalid | None]:
    """What `jsonrpc.decode` does not take, as a dispatcher has it decoded."""
    try:
        jsonrpc.decode(data)
    except jsonrpc.UNDECODABLE as error:
        found = jsonrpc.decode_other(data, error, MAX_BATCH)
        return found if isinstance(found, Invalid) else list(found)
    raise AssertionError("a single message")


def test_a_batch_is_decoded_element_by_element() -> None:
    found = decode_other(b' [{"jsonrpc":"2.0","method":"m"}, 1]')
    assert isinstance(found, list)
    good, bad = found
    assert isinstance(good, Message)
    assert bytes(good.id) == b""
    assert isinstance(bad, Invalid)
    assert (bad.error, bad.id) == (errors.INVALID_REQUEST, b"null")


def test_a_large_element_is_decoded_and_classified_in_turns_of_their_own() -> None:
    large = '"%s"' % ("x" * jsonrpc.LARGE)
    found = decode_other(
        full(f'[{{%,"method":"m","params":[{large}]}},{{%,"method":"m"}},{{"id":1,"x":{large}}}]').encode()
    )
    assert isinstance(found, list)
    assert [element.__class__ for element in found] == [
        NoneType,
        NoneType,
        Message,
        Message,
        NoneType,
        NoneType,
        Invalid,
    ]


def test_what_the_decoder_says_is_cut() -> None:
    found = decode_other(b'{"jsonrpc":"%b"}' % (b"x" * 10_000))
    assert isinstance(found, Invalid)
    assert len(found.detail) == jsonrpc.MAX_DETAIL


@pytest.mark.parametrize("value", [b"0", b"-0", b"12", b"-3", b'""', b'"a"', b"null", b"9" * 1024])
def test_may_be_an_id(value: bytes) -> None:
    assert jsonrpc.may_be_id(value)


@pytest.mark.parametrize(
    "value", [b"1.0", b"1e3", b"-1.5", b"true", b"false", b"[]", b"{}", b"-", b"", b"nullx", b"9" * 1025]
)
def test_may_not_be_an_id(value: bytes) -> None:
    assert not jsonrpc.may_be_id(value)


def test_messages_are_encoded_as_the_specification_has_them() -> None:
    assert jsonrpc.request(b"7", "a.b", [1]).decode() == '{"jsonrpc":"2.0","id":7,"method":"a.b","params":[1]}'
    assert jsonrpc.request(b"7", "a.b", None).decode() == '{"jsonrpc":"2.0","id":7,"method":"a.b"}'
    assert jsonrpc.notification('a"b', {"c": None}).decode() == r'{"jsonrpc":"2.0","method":"a\"b","params":{"c":null}}'
    assert jsonrpc.result_reply(b'"i"', b"[1]").decode() == accepted("[1]", '"i"')
    assert jsonrpc.error_reply(b"1", errors.NOT_FOUND).decode() == refused(-32004)
    assert jsonrpc.error_reply(b"1", errors.OVERLOADED, "why", retryAfterMs=5).decode() == refused(
        -32009, "why", retryAfterMs=5
    )
    assert jsonrpc.batch([b"1", b"2"]) == b"[1,2]"


def test_every_error_of_the_contract_has_its_reply() -> None:
    for error in errors.RPC_ERRORS:
        text = jsonrpc.error_reply(b"1", error).decode()
        start = f'{{"jsonrpc":"2.0","id":1,"error":{{"code":{error.code},"message":"{error.message}"'
        outcome = ',"outcome":"unknown"' if error.temporary else ""
        data = f'"data":{{"code":"{error.name}","temporary":{str(error.temporary).lower()}{outcome}}}'
        assert text == f"{start},{data}}}}}"
    refusal = method.not_run(errors.OVERLOADED, "why", retryAfterMs=5)
    text = jsonrpc.error_reply(b"1", refusal.error, refusal.detail, **refusal.data).decode()
    assert text == refused(-32009, "why", retryAfterMs=5, outcome="not_delivered")


def test_the_helpers_of_these_tests_write_what_they_say() -> None:
    assert request("m", [1], "a") == '{"jsonrpc": "2.0", "id": "a", "method": "m", "params": [1]}'
    assert notification("m") == '{"jsonrpc": "2.0", "method": "m"}'
    assert same("a: any words.", "a: ….") and not same("a: .", "a: ….") and not same("a: b. c", "a: ….d")
