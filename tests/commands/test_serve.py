"""`python -m gateway serve`; what it does without the word is in test_cli.py."""

import json

from tests.support.command import run
from tests.support.process import StartGateway
from tests.support.remote import Command


async def test_serve_is_what_it_does_without_a_command(gateway: StartGateway) -> None:
    """The word stands behind the options here; GatewayProcess fails unless it serves and ends well."""
    where = await gateway({"log": {"level": "error"}}, arguments=["--log-level", "info", "serve"])
    assert where.port > 0


async def test_options_stand_on_both_sides() -> None:
    arguments = ("--host", "127.0.0.2", "--port", "1", "serve", "--port", "0")
    async with Command(*arguments, where=None) as serving:
        await serving.until(lambda serving: "server.started" in serving.stdout)
        serving.process.terminate()
        assert (await serving.end()).status == 0
    assert json.loads(serving.stdout.splitlines()[0])["listeners"][0].startswith("127.0.0.2:")


def test_a_wrong_value_is_blamed_on_its_flag() -> None:
    ended = run("serve", "--port", "http")
    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr.startswith("flag --port: server.port: ")


def test_it_takes_no_words() -> None:
    ended = run("serve", "gateway.toml")
    assert (ended.status, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
