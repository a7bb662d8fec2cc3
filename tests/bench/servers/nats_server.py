"""nats-server with a WebSocket listener: `python -m tests.bench.servers.nats_server PROGRAM CONFIG`.

This process becomes the server; a child of it waits until that has written where it listens, and says so.
"""

import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 10.0


def say_where(pid: int, directory: Path) -> None:
    """Wait for the ports file of nats-server, and write the line that all servers write. TimeoutError if none comes."""
    ports = directory / f"nats-server_{pid}.ports"
    deadline = time.monotonic() + PATIENCE
    while not ports.exists() or not (text := ports.read_text(encoding="utf-8")).endswith("}"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{ports} was not written")
        time.sleep(0.01)
    listener = urlsplit(json.loads(text)["websocket"][0]).netloc
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
