"""`python -m gateway token`, as somebody at a terminal has it."""

import asyncio
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.auth import tokens
from gateway.auth.scopes import Principal, role_scopes
from gateway.cli import main
from gateway.timestamps import rfc3339_seconds
from tests.support.command import Ended, run
from tests.support.process import ROOT, clean_environment

TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\n")
RELOAD = "a running gateway takes it up after: aisopod-gateway reload"


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "tokens.toml")


def one_line(ended: Ended, status: int = 2) -> str:
    """Return what it said on standard error: one line, and nothing on the other."""
    assert (ended.status, ended.stdout) == (status, ""), ended.stderr
    assert ended.stderr.endswith("\n")
    line = ended.stderr.removesuffix("\n")
    assert line.isprintable(), ended.stderr
    return line


def in_process(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Ended:
    """Do it without a process of its own, for what is tried in many ways."""
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(arguments))
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, *capsys.readouterr())


def known(file: str, token: str) -> Principal:
    return tokens.Tokens(tokens.load(file)).verify(token.rstrip(), 0.0).principal


def test_add_prints_the_token_once_and_nothing_else(file: str) -> None:
    made = run("token", "--name", "kitchen-pi", "--role", "node", "--scope", "serve:camera.*", "--file", file)
    assert made.status == 0
    assert TOKEN.fullmatch(made.stdout)
    assert made.stderr == f"kitchen-pi is in {file}\nits scopes: serve:camera.*\n{RELOAD}\n"
    assert known(file, made.stdout) == Principal("kitchen-pi", "node", ("serve:camera.*",), None)
    assert made.stdout.strip() not in Path(file).read_text()
    scopes = ["--scope", "call:a.>", "--scope=admin", "--scope=call:b"]
    other = run("token", "add", "wall tv", "--role=ui", f"--file={file}", *scopes, "--expires", "2127-01-01")
    assert (other.status, other.stdout == made.stdout) == (0, False)
    moment = datetime(2127, 1, 1, tzinfo=UTC).timestamp()
    assert known(file, other.stdout) == Principal("wall tv", "ui", ("call:a.>", "admin", "call:b"), moment)


def test_add_tells_what_a_node_may_do_of_its_own_and_how_it_may_do_more(file: str) -> None:
    lacks = "--scope lets it serve methods that another node serves too (share:), or subscribe (subscribe:)"
    own = run("token", "add", "pi", "--role=node", "--file", file).stderr.splitlines()[1:]
    assert own == ["its scopes: serve:> publish:pi.>", lacks, RELOAD]
    dotted = run("token", "add", "pi.attic", "--role=node", "--file", file).stderr.splitlines()[1:]
    named = f"{lacks}, or publish, because its name is more than one part (publish:)"
    assert dotted == ["its scopes: serve:>", named, RELOAD]
    shared = run("token", "add", "tv", "--role=node", "--scope=serve:>", "--scope=share:disk.*", "--file", file)
    assert shared.stderr.splitlines()[1:] == ["its scopes: serve:> share:disk.*", RELOAD]
    page = run("token", "add", "page", "--role=ui", "--file", file).stderr.splitlines()[1:]
    assert page == ["its scopes: call:> subscribe:>", RELOAD]
    listed = run("token", "list", "--file", file).stdout.splitlines()[1:]
    assert [line.split("never")[1].split() for line in listed] == [
        ["serve:>", "publish:pi.>"],
        ["serve:>"],
        ["serve:>", "share:disk.*"],
        ["call:>", "subscribe:>"],
    ]


@pytest.mark.parametrize("how", [["kitchen-pi"], ["--name", "kitchen-pi"], ["--name=kitchen-pi"]])
def test_revoke_takes_the_token_out(how: list[str], file: str) -> None:
    tokens.add(file, "kitchen-pi", "node", None, None)
    kept = tokens.add(file, "tv", "ui", None, None)
    ended = run("token", "revoke", *how, "--file", file)
    assert ended == Ended(0, "", f"kitchen-pi is no longer in {file}\n{RELOAD}\n")
    assert [entry.principal for entry in tokens.load(file)] == [known(file, kept)]


def fill(file: str) -> list[str]:
    past, future = datetime(2020, 1, 1, tzinfo=UTC), datetime(2127, 1, 1, tzinfo=UTC)
    return [
        tokens.add(file, "kitchen-pi", "node", ("serve:camera.*", "publish:>"), future),
        tokens.add(file, "tv", "ui", None, None),
        tokens.add(file, "old", "operator", (), past),
    ]


def test_list_is_a_table_without_any_token_or_digest(file: str) -> None:
    made = fill(file)
    ended = run("token", "list", "--file", file)
    assert (ended.status, ended.stderr) == (0, "")
    assert [re.split(" {2,}", line) for line in ended.stdout.splitlines()] == [
        ["NAME", "ROLE", "EXPIRES", "SCOPES"],
        ["kitchen-pi", "node", "2127-01-01T00:00:00Z", "serve:camera.* publish:>"],
        ["tv", "ui", "never", "call:> subscribe:>"],
        ["old", "operator", "2020-01-01T00:00:00Z (expired)"],
    ]
    roles = re.compile("node|ui|operator|ROLE")
    starts = {min(found.start() for found in roles.finditer(line)) for line in ended.stdout.splitlines()}
    assert len(starts) == 1, "columns"
    assert not any(token in ended.stdout or tokens.digest_of(token) in ended.stdout for token in made)


def test_list_as_json_is_for_programs(file: str) -> None:
    digests = [tokens.digest_of(token) for token in fill(file)]
    ended = run("token", "list", "--json", "--file", file)
    assert (ended.status, ended.stderr) == (0, "")
    kitchen = {"name": "kitchen-pi", "role": "node", "scopes": ["serve:camera.*", "publish:>"]}
    assert json.loads(ended.stdout) == [
        kitchen | {"expires": "2127-01-01T00:00:00Z", "sha256": digests[0]},
        {"name": "tv", "role": "ui", "scopes": list(role_scopes("ui", "tv")), "expires": None, "sha256": digests[1]},
        {"name": "old", "role": "operator", "scopes": [], "expires": "2020-01-01T00:00:00Z", "sha256": digests[2]},
    ]


def test_a_list_of_none_is_a_list(file: str) -> None:
    Path(file).touch()
    assert run("token", "list", "--file", file).stdout.split() == ["NAME", "ROLE", "EXPIRES", "SCOPES"]
    assert json.loads(run("token", "list", "--json", "--file", file).stdout) == []


# Wrong input: exit status 2 and one line


ADD = ("--name", "new", "--role", "node")
WRONG: list[tuple[list[str], str]] = [
    (["add", "--role", "node"], "--name"),
    (["--name", "new"], "--role"),
    ([], "--name and --role"),
    (["new", *ADD], "'new'"),
    (["add", "new", *ADD], "--name"),
    (["remove", "pi"], "'remove'"),
    (["add", "--name", "new", "--role", "admin"], "'admin'"),
    (["add", "--name", "", "--role", "node"], "token[1].name"),
    (["add", "--name", " new", "--role", "node"], "token[1].name"),
    (["add", "--name", "a\nb", "--role", "node"], "token[1].name"),
    (["add", "--name", "\udcff", "--role", "node"], "token[1].name"),
    (["add", "--name", "n" * 201, "--role", "node"], "token[1].name"),
    (["add", "--name", "pi", "--role", "node"], '"pi" has a token'),
    *(([*ADD, "--scope", scope], "--scope") for scope in ("", "*", "call", "call:", "call:>.a", "a\nb", "\x1b[2J")),
    ([*ADD, "--scope", "call:\udcff"], "--scope"),
    ([*ADD, "--scope"], "--scope"),
    ([*ADD, "--expire", "90d"], "--expire"),
    ([*ADD, "--rol", "node"], "--rol"),
    ([*ADD, "extra", "more"], "'extra'"),
    (["add", "pi", *ADD[2:], "more"], "more"),
    (["revoke"], "name"),
    (["revoke", "nobody"], '"nobody"'),
    (["revoke", "pi", "--name", "pi"], "--name"),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG, ids=lambda value: ascii(value)[:60])
def test_wrong_input_is_named_in_one_line_and_changes_nothing(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    tokens.add(file, "pi", "node", None, None)
    before = Path(file).read_text()
    assert named in one_line(in_process(["token", *arguments, "--file", file], capsys))
    assert Path(file).read_text() == before
    assert os.listdir(Path(file).parent) == ["tokens.toml"]


@pytest.mark.parametrize("action", [["list"], ["revoke", "pi"], ["add", "--name", "new", "--role", "ui"]])
def test_a_wrong_file_is_named_with_the_key_and_never_with_a_token(action: list[str], file: str) -> None:
    Path(file).write_text('[[token]]\nname = "pi"\nrole = "node"\nsha256 = "hush-hush"\n')
    line = one_line(run("token", *action, "--file", file))
    assert line.startswith(f"{file}: token[0].sha256: ")
    assert line.endswith("; 64 hexadecimal digits in lower case, the SHA-256 of the token")
    assert "hush" not in line


def test_a_file_is_needed_and_to_list_it_has_to_be_there(file: str) -> None:
    assert "--file" in one_line(run("token", "list"))
    assert one_line(run("token", "list", "--file", file)).startswith(f"{file}: --file: cannot be read: No such file")
    assert '"pi"' in one_line(run("token", "revoke", "pi", "--file", file))
    assert not Path(file).exists()


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("nowhere/tokens.toml", "No such file or directory"),
        ("a-file/tokens.toml", "Not a directory"),
        ("circle", "Too many levels of symbolic links"),
        (f"{'n' * 250}", "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_ends_with_status_1(where: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "circle").symlink_to("circle")
    path = tmp_path / where
    line = one_line(run("token", *ADD, "--file", str(path)), status=1)
    assert line == f"{path}: cannot be written: {why}"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_all(flag: str) -> None:
    ended = run("token", flag)
    assert (ended.status, ended.stderr) == (0, "")
    shown = "add list revoke --file --name --role operator node ui --scope --expires 90d 2027-01-01 --json examples"
    assert [word for word in shown.split() if word not in ended.stdout] == []


# When it expires


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2127-01-01", "2127-01-01T00:00:00Z"),
        ("21270101", "2127-01-01T00:00:00Z"),
        ("2127-01-01T12:30:00Z", "2127-01-01T12:30:00Z"),
        ("2127-01-01T12:30:00.9+02:00", "2127-01-01T10:30:00Z"),
        ("2127-01-01 12:30-05:30", "2127-01-01T18:00:00Z"),
        ("2127-01-01T12:30:00", "2127-01-01T12:30:00Z"),
    ],
)
def test_a_moment_is_in_utc_where_it_does_not_say_otherwise(text: str, moment: str, file: str) -> None:
    """Wherever the machine is: what is in the file does not depend on who has written it."""
    ended = run("token", *ADD, "--expires", text, "--file", file, environ={"TZ": "America/New_York"})
    assert ended.status == 0, ended.stderr
    expires_at = tokens.load(file)[0].principal.expires_at
    assert expires_at is not None and rfc3339_seconds(expires_at) == moment
    assert f"expires = {moment}" in Path(file).read_text()


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("30m", timedelta(minutes=30)),
        ("12h", timedelta(hours=12)),
        ("90d", timedelta(days=90)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_a_span_counts_from_now(text: str, span: timedelta, file: str) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    ended = run("token", *ADD, "--expires", text, "--file", file)
    assert ended.status == 0, ended.stderr
    expires_at = tokens.load(file)[0].principal.expires_at
    assert expires_at is not None
    assert before + span <= datetime.fromtimestamp(expires_at, UTC) <= datetime.now(UTC) + span


NO_TIMES = [
    *("", "0d", "-1d", "1.5d", "90", "90D", "d", "1d12h", " 90d", "90d\n", "never", "tomorrow", "999999w", "12:30"),
    *("2027", "2027-13-01", "2027-02-30", "2027-01-01T25:00", "9999-12-31T23:59:59-05:00", "٩d", "a\nb"),
]


@pytest.mark.parametrize("text", [*NO_TIMES, "2020-01-01", "2020-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00"])
def test_no_time_to_come_is_refused(text: str, capsys: pytest.CaptureFixture[str], file: str) -> None:
    ended = in_process(["token", *ADD, f"--expires={text}", "--file", file], capsys)
    assert "--expires" in one_line(ended)
    assert not Path(file).exists()


# Where it runs


def test_the_file_is_utf_8_whatever_the_terminal_is(file: str) -> None:
    Path(file).write_text("# für die Küche\n", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    made = run("token", *ADD, "--file", file, environ=ascii_only)
    assert (made.status, made.stderr.splitlines()[0]) == (0, f"new is in {file}")
    assert Path(file).read_text(encoding="utf-8").startswith("# für die Küche\n")
    assert known(file, made.stdout).name == "new"


async def test_of_several_at_once_nothing_is_lost(file: str) -> None:
    async def add(name: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "token", "--name", name, "--role", "node", "--file", file),
            cwd=ROOT,
            env=clean_environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        shown, _ = await process.communicate()
        assert process.returncode == 0
        return shown

    names = [f"n{number}" for number in range(4)]
    made = await asyncio.gather(*map(add, names))
    assert [known(file, token.decode()).name for token in made] == names
