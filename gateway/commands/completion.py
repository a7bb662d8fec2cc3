"""`python -m gateway completion`: let the shell complete the commands and options of `aisopod-gateway`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

import shtab

from gateway.terminal.output import show

SHELLS: Final = ("bash", "zsh", "fish")
SCRIPT: Final = "aisopod-gateway"
"""The script that pip installs, and that is completed. A shell cannot complete `python -m gateway`."""

_EPILOG: Final = """\
where the script belongs:
  bash  ~/.local/share/bash-completion/completions/aisopod-gateway
  zsh   _aisopod-gateway, in a directory of fpath
  fish  ~/.config/fish/completions/aisopod-gateway.fish
"""

_BASH: Final = """
_aisopod_gateway_at() {
  [[ $1 == @* ]] || return
  local file
  compgen -f -- "${1#@}" | while IFS= read -r file; do
    [[ -d $file ]] && file+=/
    printf '@%q\\n' "$file"
  done
}

# bash cuts words at = and @, so that --config=a is three words, and @a is two. To the completion they are --config and
# a, and @a.
_aisopod_gateway() {
  local words=() word glue=
  for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
    if [[ $word == *@ ]]; then
      words+=("@")
      glue=1
    elif [[ $glue ]]; then
      words[-1]+=$word
      glue=
    elif [[ $word == = ]]; then
      words+=("")
      glue=1
    else
      words+=("$word")
    fi
  done
  COMP_WORDS=("${words[@]}")
  COMP_CWORD=$(( ${#words[@]} - 1 ))
  _shtab_aisopod_gateway
  if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == @*/ ]]; then
    compopt -o nospace
  fi
}
"""
_BASH_END: Final = "\ncomplete -o bashdefault -F _aisopod_gateway aisopod-gateway"
_ZSH: Final = """
_aisopod_gateway_at() {
  compset -P '@' && _files
}
"""
_FISH: Final = """
function _aisopod_gateway_at
  set -l token (commandline -ct)
  string match -q '@*' -- $token
  and __fish_complete_path (string sub -s 2 -- $token) | string replace -r '^' '@'
end
"""
_COMPLETERS: Final[dict[str, Any]] = {
    "FILE": shtab.FILE,
    "PARAMS": {
        "bash": "_aisopod_gateway_at",
        "zsh": "_aisopod_gateway_at",
        "fish": "(_aisopod_gateway_at)",
    },
}
"""How shells complete an argument, by its metavar. PARAMS is @ and a file, or what no shell knows."""


def completed(action: argparse.Action) -> argparse.Action:
    """Have shells complete the argument if they can; returns it."""
    if isinstance(action.metavar, str) and action.metavar in _COMPLETERS:
        vars(action)["complete"] = _COMPLETERS[action.metavar]
    return action


def add_to(commands: Any, parser_of: Callable[[str], argparse.ArgumentParser]) -> None:
    """Add the command to argparse's subparsers; ``parser_of`` makes the whole parser for a program's name."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "completion",
        allow_abbrev=False,
        help="print a script that completes commands, options and files",
        description=f"Print a script that lets the shell complete {SCRIPT}: its commands,\n"
        "its options, and files after @ and after options that take one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")

    def run(given: argparse.Namespace) -> int:
        preamble = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}[given.shell]
        script = shtab.complete(parser_of(SCRIPT), shell=given.shell, preamble=preamble)
        show(script + (_BASH_END if given.shell == "bash" else ""))
        return 0

    parser.set_defaults(run=run)
