"""`python -m gateway node`."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.commands.node import json_of, text_of
from gateway.terminal.programs import ProgramFailed
from tests.support.command import Ended
from tests.support.fleet import until
from tests.support.patience import START
from tests.support.peers import RawPeer
from tests.support.process import GatewayProcess, StartGateway
from tests.support.remote import Command, misused, run, serving


async def call(where: GatewayProcess, method: str, *arguments: str) -> Ended:
    return await run(where, "call", method, "--json", *arguments)


async def in_flight(where: GatewayProcess, count: int) -> None:
    async with asyncio.timeout(START):
        while json.loads((await run(where, "nodes", "--json")).stdout)[0]["inFlight"] != count:
            await asyncio.sleep(0.05)


async def test_commands_are_methods(gateway: StartGateway) -> None:
    where = await gateway()
    served = ["cat:json=cat", "text=echo '$HOME  *'", "none=true", "env=env"]
    async with serving(where, *served, environ={"GATEWAY_TOKEN": "secret"}) as node:
        assert await call(where, "cat", '{"küche": [1.5]}') == Ended(0, '{"küche": [1.5]}\n', "")
        assert await call(where, "cat") == Ended(0, "null\n", "")
        assert await call(where, "text") == Ended(0, '"$HOME  *"\n', ""), "no shell has seen it"
        assert await call(where, "none") == Ended(0, '""\n', "")
        assert "secret" not in (await call(where, "env")).stdout
    assert node.stderr == "kitchen-pi serves cat, text, none, env\n"
    assert node.stdout == ""


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\udcffb"])
async def test_a_name_that_no_node_may_have_is_told_before_it_connects(name: str) -> None:
    ended = await run(None, "node", "--name", name, "cat=cat", "--url", "ws://127.0.0.1:9/ws")
    assert (ended.status, ended.stdout) == (2, "")
    assert "argument --name: it " in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_with_a_shell(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "--shell", "sum=echo $((1 + 2)) | cat"):
        assert await call(where, "sum") == Ended(0, '"3"\n', "")


async def test_a_failure_has_the_exit_status_and_the_last_line(gateway: StartGateway) -> None:
    where = await gateway()
    served = ["three=sh -c 'echo first >&2; echo the last >&2; exit 3'", "slow=sleep 60"]
    async with serving(where, "--timeout", "0.5", *served):
        three, slow = await asyncio.gather(run(where, "call", "three"), run(where, "call", "slow"))
        assert three == Ended(1, "", "error 3 command_failed: the last\n")
        assert slow == Ended(1, "", "error 124 command_failed: still running after 0.5 s\n")


async def test_no_more_than_so_many_at_a_time(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "--jobs", "1", "--shell", "one=sleep 0.3; echo 1"):
        begun = asyncio.get_running_loop().time()
        ended = await asyncio.gather(*(call(where, "one") for _ in range(3)))
        assert [one.stdout for one in ended] == ['"1"\n'] * 3
        assert asyncio.get_running_loop().time() - begun >= 0.9


async def test_sigterm_unregisters_and_lets_calls_finish(gateway: StartGateway) -> None:
    where = await gateway()
    slow = "slow=sh -c 'sleep 3; echo done'"
    async with serving(where, slow) as node, Command("call", "slow", where=where) as running:
        await in_flight(where, 1)
        assert await node.end(signal.SIGTERM) == Ended(0, "", "kitchen-pi serves slow\n")
        assert await running.end() == Ended(0, '"done"\n', "")
    assert json.loads((await run(where, "nodes", "--json")).stdout) == []


async def test_ctrl_c_ends_commands(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "slow=sleep 60") as node, Command("call", "slow", where=where) as running:
        await in_flight(where, 1)
        assert (await node.end(signal.SIGINT)).status == 130
        ended = await running.end()
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error -32010 node_lost: ")


async def test_it_comes_back_and_goes_when_it_is_replaced(gateway: StartGateway) -> None:
    first = await gateway()
    async with serving(first, "who=echo old") as node:
        first.signal(signal.SIGKILL)
        await first.wait()
        second = await gateway({"server": {"port": first.port}})
        await node.until(lambda node: "connected\n" in node.stderr.rpartition("; trying again\n")[2])
        await in_flight(second, 0)
        assert (await call(second, "who")).stdout == '"old"\n'
        async with serving(second, "who=echo new"):
            ended = await node.end()
            assert (ended.status, ended.stdout) == (3, "")
            assert ended.stderr.endswith(": 4502 a newer connection has this node's name\n")
            assert (await call(second, "who")).stdout == '"new"\n'


async def test_names_that_the_gateway_refuses(gateway: StartGateway) -> None:
    where = await gateway()
    unnamed = await run(where, "node", "a=true")
    assert (unnamed.status, unnamed.stderr[:36]) == (1, "error -32602 invalid_params: Invalid")
    own = await run(where, "node", "--name", "a", "rpc.a=true")
    assert (own.status, own.stderr[:36]) == (1, "error -32602 invalid_params: Invalid")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "METHOD=COMMAND"),
        (["a"], "METHOD=COMMAND"),
        (["=true"], "METHOD=COMMAND"),
        (["a="], "METHOD=COMMAND"),
        (["a:=true"], "only :json"),
        (["a:yaml=true"], "only :json"),
        (["a:json:json=true"], "only :json"),
        ([":json=true"], "METHOD=COMMAND"),
        (["a=true", "a:json=true"], "a is there twice"),
        (["a=true", "a=false"], "a is there twice"),
        (["a=no-such-program -x"], "no-such-program"),
        (["a=echo 'open"], "a: No closing quotation"),
        (["a=''"], "a: no such program"),
        (["a=true", "--timeout", "-1"], "--timeout"),
        (["a=true", "--jobs", "0"], "--jobs"),
        (["a=true", "--jobs", "257"], "--jobs"),
        (["a=true", "--jobs", "many"], "--jobs"),
    ],
)
def test_wrong_usage(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in misused(capsys, "node", "--name", "n", *arguments)


@pytest.mark.parametrize(
    ("printed", "text"),
    [
        (b"", ""),
        (b"3.10\n", "3.10"),
        (b"null\n", "null"),
        (b'{"a": 1, "a": 2}\n', '{"a": 1, "a": 2}'),
        (b" a\r\n\n", " a\r\n"),
        ("küche\x1b\0".encode(), "küche\x1b\0"),
    ],
)
def test_what_is_printed_is_a_text_whatever_it_looks_like(printed: bytes, text: str) -> None:
    assert text_of(printed) == text


@pytest.mark.parametrize(
    "json", ["3.10", '{"a": 1.0, "a": 12345678901234567890}', "[\n1e400\n]", '"k\\u00fcche ü"', "null"]
)
def test_json_is_passed_on_byte_for_byte(json: str) -> None:
    assert bytes(json_of(f" {json}\n".encode())) == json.encode()


@pytest.mark.parametrize("printed", [b"", b"yes\n", b"NaN", b"{} {}", b'"\\ud83d"', b"[" * 100_000])
def test_what_is_no_json_is_told(printed: bytes) -> None:
    with pytest.raises(ProgramFailed, match="its output is not JSON: ") as failure:
        json_of(printed)
    assert failure.value.status == 65


@pytest.mark.parametrize("result_of", [text_of, json_of])
def test_bytes_that_are_not_utf_8_are_told(result_of: Callable[[bytes], object]) -> None:
    with pytest.raises(ProgramFailed, match="its output is not UTF-8: byte 2 is 0xff") as failure:
        result_of(b'"a\xff"')
    assert failure.value.status == 65


async def test_json_crosses_the_gateway_unchanged(gateway: StartGateway) -> None:
    where = await gateway()
    same = '{"a": 3.10, "a": [1e2, 12345678901234567890123]}'
    async with serving(where, f"same:json=echo '{same}'", f"text=echo '{same}'", "wrong=printf '\\377'"):
        with await RawPeer.open(where) as peer:
            await peer.welcome()
            await peer.send_json({"jsonrpc": "2.0", "id": 1, "method": "same"})
            assert (await peer.recv_frame()).payload == f'{{"jsonrpc":"2.0","id":1,"result":{same}}}'.encode()
        assert json.loads((await call(where, "text")).stdout) == same
        wrong = await run(where, "call", "wrong")
    why = "its output is not UTF-8: byte 0 is 0xff; base64 would make it a text"
    assert wrong == Ended(1, "", f"error 65 command_failed: {why}\n")


async def test_parameters_reach_a_command_byte_for_byte(gateway: StartGateway) -> None:
    where = await gateway()
    params = '{"price": 3.10, "a" : 1, "a": "\\u0041"}'
    async with serving(where, "same:json=cat"):
        assert (await call(where, "same", "--json", params)).stdout == f"{params}\n"
        assert (await call(where, "same", "--json")).stdout == "null\n"


async def test_a_child_that_a_command_leaves_behind_does_not_hold_the_call(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "--shell", "start=sleep 600 & echo started"):
        assert await call(where, "start", "--timeout", "60") == Ended(0, '"started"\n', "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1)])
async def test_the_command_of_a_stream_is_killed_when_its_caller_has_gone(
    gateway: StartGateway, number: signal.Signals, status: int
) -> None:
    where = await gateway()
    async with serving(where, "--shell", "--timeout", "0.1", "slow=echo $$; sleep 60; echo no"):
        async with Command("call", "slow", "--stream", "--raw", where=where) as caller:
            await caller.until(lambda caller: caller.stdout.endswith("\n"))
            command = Path("/proc", caller.stdout.strip())
            assert command.exists()
            assert (await caller.end(number)).status == status
        await until(lambda: not command.exists(), "the command still runs")
        assert where.events("connection.held") == []


async def test_the_output_of_a_stream_has_to_be_what_was_said(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "--shell", "n:json=echo 1; echo no; sleep 60", "three=echo 1; echo the last >&2; exit 3"):
        ended = await run(where, "call", "n", "--stream")
        assert (ended.status, ended.stdout) == (1, "1\n")
        assert ended.stderr.startswith("error 65 command_failed: its output is not JSON")
        ended = await run(where, "call", "three", "--stream")
        assert ended == Ended(1, '"1"\n', "error 3 command_failed: the last\n")
