"""The bare servers that the gateway is measured beside."""

import json


def announce(port: int) -> None:
    """Say where the server listens, in the words of the gateway's log."""
    print(json.dumps({"event": "server.started", "listeners": [f"127.0.0.1:{port}"]}), flush=True)
