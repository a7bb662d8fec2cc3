"""A load generator in a process of its own: `python -m tests.bench.load JOB`, JOB a JSON object.

Its `kind` is a name in `JOBS`; it names the server's `port` and `pid`, a file of `headers`, and whether the server
`welcomes`, `refuses` or speaks `socketio` or `nats`, and whether its connections are `kept`. What else it holds, and
the result, is told by the function of that kind. The result is a line of JSON on standard output.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.client import Target, say
from tests.bench.frames import PeerError
from tests.bench.load_churn import churn
from tests.bench.load_events import events
from tests.bench.load_fanout import fanout
from tests.bench.load_hold import hold
from tests.bench.load_routed import routed
from tests.bench.load_rpc import rpc
from tests.bench.load_shared import shared

Job = dict[str, Any]
JOBS: dict[str, Callable[[Target, Job], dict[str, Any]]] = {
    "rpc": rpc,
    "routed": routed,
    "fanout": fanout,
    "events": events,
    "shared": shared,
    "churn": churn,
    "hold": hold,
}


def target_of(job: Job) -> Target:
    """Where the server of a job is, and how a connection to it begins. Raises OSError."""
    headers = tuple(Path(job["headers"]).read_text(encoding="utf-8").splitlines())
    spoken = {name: job.get(name, False) for name in ("socketio", "nats", "kept")}
    return Target(job["port"], job["pid"], job["welcomes"], headers, job["refuses"], **spoken)


def main(text: str) -> int:
    """Do the job and say its result; a failure is one line on standard error and status 1."""
    job = json.loads(text)
    try:
        target = target_of(job)
        say(JOBS[job["kind"]](target, job))
    except (OSError, PeerError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
