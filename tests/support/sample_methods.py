"""Methods for tests: those that the examples of the JSON-RPC specification call, and some that misbehave."""

import asyncio
from typing import Any

import msgspec
from msgspec import Raw

from gateway.api import AUTHENTICATED, CALL, Connection, method

heard: list[bytes] = []
"""The parameters of the notifications `update`, `notify_hello` and `notify_sum`."""


class Subtraction(msgspec.Struct):
    """In the order of positions."""

    minuend: int
    subtrahend: int


@method("subtract", scope=AUTHENTICATED)
def subtract(peer: Connection, params: Subtraction) -> int:
    """Subtract one number from another."""
    return params.minuend - params.subtrahend


@method("sum", scope=AUTHENTICATED)
def add(peer: Connection, params: bytes) -> int:
    """Add any count of numbers."""
    return sum(msgspec.json.decode(params, type=list[int]))


@method("get_data", scope=AUTHENTICATED)
def get_data(peer: Connection) -> list[Any]:
    """Give the example's data."""
    return ["hello", 5]


@method("update", scope=AUTHENTICATED)
def update(peer: Connection, params: bytes) -> None:
    """Take a notification."""
    heard.append(params)


@method("notify_hello", scope=AUTHENTICATED)
def notify_hello(peer: Connection, params: bytes) -> None:
    """Take a notification."""
    heard.append(params)


@method("notify_sum", scope=AUTHENTICATED)
def notify_sum(peer: Connection, params: bytes) -> None:
    """Take a notification."""
    heard.append(params)


@method("echo", scope=CALL)
async def echo(peer: Connection, params: bytes) -> Raw:
    """Return the parameters, from a task."""
    return Raw(params or b"null")


@method("wait", scope=CALL)
async def wait(peer: Connection) -> None:
    """Take for ever."""
    await asyncio.Event().wait()


@method("ask", scope=CALL)
async def ask(peer: Connection, params: bytes) -> Any:
    """Call the method `answer` of whoever calls this one, with the same parameters."""
    return await peer.call("answer", Raw(params or b"[]"), timeout=5.0)


@method("fail", scope=CALL)
def fail(peer: Connection) -> None:
    """Have a defect."""
    raise ValueError("swordfish")
