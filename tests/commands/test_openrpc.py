"""`python -m gateway openrpc`."""

import json

import pytest

from tests.support.process import StartGateway
from tests.support.remote import misused, run, serving


async def test_the_document_names_all_methods(gateway: StartGateway) -> None:
    where = await gateway()
    async with serving(where, "disk.free=df"):
        ended = await run(where, "openrpc")
    document = json.loads(ended.stdout)
    assert (ended.status, ended.stderr) == (0, "")
    assert document["openrpc"].startswith("1.3.")
    assert {"rpc.discover", "disk.free"} <= {method["name"] for method in document["methods"]}


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    misused(capsys, "openrpc", "extra")
