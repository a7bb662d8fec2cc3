"""The task of a method, as a request in flight: who ends it, and for which reason."""

import asyncio
import sys

import pytest

from gateway import errors
from gateway.rpc.jsonrpc import decode
from gateway.rpc.method import collect, method
from gateway.rpc.requests import Running
from tests.support.rpc import Listing


@method("forever", scope="call:forever")
async def forever(peer: Listing) -> None:
    """Wait."""
    await asyncio.Event().wait()


@method("onward", scope="call:onward", forwards=True)
async def onward(peer: Listing) -> None:
    """Be sent on."""


async def running() -> Running:
    (entry,) = collect(forever)
    found = Running(Listing(), entry, decode(b'{"jsonrpc":"2.0","id":1,"method":"forever"}'), None, 0.0)
    found.task = asyncio.create_task(asyncio.Event().wait())
    return found


async def test_the_first_reason_for_the_end_stands() -> None:
    it = await running()
    it.cancel(errors.TIMEOUT)
    it.cancel(errors.CANCELLED)
    it.abandon()
    it.drained()
    assert (it.verdict, it.abandoned) == (errors.TIMEOUT, False)
    assert it.task is not None
    assert it.task.cancelling() == 1


async def test_one_whose_caller_is_gone_is_abandoned() -> None:
    it = await running()
    it.abandon()
    assert (it.verdict, it.abandoned) == (errors.CANCELLED, True)


@pytest.mark.parametrize(("function", "kept"), [(forever, b""), (onward, b'"00-1"')])
async def test_its_message_is_not_kept(function: object, kept: bytes) -> None:
    (entry,) = collect(function)
    data = b'{"jsonrpc":"2.0","id":1,"method":"m","params":[],"traceparent":"00-1"}'
    before = sys.getrefcount(data)
    found = Running(Listing(), entry, decode(data), None, 0.0)
    assert bytes(found.traceparent) == kept
    assert sys.getrefcount(data) == before
