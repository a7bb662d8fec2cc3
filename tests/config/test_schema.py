"""The settings, their defaults, and the file that explains them."""

import re
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import tomli

from gateway.config import Config, Server, load, parse

DEFAULTS_FILE = Path(__file__).parents[2] / "conf" / "gateway.toml"


def test_parse_fills_in_the_defaults() -> None:
    config = parse({"server": {"port": 0}, "heartbeat": {"interval": 1, "timeout": 0.5}})
    assert config.server == Server(port=0)
    assert (config.heartbeat.interval, config.heartbeat.timeout) == (1.0, 0.5)
    assert type(config.heartbeat.interval) is float
    assert config.limits == Config().limits
    assert parse({}) == parse({"server": {}, "cluster": {}, "auth": {"jwt": {}}}) == Config()


def test_the_contract_s_defaults() -> None:
    config = Config()
    assert (config.server.host, config.server.port, config.auth.mode) == ("127.0.0.1", 8765, "none")
    assert (config.heartbeat.interval, config.heartbeat.timeout) == (30.0, 10.0)
    assert (config.server.handshake_timeout, config.server.receive_timeout) == (5.0, 60.0)
    assert (config.server.close_timeout, config.server.drain_timeout) == (2.0, 10.0)
    assert (config.limits.max_message_bytes, config.limits.max_outbox_bytes) == (1_048_576, 4_194_304)
    assert (config.limits.call_timeout, config.limits.max_call_timeout) == (30.0, 600.0)
    assert (config.limits.rate, config.limits.max_connections_per_address) == (0.0, 0)
    assert (config.server.allowed_hosts, config.server.trusted_proxies) == ((), ())


def test_a_configuration_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(AttributeError):
        cast(Any, config.server).port = 1
    assert hash(config) == hash(parse({}))


def test_the_file_of_defaults_is_the_defaults() -> None:
    data = tomli.loads(DEFAULTS_FILE.read_text())
    assert parse(data) == Config()
    assert load(str(DEFAULTS_FILE), {}, {}) == Config()
    # Every key is there, none is left that has gone, and a number has the type that it has in the program.
    assert msgspec.json.encode(data) == msgspec.json.encode(Config())


def test_the_file_of_defaults_explains_every_key() -> None:
    explained = False
    for line in DEFAULTS_FILE.read_text().splitlines():
        if re.match(r"\w+ = ", line):
            assert explained, line
        else:
            explained = line.startswith("# ") and len(line) > 10
