"""Mutated messages against a real gateway; and the fuzz run itself, which must see what it looks for."""

import subprocess
import sys

import pytest

from tests.fuzz import run
from tests.fuzz.matching import strangers
from tests.fuzz.model import Burst, Got, Malformed, Model, members, parse, read_reply, unmatched
from tests.fuzz.mutate import Source
from tests.support.patience import START, Sized
from tests.support.process import ROOT, EventLoopName, StartGateway

SEEDS: dict[EventLoopName, int] = {"asyncio": 3001, "uvloop": 3002}
METHODS = ("gateway.ping", "fuzz.later", "rpc.cancel", "connection.get")
PING = '{"jsonrpc":"2.0","method":"gateway.ping","id":%s}'
LATER = '{"jsonrpc":"2.0","method":"fuzz.later","id":%s}'
CANCEL = '{"jsonrpc":"2.0","method":"rpc.cancel","params":{"id":1}}'


async def test_thousands_of_messages_on_each_loop(gateway: StartGateway, loop: EventLoopName, sized: Sized) -> None:
    process = await gateway(run.CONFIG, loop=loop)
    messages = sized(2_000, 20_000)
    outcome = await run.fuzz(process, SEEDS[loop], messages, 4)
    assert not outcome.found, "\n".join(outcome.findings)
    assert outcome.messages == messages
    # A run that sends only one kind of message would find nothing either.
    assert outcome.connections > 4
    for kind in ("result", "batch", "-32700", "-32600", "-32601", "-32602", "-32004", "-32007"):
        assert outcome.replies[kind] > 0, outcome.replies


# The run


async def test_what_the_model_does_not_expect_is_found(gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    process = await gateway(run.CONFIG)
    monkeypatch.setattr(run, "METHODS", ("fuzz.later",))
    outcome = await run.fuzz(process, 1, 200, 2)
    assert outcome.found["no right reply"] > 0
    assert any("wanted -32601" in finding for finding in outcome.findings), outcome.findings


async def test_a_defect_is_found_in_reply_and_log(gateway: StartGateway) -> None:
    process = await gateway({"methods": {"modules": ["tests.fuzz.broken"]}}, allow_tracebacks=True)
    outcome = await run.fuzz(process, 1, 200, 2)
    assert outcome.found["no right reply"] > 0
    assert outcome.found["traceback"] > 0


async def test_growth_is_found(gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    process = await gateway(run.CONFIG)
    monkeypatch.setattr(run, "GROWTH", -(1 << 40))
    outcome = await run.fuzz(process, 1, 50, 1)
    assert outcome.found["growth"] == 1


def test_the_command_says_what_it_did() -> None:
    command = (sys.executable, "-m", "tests.fuzz", "--messages", "60", "--seed", "7", "--connections", "2")
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START, check=True)
    assert shown.stdout.startswith("seed 7\n60 messages, ")
    assert shown.stdout.endswith("found: nothing\n")


@pytest.mark.parametrize("wrong", [["--messages", "0"], ["--loop", "trio"], ["--seed", "x"]])
def test_wrong_usage(wrong: list[str]) -> None:
    command = (sys.executable, "-m", "tests.fuzz", *wrong)
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START, check=False)
    assert shown.returncode == 2
    assert shown.stderr.startswith("usage: fuzz ")


# The messages


def test_a_seed_makes_the_same_messages() -> None:
    def some(seed: str) -> list[bytes]:
        source = Source(seed)
        return [source.message() for _ in range(300)]

    assert some("1") == some("1")
    assert some("1") != some("2")


# The model


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (PING % 1, "a result null"),
        (PING % '"\\u0041"', "a result null"),
        (PING % "null", "a result null"),
        (PING % ("9" * 1024), "a result null"),
        (PING % ("9" * 1025), "-32600"),
        (
            '{"jsonrpc":"2.0","method":"gateway.ping","params":[1e400, {"a":1,"a":2}],"id":1}',
            'a result [1e400, {"a":1,"a":2}]',
        ),
        ('{"jsonrpc":"2\\u002e0","met\\u0068od":"gateway\\u002eping","id":1}', "a result null"),
        ('{"jsonrpc":"2.0","method":"gateway.ping"}', "silence"),
        ('{"jsonrpc":"2.0","method":"nobody.knows"}', "silence"),
        ('{"jsonrpc":"2.0","method":"nobody.knows","id":1}', "-32601"),
        ('{"jsonrpc":"2.0","method":"","id":1}', "-32601"),
        ('{"jsonrpc":"2.0","method":"connection.get","id":1}', "-32004 or -32602 or a result"),
        ('{"jsonrpc":"2.0","id":1,"result":null}', "silence"),
        ('{"jsonrpc":"2.0","id":null,"error":{}}', "silence"),
        ('{"jsonrpc":"2.0","id":1,"result":1,"error":{}}', "-32600"),
        ('{"jsonrpc":"2.0","result":1}', "-32600"),
        ("", "-32700"),
        ("\ufeff{}", "-32700"),
        (PING % 1 + "x", "-32700"),
        (PING % 1 + "\x0c", "-32700"),
        (PING % '"\\ud83d"', "-32700"),
        ('{"jsonrpc":"2.0","method":"gateway.ping","params":["\\ude00\\ud83d"]}', "-32700"),
        ('{"jsonrpc":"2.0","method":"gateway.ping","params":[NaN]}', "-32700"),
        ('{"jsonrpc":"2.0","method":"gateway.ping","params":[01]}', "-32700"),
        ('{"jsonrpc":"2.0","method":"gateway.ping","params":["\x1f"]}', "-32700"),
        (PING % "1.0", "-32600"),
        (PING % "1e2", "-32600"),
        (PING % "1e400", "-32600"),
        (PING % "[]", "-32600"),
        ('{"jsonrpc":"1.0","method":"gateway.ping","params":[1e400],"id":1}', "-32600"),
        ('{"jsonrpc":2.0,"method":"gateway.ping","id":1}', "-32600"),
        ('{"method":"gateway.ping","id":1}', "-32600"),
        ('{"jsonrpc":"2.0","method":5,"id":1}', "-32600"),
        ('{"jsonrpc":"2.0","method":"gateway.ping","params":5}', "-32600"),
        ("{}", "-32600"),
        ("1e400", "-32600"),
        ("[]", "-32600"),
        (f"[{','.join(['1'] * 101)}]", "-32600"),
        (f"[{','.join(['1'] * 100)}]", "an array for 100"),
        ("[[]]", "an array for 1"),
        ('{"jsonrpc":"2.0","method":"gateway.ping","id":1,"id":2}', "a result null or -32600 or -32600 or -32600"),
        ('{"jsonrpc":"2.0","method":"gateway.ping","params":%s,"id":1}' % ("[" * 501 + "]" * 501), "a result [[["),
        ("[" * 20_000, "-32600 or -32700"),
    ],
)
def test_the_model(text: str, wanted: str) -> None:
    said = str(Model(METHODS).expect(text, Burst()))
    assert said == wanted or (wanted.endswith("[[[") and said.startswith(wanted) and said.endswith("or -32600"))


def test_numbers_stay_as_they_are_written() -> None:
    assert parse('{"a":-0,"a":1E5}') == [("a", "-0"), ("a", "1E5")]
    assert list(members(' {"a" : [1, 2] ,\t"\\u0062":-0.0}')) == [("a", "[1, 2]"), ("b", "-0.0")]


def accounts(messages: list[str], replies: list[str], *, cut: bool = False) -> bool:
    """Whether these are right replies to these messages."""
    burst = Burst(cut=cut)
    model = Model(METHODS)
    expected = [model.expect(message, burst) for message in messages]
    return unmatched(expected, [read_reply(reply) for reply in replies], burst) == ([], [])


def result(identity: object, value: str = "null") -> str:
    return f'{{"jsonrpc":"2.0","id":{identity},"result":{value}}}'


def error(identity: object, code: int, more: str = "") -> str:
    data = f'{{"code":"name","temporary":false{more}}}'
    return f'{{"jsonrpc":"2.0","id":{identity},"error":{{"code":{code},"message":"m","data":{data}}}}}'


def test_replies_are_counted() -> None:
    both = [PING % 1, PING % 2]
    assert accounts(both, [result(1), result(2)])
    assert accounts(both, [result(2), result(1)])
    assert not accounts(both, [result(1)])
    assert not accounts(both, [result(1), result(2), result(2)])
    assert not accounts(both, [result(1), result(3)])
    assert not accounts(both, [result(1), result(2, "[]")])
    assert not accounts(both, [result(1), error(2, -32603)])
    assert not accounts(["", "{}"], [error("null", -32700), error("null", -32700)])
    assert not accounts(['{"jsonrpc":"2.0","method":"gateway.ping"}'], [result("null")])


def test_a_batch_is_one_reply() -> None:
    batch = f"[{PING % 1},{CANCEL},7]"
    assert accounts([batch], [f"[{result(1)},{error('null', -32600)}]"])
    assert not accounts([batch], [f"[{result(1)}]"])
    assert not accounts([batch], [result(1), error("null", -32600)])
    assert accounts([f"[{CANCEL}]"], [])


def test_a_refusal_needs_its_reason() -> None:
    taken = error(1, -32007)
    assert accounts([LATER % 1, PING % 1], [taken, result(1)])
    assert not accounts([LATER % 1], [taken])
    assert not accounts([PING % 1, PING % 1], [taken, result(1)])
    cancelled = error(1, -32800)
    assert accounts([LATER % 1, CANCEL], [cancelled])
    assert not accounts([LATER % 1], [cancelled])
    many = [LATER % number for number in range(65)]
    refused = error(0, -32009, ',"retryAfterMs":1')
    assert accounts(many, [refused, *(result(number) for number in range(1, 65))])
    assert not accounts([LATER % 0], [refused])


def test_who_is_cut_off_gets_no_late_reply() -> None:
    for message in (LATER % 1, f"[{LATER % 1},1]"):
        assert accounts([message], [], cut=True)
        assert not accounts([message], [])
    assert not accounts([PING % 1], [], cut=True)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "[]",
        "5",
        '{"id":1,"result":1}',
        '{"jsonrpc":"2.0","result":1}',
        '{"jsonrpc":"2.0","id":1.5,"result":1}',
        '{"jsonrpc":"2.0","id":1}',
        '{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":"m","data":{"code":"c","temporary":true}}}',
        '{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"}}',
        error(1, -32009),
        error(1, -32008).replace("false", "true"),
        error(1, -32008, ',"outcome":"done"').replace("false", "true"),
    ],
)
def test_a_malformed_reply_is_seen(reply: str) -> None:
    with pytest.raises(Malformed):
        read_reply(reply)


def test_a_reply_is_read_as_it_is_written() -> None:
    assert read_reply(result('"\\u0041"', "[ 1.0 ]")) == Got('"\\u0041"', None, "[ 1.0 ]")


def test_strangers_are_as_few_as_can_be() -> None:
    # 0 takes any, 1 takes only the first: in order, 0 would take it away.
    assert strangers(2, 2, lambda left, right: left == 0 or right == 0, [0, 1]) == ([], [])
    # Whoever need not be served gives way to who must.
    assert strangers(2, 1, lambda left, right: True, [1]) == ([], [])
    assert strangers(2, 1, lambda left, right: True, [0, 1]) == ([1], [])
    assert strangers(1, 2, lambda left, right: True, [0]) == ([], [1])
