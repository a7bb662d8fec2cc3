"""A peer's error reaches those who called it as it is, but says nothing in the gateway's name."""

from typing import Final

import pytest

from gateway.rpc import jsonrpc
from gateway.rpc.responses import SMALL, checked
from tests.support.routed import Scene, hear, quiet, say, scene

ALIKE: Final = (
    '{"code":1,"message":""}',
    '{"code":1 , "message":"no outcome, retryAfterMs \\u0041"}',
    '{"message":"" , "code":1,"data": {"code":"outcome", "inner":{"outcome":"not_delivered"},"\\"":"\\u00e9"} }',
    '{"code":1,"message":"","data":["outcome",{"outcome":1}]}',
    '{"code":1,"message":"","data":"\\"outcome\\":1"}',
    '{"code":1,"message":"","data":null,"outcome":"not_delivered"}',
    '{"code":1,"message":"","data":{"nodeOutcome":1,"nodeRetryAfterMs":2,"Outcome":3,"é":"\\u00e9"}}',
)
"""Errors that have neither member in their data."""

OTHERWISE: Final = {
    '{"code":1,"message":"","data":{"outcome":"not_delivered"}}': '{"nodeOutcome":"not_delivered"}',
    '{"code":1,"message":"","data" :\t{"a": 1e400,"retryAfterMs" : 1.50,"outcome": [1 , 2]}}': (
        '{"a":1e400,"nodeRetryAfterMs":1.50,"nodeOutcome":[1 , 2]}'
    ),
    '{"code":1,"message":"","data":{"outc\\u006fme":null}}': '{"nodeOutcome":null}',
    '{"code":1,"message":"","d\\u0061ta":{"retry\\u0041fterMs":5}}': '{"nodeRetryAfterMs":5}',
    '{"code":1,"message":"","data":{"outcome":1,"outcome":2}}': '{"nodeOutcome":2}',
    '{"code":1,"message":"","data":{"outcome":1},"data":{}}': "{}",
    '{"code":1,"message":"","data":{},"data":{"outcome":1}}': '{"nodeOutcome":1}',
    '{"code":1,"message":"","data":{"outcome":1},"data":"outcome"}': '"outcome"',
}
"""Errors that have one, and their data as the caller gets it."""


def told(error: str) -> str:
    """What is passed on of an answer with this error."""
    response = checked(jsonrpc.decode(f'{{"jsonrpc":"2.0","id":1,"error": {error} }}'.encode()))
    assert response is not None
    assert (bytes(response.id), response.result) == (b"1", jsonrpc.ABSENT)
    return bytes(response.error).decode()


@pytest.mark.parametrize("error", ALIKE)
def test_other_errors_pass_byte_for_byte(error: str) -> None:
    assert told(error) == error


@pytest.mark.parametrize("error", OTHERWISE)
def test_outcome_and_retry_after_ms_are_renamed(error: str) -> None:
    assert told(error) == f'{{"code":1,"message":"","data":{OTHERWISE[error]}}}'


def test_a_small_error_is_decoded_into_its_members() -> None:
    head, tail = '{"code":1,"message":"","data":{"outcome":"', '"}}'
    small = head + "x" * (SMALL - len(head + tail)) + tail
    assert told(small) == small.replace("outcome", "nodeOutcome")
    larger = small.replace("xx", "xxx", 1)
    assert told(larger) == larger.replace('{"outcome"', '{"nodeData":{"outcome"').replace("}}", "}}}")


@pytest.mark.parametrize("name", ["outcome", "retryAfterMs", "retry\\u0041fterMs", "o\\u0075tcome", "\\u006futcome"])
def test_data_of_a_large_error_is_enclosed_if_it_may_have_a_reserved_member(name: str) -> None:
    """It is the last member twice, so that no parser takes another one."""
    data = f'{{"{name}" : 1,"a":"{"x" * SMALL}"}}'
    error = f'{{"data":{{}},"message":"\u00e9\\n", "code":-{"9" * 40},"data":{data},"more":1}}'
    assert told(error) == f'{{"code":-{"9" * 40},"message":"\u00e9\\n","data":{{"nodeData":{data}}}}}'


@pytest.mark.parametrize("error", ALIKE)
def test_other_large_errors_pass_byte_for_byte(error: str) -> None:
    larger = error.replace("outcome", "Outcome").replace("retryAfterMs", "retry").replace("\\u0041", "\\u00e9")
    larger = larger.replace('"message"', f'"more":[{"1, " * SMALL}1],"message"')
    assert told(larger) == larger


@pytest.mark.parametrize("data", [',"data":["outcome"]', ',"data":"outcome"', ',"data":null', ""])
def test_data_that_is_no_object_is_not_enclosed(data: str) -> None:
    error = f'{{"code":1,"message":"{"x" * SMALL}"{data}'
    assert told(f'{error},"outcome":1}}') == f"{error}}}"


async def _answered(it: Scene, error: str, batch: bool) -> str:
    """The caller's reply to a call that the node answers with this error."""
    asked = '{"jsonrpc":"2.0","id":1,"method":"camera.snap"}'
    await say(it.caller, f"[{asked}]" if batch else asked)
    answer = f'{{"jsonrpc":"2.0","id":{await it.delivered()},"error":{error}}}'
    await say(it.node, f"[{answer}]" if batch else answer)
    return await hear(it.caller)


@pytest.mark.parametrize("batch", [False, True])
async def test_a_node_says_nothing_in_the_gateways_name(batch: bool) -> None:
    """The node lets the error of a call of its own through, which says `not_delivered` of that call alone."""
    inner = '{"code":-32010,"message":"lost","data":{"code":"node_lost","outcome":"not_delivered","retryAfterMs":0}}'
    told = inner.replace("outcome", "nodeOutcome").replace("retryAfterMs", "nodeRetryAfterMs")
    async with scene() as it:
        for error, reply in ((inner, told), (ALIKE[2], ALIKE[2])):
            text = f'{{"jsonrpc":"2.0","id":1,"error":{reply}}}'
            assert await _answered(it, error, batch) == (f"[{text}]" if batch else text)
        await quiet(it.caller)
        assert await it.outcomes() == {"error": 2}
        await it.logged(0)
