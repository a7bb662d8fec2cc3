"""`python -m gateway completion`: let the shell complete the commands and options of `aisopod-gateway`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

import shtab

SHELLS: Final = ("bash", "zsh", "fish")
SCRIPT: Final = "aisopod-gateway"
"""The script that pip installs, and that is completed. A shell cannot complete `python -m gateway`."""


def add_to(commands: Any, parser_of: Callable[[str], argparse.ArgumentParser]) -> None:
    """Add the command to argparse's subparsers; ``parser_of`` makes the whole parser for a program's name."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "completion",
        allow_abbrev=False,
        help="print a script that completes commands and options",
        description=f"Print a script that lets the shell complete {SCRIPT}, its commands and its options.",
        epilog="bash: aisopod-gateway completion bash > ~/.local/share/bash-completion/completions/aisopod-gateway;"
        " zsh: as _aisopod-gateway into a directory of fpath;"
        " fish: as ~/.config/fish/completions/aisopod-gateway.fish",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")

    def run(given: argparse.Namespace) -> int:
        print(shtab.complete(parser_of(SCRIPT), shell=given.shell))
        return 0

    parser.set_defaults(run=run)
