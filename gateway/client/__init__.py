"""The Python client: calls, events and nodes over one connection that reconnects by itself.

    async with connect("ws://127.0.0.1:8765/ws") as gateway:
        print(await gateway.call("camera.snap", {"width": 640}))

It runs on the caller's event loop, and has no thread and no global state.
"""

from gateway.client.backoff import Backoff
from gateway.client.client import Client, connect
from gateway.client.connection import State
from gateway.client.errors import CallError, ConnectionLost
from gateway.client.sending.pending import Missed, Running
from gateway.client.sending.streams import Stream
from gateway.client.serving import ServedCall
from gateway.client.subscriptions import Event, Gap, Subscription

__all__ = [
    "Backoff",
    "CallError",
    "Client",
    "ConnectionLost",
    "Event",
    "Gap",
    "Missed",
    "Running",
    "ServedCall",
    "State",
    "Stream",
    "Subscription",
    "connect",
]
