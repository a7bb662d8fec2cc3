"""Autobahn's quick groups on both event loops, and the tools for all of them: the echo, the runner, its verdict.

The runner is a process of its own, for kosoku's cases change the interpreter that they are imported into.
"""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from typing import Any

import pytest

from tests.support.patience import START
from tests.support.peers import Opcode, RawPeer, Target
from tests.support.process import ROOT, EventLoopName, clean_environment

QUICK = "1,2,3,4,5,6,7,10"
QUICK_CASES = 247
# UTF-8 is checked when a message is whole, not at the first bad byte.
NON_STRICT = ["6.4.1", "6.4.2", "6.4.3", "6.4.4"]
# What the specification leaves open, so that there is no verdict.
INFORMATIONAL = ["7.1.6", "7.13.1", "7.13.2"]


async def run(*arguments: str, status: int = 0) -> tuple[str, str]:
    """Return what `python -m tests.conformance` says on standard output and on standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.conformance", *arguments),
        stdout=PIPE,
        stderr=PIPE,
        cwd=ROOT,
        env=clean_environment(),
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), 2 * START)
    finally:
        if process.returncode is None:
            # It ends the server that it has started.
            process.terminate()
            await process.wait()
    assert process.returncode == status, (output.decode(), errors.decode())
    return output.decode(), errors.decode()


async def test_the_quick_groups_pass(loop: EventLoopName) -> None:
    output, _ = await run("--groups", QUICK, "--loop", loop, "--json")
    told: dict[str, Any] = json.loads(output)[loop]
    assert told["cases"] == QUICK_CASES
    assert told["noted"] == {"NON-STRICT": NON_STRICT, "INFORMATIONAL": INFORMATIONAL}
    assert (told["behavior"]["OK"], told["failed"]) == (240, [])


async def test_uncompressed_and_compressed_messages_come_to_a_verdict() -> None:
    # Short and binary messages come back uncompressed, longer texts compressed.
    output, _ = await run("--groups", "12.1.1,12.1.5,12.4.3,13.3.1", "--loop", "uvloop", "--json")
    assert json.loads(output)["uvloop"]["behavior"] == {"OK": 4}


async def test_without_compression_its_cases_are_unimplemented() -> None:
    output, errors = await run("--groups", "13.1.1", "--loop", "uvloop", "--no-compression")
    assert "gateway on uvloop, permessage-deflate off" in output
    assert output.splitlines()[2].split()[:-1] == ["13", "1", "–", "–", "–", "1", "–", "–"]
    assert errors == "uvloop: group 13, 1 cases\n"


async def test_a_failure_is_told() -> None:
    # aiohttp's own handler lets a close code pass that must not be on the wire.
    output, _ = await run("--groups", "7.9", "--server", "aiohttp", "--loop", "asyncio", "--quiet", status=1)
    (failed,) = [line for line in output.splitlines() if "FAILED, closing" in line]
    assert failed.startswith("7.9.5: FAILED, closing WRONG CODE: The close code should have been 1002")


async def test_an_unknown_group_is_refused() -> None:
    output, errors = await run("--groups", "1,11", status=2)
    assert output == ""
    assert errors.endswith("error: there is no case 11\n")


async def test_the_echo_sends_everything_back_and_ends_at_sigterm(loop: EventLoopName) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.echo", "--loop", loop),
        stdout=PIPE,
        stderr=PIPE,
        cwd=ROOT,
        env=clean_environment(),
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START)
        head, _, port = line.decode().strip().rpartition(":")
        assert head == "listening on 127.0.0.1"
        with await RawPeer.open(Target(int(port))) as peer:
            for opcode, payload in ((Opcode.TEXT, b"{}"), (Opcode.BINARY, b"\0\xff"), (Opcode.BINARY, b"")):
                await peer.send_frame(opcode, payload)
                got = await peer.recv_frame()
                assert (got.opcode, got.payload) == (opcode, payload)
            process.send_signal(signal.SIGTERM)
            await peer.recv_until_closed()
            assert peer.close_code == 1001
        output, errors = await asyncio.wait_for(process.communicate(), START)
        assert (process.returncode, output, errors) == (0, b"", b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("flags", [("--jobs", "0"), ("--jobs", "two"), ("--loop", "trio"), ("--server", "nginx")])
async def test_wrong_usage_is_refused(flags: tuple[str, str]) -> None:
    _, errors = await run(*flags, status=2)
    assert f"argument {flags[0]}" in errors
