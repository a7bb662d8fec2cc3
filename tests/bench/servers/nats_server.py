"""nats-server, with a WebSocket listener or without: `python -m tests.bench.servers.nats_server PROGRAM CONFIG`.

This process becomes the server; a child of it waits until that has written where it listens, and says so.
"""

import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.nats import ports

PATIENCE = 10.0


def say_where(pid: int, directory: Path) -> None:
    """Wait for the ports file of nats-server, and write the line that all servers write. TimeoutError if none comes."""
    deadline = time.monotonic() + PATIENCE
    while (found := ports(pid, directory)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nats-server has not written its ports into {directory}")
        time.sleep(0.01)
    listener = urlsplit(found.get("websocket", found["nats"])[0]).netloc
    print(json.dumps({"event": "server.started", "listeners": [listener]}), flush=True)


def main(program: str, config: str) -> None:
    """Become nats-server."""
    pid = os.getpid()
    if os.fork() == 0:
        say_where(pid, Path(config).parent)
        return
    os.execv(program, [program, "--config", config])


if __name__ == "__main__":
    main(*sys.argv[1:])
