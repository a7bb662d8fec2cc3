# The project's own Python environment, `.venv` beside setup.cfg. Sourced by the scripts beside it, after
# `set -euo pipefail`.
#
#   ensure_venv run      makes or completes the environment for the gateway alone
#   ensure_venv test     the same with what the tests and the tools need
#   venv_ready KIND      is true when ensure_venv would have nothing to do
#   ensure_packages P…   makes sure of Debian packages
#
# Sets `project` and `python`. All that is said goes to standard error: standard output is the gateway's log.
#
# What is installed is known: the versions and digests of requirements/*.txt, which scripts/lock renews. With NEWEST set
# to anything it is instead the newest that setup.cfg allows, in an environment of its own, `.venv-newest`, which is
# brought up to date once a day.
#
# The install is editable: a change of the source needs no new install, and the version, the command
# `aisopod-gateway` and other projects' tests see the same files.

project=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
venv=$project/.venv${NEWEST:+-newest}
python=$venv/bin/python
# One line: "<fingerprint> <kind>" when complete, "unfinished" meanwhile. An environment without it was made by
# hand: it is completed, not thrown away.
stamp=$venv/.stamp

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }

# What the environment was made from. A project that was moved and an interpreter that was replaced count too.
fingerprint() {
  {
    cat "$project/setup.cfg"
    if [[ -z ${NEWEST:-} ]]; then cat "$project"/requirements/*.txt; else date +%F; fi
    printf '%s\n' "$project"
    readlink -f "$python"
  } | sha256sum | cut -c 1-64
}

venv_ready() {
  local made kind
  [[ -r $stamp && -x $python ]] || return 1
  read -r made kind <"$stamp" || return 1
  [[ $kind == test || $kind == "$1" ]] && [[ $made == "$(fingerprint)" ]]
}

# Installs Debian packages where that is possible, and otherwise says how.
ensure_packages() {
  local command="apt-get install -y --no-install-recommends $*"
  if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    die "missing here: $*. As root: $command"
  fi
  say "installing $*"
  { DEBIAN_FRONTEND=noninteractive apt-get -qq update &&
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@"; } >&2 ||
    die "this failed: $command"
}

# Prints the first Python that can make an environment. PYTHON=… names the only one to try.
find_python() {
  local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3)
  local usable='import ensurepip, sys, venv; ensurepip.version(); sys.exit(sys.version_info < (3, 11))'
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c "$usable" >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

install() {
  PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip install -q --no-input "$@" >&2 || die "pip could not install ${*: -1}"
}

make_venv() {
  local base extra=server
  if [[ $1 == test ]]; then extra=test; fi
  if [[ -e $stamp && $(<"$stamp") == unfinished ]] || ! "$python" -m pip --version >/dev/null 2>&1; then
    if ! base=$(find_python); then
      if [[ -z ${PYTHON:-} ]]; then ensure_packages python3-venv; fi
      base=$(find_python) || die "needs Python 3.11 or later with its venv module"
    fi
    say "making $venv, once; this takes a minute"
    rm -rf "$venv"
    mkdir "$venv"
    echo unfinished >"$stamp"
    "$base" -m venv "$venv" >&2
  else
    say "bringing $venv up to date"
    echo unfinished >"$stamp"
  fi
  if [[ -n ${NEWEST:-} ]]; then
    install --upgrade --upgrade-strategy eager -e "$project[$extra]"
  else
    install --require-hashes -r "$project/requirements/$extra.txt"
    install --no-deps --no-build-isolation -e "$project" # of which pip can check no digest
  fi
  printf '%s %s\n' "$(fingerprint)" "$1" >"$stamp"
}

# Two scripts that start at once: one makes the environment, the other waits for it.
ensure_venv() {
  local lock
  if venv_ready "$1"; then return; fi
  exec {lock}>"$venv.lock"
  if ! flock --nonblock "$lock"; then
    say "waiting for another script that makes $venv"
    flock "$lock"
  fi
  if ! venv_ready "$1"; then make_venv "$1"; fi
  exec {lock}>&-
}
