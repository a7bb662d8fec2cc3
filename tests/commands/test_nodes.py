"""`python -m gateway nodes`."""

import json
import re
from typing import Any, cast

import pytest

from gateway.client import Client
from gateway.terminal.remote import all_pages
from tests.support.command import Ended
from tests.support.process import StartGateway
from tests.support.remote import misused, run, serving


async def test_nodes(gateway: StartGateway) -> None:
    where = await gateway()
    assert await run(where, "nodes") == Ended(0, "NAME  SINCE  CALLS  REMOTE  METHODS\n", "")
    async with serving(where, "disk.free=df", "who=who"), serving(where, "who=who", name="küche"):
        table = await run(where, "nodes")
        listed = json.loads((await run(where, "nodes", "--json")).stdout)
    assert (table.status, table.stderr) == (0, "")
    heading, first, second = table.stdout.splitlines()
    assert heading.split() == ["NAME", "SINCE", "CALLS", "REMOTE", "METHODS"]
    assert re.fullmatch(r"kitchen-pi  \ds +0 +127\.0\.0\.1:\d+ +disk\.free who", first)
    assert re.fullmatch(r"küche +\ds +0 +127\.0\.0\.1:\d+ +who", second)
    assert [node["name"] for node in listed] == ["kitchen-pi", "küche"]
    assert [method["name"] for method in listed[0]["methods"]] == ["disk.free", "who"]


class Paging:
    """A gateway's answers to `node.list`, two pages of them."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def call(self, method: str, params: Any) -> Any:
        """Answer with the page that is asked for."""
        self.asked.append((method, params["member"], params["after"]))
        return {"nodes": [{"name": f"after {params['after']}"}], "next": "a" if params["after"] == "" else None}


async def test_all_pages_are_listed() -> None:
    gateway = Paging()
    nodes = await all_pages(cast(Client, gateway), "node.list", "nodes", {"member": "x"})
    assert [node["name"] for node in nodes] == ["after ", "after a"]
    assert gateway.asked == [("node.list", "x", ""), ("node.list", "x", "a")]


@pytest.mark.parametrize("arguments", [["extra"], ["--history"], ["--url"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    misused(capsys, "nodes", *arguments)
