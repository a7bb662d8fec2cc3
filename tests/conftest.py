"""Fixtures that several files share."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
from hypothesis import settings
from pytest_aiohttp import AiohttpClient

from gateway.client import Client
from tests.support.apart import Apart, TwinProcesses, in_cluster, patient
from tests.support.certs import Authority, authority
from tests.support.clustered import nats_for_gateways
from tests.support.forks import shared
from tests.support.nats import NatsServer
from tests.support.patience import Sized
from tests.support.process import Config, EventLoopName, GatewayProcess, StartGateway

# An example that takes long on a busy machine is none that fails.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Have processes get SIGINT also where a shell has started the tests in the background, and so ignores it.

    Files are made with the usual mode, whatever the shell's is: others may not write them. Without `--full`, gateways
    and commands are forked.
    """
    os.umask(0o022)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not config.getoption("--full"):
        shared.allow()


def pytest_unconfigure() -> None:
    """End what forks."""
    shared.end()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `sized` and of what is forked."""
    meaning = "give storms, crowds and random runs their full size, and each gateway and command a new interpreter"
    parser.addoption("--full", action="store_true", help=meaning)


@pytest.fixture(scope="session")
def sized(request: pytest.FixtureRequest) -> Sized:
    """Choose between two sizes: `sized(20, 1000)` is 20, and with `--full` 1000."""
    full = bool(request.config.getoption("--full"))
    return lambda small, large: large if full else small


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that are marked `apart` a second time: see tests.support.apart."""
    if "placed" in metafunc.fixturenames and metafunc.definition.get_closest_marker("apart"):
        metafunc.parametrize("placed", ["alone", "apart"])


@pytest.fixture
def placed() -> str:
    """Whether all peers are connected to one gateway."""
    return "alone"


@pytest.fixture(scope="session")
def nats_for_all() -> Iterator[NatsServer]:
    """A server for all gateways that are `apart`. Each test has a cluster of its own."""
    server = nats_for_gateways()
    with ThreadPoolExecutor(1) as thread:  # here the event loop is pytest's
        thread.submit(asyncio.run, server.__aenter__()).result()
        yield server
        thread.submit(asyncio.run, server.__aexit__(None, None, None)).result()


@pytest.fixture
def aiohttp_client(aiohttp_client: AiohttpClient, placed: str, request: pytest.FixtureRequest) -> AiohttpClient | Apart:
    """Start gateways in this process."""
    return Apart(aiohttp_client, request.getfixturevalue("nats_for_all")) if placed == "apart" else aiohttp_client


@pytest.fixture
async def gateway(
    placed: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StartGateway]:
    """Start gateways, each in its own process; they end with the test. Keywords: see GatewayProcess."""
    async with AsyncExitStack() as stack:

        async def start(config: Config | None = None, **options: Any) -> GatewayProcess:
            return await stack.enter_async_context(GatewayProcess(config, **options))

        async def start_both(config: Config | None = None, **options: Any) -> GatewayProcess:
            configs = in_cluster(request.getfixturevalue("nats_for_all"), dict(config or {}))
            twins = TwinProcesses(list(await asyncio.gather(*(start(one, **options) for one in configs))))
            monkeypatch.setattr(Client, "serve", patient(twins, Client.serve))
            return cast(GatewayProcess, twins)

        yield start if placed == "alone" else start_both


@pytest.fixture(scope="session")
def certificates() -> Authority:
    """The certificate authority that `GatewayProcess(tls=True)` and its peers use."""
    return authority()


@pytest.fixture(params=["tcp", "tls"])
def transport(request: pytest.FixtureRequest) -> str:
    """Run the test over TCP and over TLS: `GatewayProcess(tls=transport == "tls")`."""
    return cast(str, request.param)


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> EventLoopName:
    """Run the test on both event loops: `GatewayProcess(loop=loop)`."""
    return cast(EventLoopName, request.param)
