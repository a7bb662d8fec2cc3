"""`python -m gateway completion`: the script, used by the shell that it is for."""

import subprocess

import pytest

from tests.support.command import run
from tests.support.patience import START


def completed(words: str) -> list[str]:
    """What bash offers for a line that ends with the beginning of a word."""
    script = run("completion", "bash").stdout
    asking = f"""
        COMP_WORDS=(aisopod-gateway {words}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
        COMP_LINE="${{COMP_WORDS[*]}}" COMP_POINT=${{#COMP_LINE}}
        $(complete -p aisopod-gateway | sed 's/.* -F \\([^ ]*\\).*/\\1/') aisopod-gateway
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    ended = subprocess.run(
        ["bash", "--norc", "-c", script + asking], capture_output=True, text=True, timeout=START, check=True
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


@pytest.mark.parametrize(("shell", "begins"), [("zsh", "#compdef aisopod-gateway\n"), ("fish", "")])
def test_scripts_for_other_shells(shell: str, begins: str) -> None:
    ended = run("completion", shell)
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.stdout.startswith(begins)
    assert all(word in ended.stdout for word in ("aisopod-gateway", "connections", "token-file"))


@pytest.mark.parametrize("arguments", [[], ["tcsh"], ["bash", "zsh"]])
def test_wrong_usage(arguments: list[str]) -> None:
    ended = run("completion", *arguments)
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
