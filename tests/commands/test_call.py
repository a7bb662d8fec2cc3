"""`python -m gateway call`."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from gateway.commands.call import progress_of
from tests.support.command import Ended
from tests.support.patience import START
from tests.support.process import GatewayProcess, StartGateway
from tests.support.remote import Command, misused, on_a_terminal, run, serving


async def test_the_result_is_printed_as_json(gateway: StartGateway) -> None:
    where = await gateway()
    params = '{"n": 123456789012345678901234567890, "küche": [1.5, null]}'
    ended = await run(where, "call", "gateway.ping", params)
    assert (ended.status, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == json.loads(params)
    assert ended.stdout.startswith("{\n  ")
    assert await run(where, "call", "gateway.ping", "--json", "[1, 2]") == Ended(0, "[1, 2]\n", "")
    assert await run(where, "call", "gateway.ping") == Ended(0, "null\n", "")
    assert await run(where, "call", "gateway.ping", "-", "--json", stdin='{"a": "b"}\n') == Ended(0, '{"a": "b"}\n', "")


SAME = '{"price": 3.10, "a": 1e2, "a": [-0, 12345678901234567890123], "b": "\\u0041\\/"}'


async def test_a_result_is_printed_as_it_came(gateway: StartGateway) -> None:
    """Decoding it would make 3.10 3.1, and lose a key that is there twice."""
    where = await gateway()
    assert await run(where, "call", "gateway.ping", "--json", SAME) == Ended(0, f"{SAME}\n", "")
    broken = SAME.replace(", ", ",\r\n\t")
    assert await run(where, "call", "gateway.ping", "--json", broken) == Ended(0, f"{SAME}\n", "")
    lines = (await run(where, "call", "gateway.ping", SAME)).stdout.splitlines()
    assert lines[:3] == ["{", '  "price": 3.10,', '  "a": 1e2,']
    assert json.loads("".join(lines)) == json.loads(SAME)
    assert (await run(where, "call", "gateway.ping", "--json", '["a\u009b"]')).stdout == '["a\\u009b"]\n'


async def test_parameters_come_from_a_file(gateway: StartGateway, tmp_path: Path) -> None:
    where = await gateway()
    file = tmp_path / "params.json"
    file.write_text('{"a": "küche"}\n')
    assert await run(where, "call", "gateway.ping", f"@{file}", "--json") == Ended(0, '{"a": "küche"}\n', "")


async def test_a_text_is_text_on_a_terminal_and_json_for_programs(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "text=printf 'a\\tküche\\033[31m\\n\\n 3.10\\n'"):
        shown = await on_a_terminal(where, "call", "text")
        assert shown == "a\tküche\\x1b[31m\r\n\r\n 3.10\r\n", "what drives a terminal is escaped"
        assert await run(where, "call", "text") == Ended(0, '"a\\tküche\\u001b[31m\\n\\n 3.10"\n', "")
        assert await run(where, "call", "text", "--raw") == Ended(0, "a\tküche\x1b[31m\n\n 3.10\n", "")
        assert await on_a_terminal(where, "call", "text", "--raw") == "a\tküche\x1b[31m\r\n\r\n 3.10\r\n"
        shown = await on_a_terminal(where, "call", "text", "--json")
        assert json.loads(shown) == "a\tküche\x1b[31m\n\n 3.10"
    assert await run(where, "call", "gateway.ping", "[1]", "--raw") == Ended(0, "[\n  1\n]\n", "")


async def test_an_error_is_told_with_its_code_and_name(gateway: StartGateway) -> None:
    where = await gateway()
    line = "error -32601 method_not_found: No such method: camera.snap\n"
    assert await run(where, "call", "camera.snap") == Ended(1, "", line)
    ended = await run(where, "call", "camera.snap", "--json")
    told = json.loads(ended.stderr)
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert (told["code"], told["name"], told["data"]["outcome"]) == (-32601, "method_not_found", "not_delivered")


async def test_a_node_is_called_by_name_and_in_time(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "who=echo a", "slow=sleep 30", name="a"), serving(where, "who=echo b", name="b"):
        assert await run(where, "call", "who", "--node", "a") == Ended(0, '"a"\n', "")
        assert await run(where, "call", "who", "--node", "b") == Ended(0, '"b"\n', "")
        assert (await run(where, "call", "who", "--node", "c")).stderr.startswith("error -32004 not_found: ")
        ended = await run(where, "call", "slow", "--node", "a", "--timeout", "0.5")
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error -32008 timeout: ")
    assert ended.stderr.endswith("; whether it was run is not known\n")


async def test_a_node_is_waited_for(gateway: StartGateway) -> None:
    where = await gateway()
    async with Command("call", "who", "--node", "late", "--wait", "60", where=where) as call:
        async with asyncio.timeout(START):
            while len(there := await _in_flight(where)) < 2 or not there[0]:
                await asyncio.sleep(0.05)
        async with serving(where, "who=echo here", name="late"):
            assert await call.end() == Ended(0, '"here"\n', "")
    ended = await run(where, "call", "who", "--node", "never", "--wait", "0.1")
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error -32004 not_found: ")


async def _in_flight(where: GatewayProcess) -> list[int]:
    """The requests of each connection that are in flight, the oldest connection first, the one that asks last."""
    return [one["inFlight"] for one in json.loads((await run(where, "connections", "--json")).stdout)]


async def test_ctrl_c_cancels_at_the_node(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "slow=sh -c 'echo $$; exec sleep 60'"):
        async with Command("call", "slow", where=where) as call:
            async with asyncio.timeout(START):
                while json.loads((await run(where, "nodes", "--json")).stdout)[0]["inFlight"] == 0:
                    await asyncio.sleep(0.05)
            assert await call.end(signal.SIGINT) == Ended(130, "", "")
        failed = await where.wait_event("call.failed", method="slow")
        assert failed["error"] in ("cancelled", "caller_lost")


async def test_a_gateway_that_goes_away(gateway: StartGateway) -> None:
    where = await gateway({"server": {"drain_timeout": 0.2}})
    async with serving(where, "slow=sleep 60"), Command("call", "slow", where=where) as call:
        async with asyncio.timeout(START):
            while json.loads((await run(where, "nodes", "--json")).stdout)[0]["inFlight"] == 0:
                await asyncio.sleep(0.05)
        where.terminate()
        ended = await call.end()
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (3, "", 1)
    assert ended.stderr.endswith("; whether it was run is not known\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "METHOD"),
        (["a.b", "{"], "must be a JSON object or array"),
        (["a.b", "5"], "must be a JSON object or array"),
        (["a.b", '{"a": NaN}'], "must be a JSON object or array"),
        (["a.b", '{"a": "\\ud83d"}'], "must be a JSON object or array"),
        (["a.b", "[" * 100_000], "must be a JSON object or array"),
        (["a.b", "{}", "extra"], "extra"),
        (["a.b", "--timeout", "0"], "--timeout"),
        (["a.b", "--timeout", "nan"], "--timeout"),
        (["a.b", "--timeout", "inf"], "--timeout"),
        (["a.b", "--timeout", "soon"], "--timeout"),
        (["a.b", "--token", "secret"], "--token"),
        (["a.b", "--wait", "5"], "--node"),
        (["a.b", "--node", "n", "--wait", "-1"], "--wait"),
        (["a.b", "@/nowhere"], "/nowhere: cannot be read: No such file"),
        (["a.b", "@/"], "/: cannot be read: Is a directory"),
        (["a.b", "@setup.cfg"], "must be a JSON object or array"),
        (["a.b", "@/dev/zero"], "must be a JSON object or array, such as '{\"width\": 640}': this has more than"),
        (["a.b", "--raw", "--json"], "--json"),
    ],
    ids=lambda case: " ".join(case)[:30] if isinstance(case, list) else "",
)
def test_wrong_usage(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in misused(capsys, "call", *arguments)


async def test_a_name_that_is_not_utf_8(gateway: StartGateway) -> None:
    ended = await run(await gateway(), "call", "a.b\udcff")
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "UTF-8" in ended.stderr


async def test_parameters_that_are_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "params.json"
    file.write_bytes(b'["\xff"]')
    ended = await run(None, "call", "a.b", f"@{file}")
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "must be a JSON object or array" in ended.stderr


async def test_ctrl_c_while_it_reads_its_parameters() -> None:
    async with Command("call", "a.b", "-", where=None, stdin="[", endless=True) as call:
        await call.until_it_reads()
        assert await call.end(signal.SIGINT) == Ended(130, "", "")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "[--------------------]   0%"),
        (0.5, "[##########----------]  50%"),
        (1, "[####################] 100%"),
        (7, "7"),
        (True, "true"),
        ("reading\x1b", "reading\x1b"),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_progress(value: object, shown: str) -> None:
    assert progress_of(value) == shown


async def test_a_stream_is_printed_line_by_line(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(
        where, "--shell", "count=for n in 1 2.50 '\"'; do echo $n; done", "n:json=echo 3.10; echo [1,2]"
    ):
        assert await run(where, "call", "count", "--stream") == Ended(0, '"1"\n"2.50"\n"\\""\n', "")
        assert await run(where, "call", "count", "--stream", "--raw") == Ended(0, '1\n2.50\n"\n', "")
        assert await run(where, "call", "n", "--stream", "--node", "kitchen-pi") == Ended(0, "3.10\n[1,2]\n", "")
        assert await on_a_terminal(where, "call", "count", "--stream") == '1\r\n2.50\r\n"\r\n'
    failed = await run(where, "call", "no.such", "--stream")
    assert (failed.status, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error -32601 method_not_found: ")


async def test_lines_are_pushed_and_answered_one_by_one(gateway: StartGateway, tmp_path: Path) -> None:
    where = await gateway()
    file = tmp_path / "lines"
    file.write_text("".join(f"{number} küche\n" for number in range(100)))
    async with serving(where, "cat=cat", "head=head -n 1"):
        pushed = await run(where, "call", "cat", "--input", str(file), "--raw")
        assert pushed == Ended(0, file.read_text(), "")
        assert await run(where, "call", "cat", "[1]", "--input", "-", "--raw", stdin="a\nb") == Ended(
            0, "[1]\na\nb\n", ""
        )
        assert await run(where, "call", "head", "--input", str(file), "--raw") == Ended(0, "0 küche\n", "")
        async with Command("call", "cat", "--input", "-", "--raw", where=where, endless=True) as call:
            assert isinstance(call.process, asyncio.subprocess.Process) and call.process.stdin is not None
            call.process.stdin.write(b"one\n")
            await call.until(lambda call: call.stdout == "one\n")
            call.process.stdin.write(b"two\n")
            await call.until(lambda call: call.stdout == "one\ntwo\n")
            assert await call.end(signal.SIGINT) == Ended(130, "one\ntwo\n", "")


async def test_a_stream_that_is_answered_ends_even_if_its_input_does_not(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "head=head -n 1", "three=exit 3", "--shell"):
        async with Command("call", "head", "--input", "-", "--raw", where=where, endless=True) as call:
            assert isinstance(call.process, asyncio.subprocess.Process) and call.process.stdin is not None
            call.process.stdin.write(b"one\n")
            assert await call.end() == Ended(0, "one\n", "")
        async with Command("call", "three", "--input", "-", where=where, endless=True) as call:
            ended = await call.end()
            assert (ended.status, ended.stdout) == (1, "")


async def test_a_stream_of_a_method_that_is_not_utf8_is_wrong_usage(gateway: StartGateway) -> None:
    ended = await run(await gateway(), "call", "a\udcff", "--stream")
    assert (ended.status, ended.stdout) == (2, "")
    assert "an argument is not UTF-8" in ended.stderr


async def test_a_timeout_of_any_length_is_one(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "cat=cat"):
        for option in ("--timeout", "--wait"):
            called = await run(where, "call", "cat", "[1]", "--node", "kitchen-pi", option, "1e306", "--raw")
            assert called == Ended(0, "[1]\n", "")


async def test_what_cannot_be_pushed_is_told(gateway: StartGateway, tmp_path: Path) -> None:
    where = await gateway()
    (tmp_path / "long").write_bytes(b"x" * 600_000)
    (tmp_path / "latin").write_bytes(b"\xe4\n")
    async with serving(where, "cat=cat"):
        for name, why in (("long", "a line of more than"), ("latin", "utf-8"), ("none", "cannot be read")):
            ended = await run(where, "call", "cat", "--input", str(tmp_path / name))
            assert (ended.status, ended.stdout) == (2, "")
            assert why in ended.stderr
        both = await run(where, "call", "cat", "-", "--input", "-", stdin="[1]")
        assert both.status == 2 and "both" in both.stderr
