"""`python -m gateway completion`: the script, used by the shell that it is for."""

import functools
import re
import subprocess
from pathlib import Path

import pytest

from gateway.cli import main
from tests.support.command import run
from tests.support.patience import START
from tests.test_cli import COMMANDS


@functools.cache
def script(shell: str) -> str:
    """Return the script, which is the same for all tests."""
    ended = run("completion", shell)
    assert (ended.status, ended.stderr) == (0, "")
    return ended.stdout


def completed(words: str, cwd: Path | None = None) -> list[str]:
    """What bash offers for a line that ends with the beginning of a word; = and @ are words of their own to it."""
    asking = f"""
        COMP_WORDS=(aisopod-gateway {words}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        COMP_LINE="${{COMP_WORDS[*]}}" COMP_POINT=${{#COMP_LINE}}
        $(complete -p aisopod-gateway | sed 's/.* -F \\([^ ]*\\).*/\\1/') aisopod-gateway
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(
        ["bash", "--norc", "-c", script("bash") + asking],
        capture_output=True,
        text=True,
        timeout=START,
        check=True,
        cwd=cwd,
    )
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("conn", ["connections"]),
        ("call --time", ["--timeout"]),
        ("connections cl", ["close"]),
        ("token --role no", ["node"]),
        ("completion f", ["fish"]),
    ],
)
def test_bash_completes(words: str, offered: list[str]) -> None:
    assert completed(words) == offered


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "params.json").touch()
    (tmp_path / "pa").mkdir()
    (tmp_path / "other").touch()
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_completes_files_after_every_option_that_takes_one(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    for option in re.findall(r"^ +(--[a-z-]+) FILE", capsys.readouterr().out, re.MULTILINE):
        assert sorted(completed(f"{command} {option} par", folder)) == ["params.json"]
        assert sorted(completed(f"{command} {option} = pa", folder)) == ["pa", "params.json"]


def test_bash_completes_the_file_of_parameters(folder: Path) -> None:
    assert completed("call a.b @ par", folder) == ["@params.json"]
    assert completed("call --timeout 5 a.b @ oth", folder) == ["@other"]
    assert sorted(completed("call a.b @", folder)) == ["@other", "@pa/", "@params.json"]
    assert completed("call a.b par", folder) == [], "they are no file without the @"


def test_fish_completes_files(folder: Path) -> None:
    def offered(line: str) -> list[str]:
        asking = f"{script('fish')}\ncomplete -C 'aisopod-gateway {line}'"
        return subprocess.run(
            ["fish", "--no-config", "-c", asking], capture_output=True, text=True, timeout=START, check=True, cwd=folder
        ).stdout.split()

    assert offered("call a.b @par") == ["@params.json"]
    assert offered("call --token-file par") == ["params.json"]


@pytest.mark.parametrize(("shell", "files"), [("zsh", ":FILE:_files"), ("fish", "__fish_complete_path")])
def test_files_in_scripts_for_other_shells(shell: str, files: str) -> None:
    for line in script(shell).splitlines():
        if re.search(r'"--(config|token-file|file)"|-l (config|token-file|file) ', line):
            assert files in line
        if "its parameters" in line:
            assert "_aisopod_gateway_at" in line


@pytest.mark.parametrize(("shell", "begins"), [("zsh", "#compdef aisopod-gateway\n"), ("fish", "")])
def test_scripts_for_other_shells(shell: str, begins: str) -> None:
    assert script(shell).startswith(begins)
    assert all(word in script(shell) for word in ("aisopod-gateway", "connections", "token-file"))


@pytest.mark.parametrize("arguments", [[], ["tcsh"], ["bash", "zsh"]])
def test_wrong_usage(arguments: list[str]) -> None:
    ended = run("completion", *arguments)
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
