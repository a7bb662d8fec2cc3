"""The files of the console: what is served, with which headers, and that nothing in them asks another host."""

import re
import subprocess

import pytest
from pytest_aiohttp import AiohttpClient

from gateway.app import create_app
from gateway.config import parse
from gateway.console.pages import load
from tests.support.process import ROOT

FILES = load()


async def test_the_console_is_served_at_the_root(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(parse({})))
    async with client.get("/") as answer:
        page = await answer.text()
        assert answer.status == 200
        assert answer.content_type == "text/html"
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        async with client.get(f"/{path}") as answer:
            assert answer.status == 200, path
            assert (await answer.read()) == FILES[path.removeprefix("console/")].body


async def test_the_javascript_client_is_served_beside_the_page(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(parse({})))
    async with client.get("/console/gateway-client.js") as answer:
        assert (answer.status, answer.content_type) == (200, "text/javascript")
        assert await answer.read() == (ROOT / "gateway/javascript/gateway-client.js").read_bytes()


def test_where_a_token_is_needed_the_page_knows_it() -> None:
    plain, login = load(), load(login=True)
    assert b"data-login" in login["index.html"].body
    assert b"data-login" not in plain["index.html"].body
    assert login["index.html"].etag != plain["index.html"].etag


async def test_every_answer_has_a_strict_policy(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(parse({})))
    for path in ("/", "/console/console.js", "/console/vendor/uplot.css", "/console/none.js", "/console/../setup.cfg"):
        async with client.get(path) as answer:
            policy = answer.headers.get("Content-Security-Policy", "")
            if answer.status == 200 or path == "/console/none.js":
                assert policy.startswith("default-src 'none'")
                assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.status == (404 if "none" in path or "setup" in path else 200)


async def test_a_file_that_has_not_changed_is_not_sent_again(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(parse({})))
    async with client.get("/console/console.js") as answer:
        etag = answer.headers["ETag"]
    async with client.get("/console/console.js", headers={"If-None-Match": etag}) as answer:
        assert (answer.status, await answer.read()) == (304, b"")
    async with client.get("/console/console.js", headers={"If-None-Match": '"other"'}) as answer:
        assert answer.status == 200


async def test_a_name_that_is_not_the_gateways_gets_nothing(aiohttp_client: AiohttpClient) -> None:
    client = await aiohttp_client(create_app(parse({})))
    async with client.get("/", headers={"Host": "evil.example"}) as answer:
        assert answer.status == 421


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("vendor/")])
def test_nothing_names_another_host(name: str) -> None:
    text = FILES[name].body.decode()
    assert [url for url in re.findall(r"https?://[^\s\"'`)]+", text) if "www.w3.org" not in url] == []


def test_what_is_vendored_is_what_the_script_names() -> None:
    done = subprocess.run([ROOT / "scripts/vendor", "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
