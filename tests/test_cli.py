"""The command line, as somebody at a terminal has it: every test runs `python -m gateway`."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from gateway import __main__, __version__, cli
from gateway.auth import tokens
from gateway.client import connect
from tests.support.command import Ended, run
from tests.support.forked import BROKEN, CLOSED, FULL, GONE, run_all
from tests.support.forks import ALONE
from tests.support.patience import START
from tests.support.process import ROOT, StartGateway, clean_environment

COMMANDS = (
    *("serve", "call", "watch", "nodes", "connections", "members", "node"),
    *("token", "reload", "check", "openrpc", "completion"),
)


async def first_line(*arguments: str, environ: Mapping[str, str]) -> bytes:
    """Start a gateway, return the first line of its log, and end it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *arguments),
        cwd=ROOT,
        env=clean_environment() | dict(environ),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START):
            line = await process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            await process.stdout.read()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return line


# What it says of itself


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(flag: str) -> None:
    ended = run(flag)
    assert (ended.status, ended.stderr) == (0, "")
    for shown in ("--config", "--host", "--port", "--log-level", "--log-format", "--version", "GATEWAY_CONFIG"):
        assert shown in ended.stdout
    for command in COMMANDS:
        assert re.search(rf"^ +{command} +[a-z]", ended.stdout, re.MULTILINE), "a command, and what it is for"
    assert "conf/gateway.toml" in ended.stdout, "where every setting is"
    assert "SIGHUP" in ended.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, and each option with what it is for."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert max(map(len, shown.splitlines())) < 80
    for option in re.findall(r"^  (--[a-z-]+(?: \S+)?)(.*)$", shown, re.MULTILINE):
        assert option[1] == "" or re.match(r"  +\S", option[1]), option


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "a.b", "{}"],
        ["a.b", "--json", "{}"],
        ["a.b", "{}", "--json"],
        ["--timeout", "5", "a.b", "--json", "[]"],
    ],
)
def test_options_and_other_words_come_in_any_order(arguments: list[str]) -> None:
    ended = run("call", *arguments, environ={"GATEWAY_URL": "ws://127.0.0.1:1/ws"})
    assert (ended.status, ended.stdout) == (3, "")


def test_version() -> None:
    assert run("--version") == Ended(0, f"aisopod-gateway {__version__}\n", "")


def test_the_installed_command_is_the_same_one() -> None:
    """`aisopod-gateway`, which pip makes."""
    scripts = re.search(r"^ *aisopod-gateway = (.*)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert scripts is not None
    module, _, function = scripts.group(1).partition(":")
    assert (module, getattr(__main__, function)) == ("gateway.__main__", __main__.main)


# Where settings come from


async def test_flags_over_environment_over_file(gateway: StartGateway) -> None:
    """The file has a port of its own, the environment a host that nobody has and a level without a start."""
    process = await gateway(
        {"server": {"port": 1, "host": "127.0.0.3", "drain_timeout": 1.0}, "log": {"level": "error"}},
        environ={
            "GATEWAY_SERVER__PORT": "2",
            "GATEWAY_SERVER__HOST": "127.0.0.4",
            "GATEWAY_LOG__LEVEL": "warning",
            "GATEWAY_SERVER__EVENT_LOOP": "asyncio",
        },
        arguments=["--host", "127.0.0.2", "--port", "0", "--log-level", "info"],
    )
    (started,) = process.events("server.started")
    assert process.listeners == [f"127.0.0.2:{process.port}"]
    assert process.port > 2
    assert started["eventLoop"] == "asyncio", "no flag says otherwise"


async def test_the_environment_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "named.toml"
    file.write_text("[server]\nhost = '127.0.0.2'\nport = 0\n")
    line = json.loads(await first_line(environ={"GATEWAY_CONFIG": str(file)}))
    assert line["event"] == "server.started"
    assert line["listeners"][0].startswith("127.0.0.2:")


async def test_the_flag_names_it_more_strongly(tmp_path: Path) -> None:
    file = tmp_path / "given.toml"
    file.write_text("[server]\nhost = '127.0.0.2'\nport = 0\n")
    line = json.loads(await first_line("--config", str(file), environ={"GATEWAY_CONFIG": "/nowhere.toml"}))
    assert line["listeners"][0].startswith("127.0.0.2:")


async def test_text_for_a_terminal() -> None:
    line = (await first_line("--port", "0", "--log-format", "text", environ={})).decode()
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} INFO  server\.started .*version=", line), line


# Wrong usage: exit status 2 and one line, as for a wrong configuration


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prot", "9000"], "--prot"),
        (["-p", "9000"], "-p"),
        (["serve", "tokens"], "tokens"),
        (["--port", "0", "tokens"], "tokens"),
        (["--nmae", "a", "token"], "--nmae"),
        (["token", "--nmae", "a"], "--nmae"),
        (["call", "a.b", "--nmae", "a"], "--nmae"),
        (["serve", "--nmae"], "--nmae"),
        (["--port", "0", "--log-level", "info", "call", "a.b"], "--port --log-level"),
        (["--config", "a.toml", "token", "list", "--file", "b.toml"], "--config"),
        (["--port"], "--port"),
        (["--port", "0", "--config"], "--config"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_wrong_usage(arguments: list[str], named: str) -> None:
    ended = run(*arguments)
    assert (ended.status, ended.stdout) == (2, "")
    assert named in ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--port", "http"],
            'flag --port: server.port: expected int, got str "http"; an integer from 0 to 65535',
        ),
        (
            ["--log-level", "loud"],
            'flag --log-level: log.level: "loud" is not allowed; "debug", "info", "warning" or "error"',
        ),
        (
            ["--host", "0.0.0.0"],
            'flag --host: server.host: "0.0.0.0" is not loopback, and auth.mode "none" lets everybody in;'
            " 127.0.0.1, ::1, localhost, or auth.allow_insecure = true",
        ),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_a_wrong_value_is_blamed_on_its_flag(arguments: list[str], line: str) -> None:
    assert run(*arguments) == Ended(2, "", f"{line}\n")


# What goes wrong with its standard streams, and Ctrl-C: for every command

NOBODY = "ws://127.0.0.1:1/ws"


def asking(file: str, pid: int) -> dict[str, list[str]]:
    """What each command prints something for, and then ends with status 0."""
    return {
        "call": ["gateway.info"],
        "watch": ["greenhouse.door"],
        "nodes": [],
        "connections": [],
        "members": [],
        "token": ["list", "--file", file],
        "reload": ["--pid", str(pid)],
        "check": [],
        "openrpc": [],
        "completion": ["bash"],
    }


@pytest.fixture
async def asked(gateway: StartGateway, tmp_path: Path) -> AsyncIterator[tuple[dict[str, str], list[list[str]]]]:
    """A gateway with events, as an environment, and commands that print something."""
    file = str(tmp_path / "tokens.toml")
    tokens.add(file, "me", "operator", None, None)
    where = await gateway(environ=ALONE)
    url = where.url("/ws", websocket=True)
    async with connect(url) as client:

        async def publish() -> None:
            while True:
                await client.publish("greenhouse.door", "open")
                await asyncio.sleep(0.05)

        publishing = asyncio.create_task(publish())
        commands = [[command, *arguments] for command, arguments in asking(file, where.pid).items()]
        yield {"GATEWAY_URL": url}, [*commands, ["serve", "--help"], ["node", "--help"], ["--version"]]
        publishing.cancel()


def test_every_command_is_asked() -> None:
    """Those two print nothing on standard output but their help: serve has its log."""
    assert {*asking("", 1), "serve", "node"} == set(COMMANDS)


Asked = tuple[dict[str, str], list[list[str]]]


@pytest.mark.parametrize(
    ("how", "status", "said"), [(FULL, 1, "standard output: No space left on device\n"), (GONE, 141, "")]
)
async def test_a_standard_output_that_takes_nothing(how: str, status: int, said: str, asked: Asked) -> None:
    environ, commands = asked
    ended = await run_all(commands, environ=environ, broken={1: how})
    assert dict(zip(map(" ".join, commands), ended, strict=True)) == {
        " ".join(command): Ended(status, "", said) for command in commands
    }


@pytest.mark.parametrize("how", BROKEN)
async def test_a_standard_error_that_takes_nothing_changes_no_status(how: str) -> None:
    """Wrong usage, no connection, a configuration and a file that are wrong; what is printed is whole."""
    failing = {
        2: [
            *([command, "--no-such-option"] for command in COMMANDS),
            *([command, "--port", "http"] for command in ("serve", "check")),
            ["token", "list", "--file", "/nowhere"],
        ],
        3: [["call", "a"], ["nodes"], ["connections"], ["members"], ["openrpc"]],
    }
    commands = [command for some in failing.values() for command in some]
    statuses = [status for status, some in failing.items() for _ in some]
    ended = await run_all(commands, environ={"GATEWAY_URL": NOBODY}, broken={2: how})
    assert ended == [Ended(status, "", "") for status in statuses]


async def test_closed_standard_streams(asked: Asked) -> None:
    environ, commands = asked
    commands.remove(["watch", "greenhouse.door"])  # which has no end here
    ended = await run_all(commands, environ=environ, broken={1: CLOSED, 2: CLOSED})
    assert ended == [Ended(0, "", "")] * len(commands)


async def test_ctrl_c_while_it_connects() -> None:
    listing = [["nodes"], ["connections"], ["members"], ["openrpc"]]
    commands = [["call", "a"], *listing, ["watch", "a"], ["node", "a=true"]]
    connected = asyncio.Semaphore(0)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.release()
        await reader.read()
        writer.close()

    async def all_connected() -> None:
        for _ in commands:
            await connected.acquire()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"ws://127.0.0.1:{port}/ws"
        ended = await run_all(commands, environ={"GATEWAY_URL": url}, interrupt=all_connected)
    assert ended == [Ended(130, "", "")] * len(commands)
