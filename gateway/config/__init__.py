"""The configuration: every setting of the gateway, and where its value comes from.

`load` is what a process calls: defaults, then a TOML file, then the environment, then flags. `parse` takes the tables
alone, for tests and for embedding. Both return a checked `Config` or raise `ConfigError`, whose text is the one line
for the operator. Structs that are constructed directly are not checked.
"""

from gateway.config.schema import Auth, Config, Heartbeat, Jwt, Log, Server
from gateway.config.sources import load, parse, source_of
from gateway.config.types import ConfigError, is_loopback

__all__ = [
    "Auth",
    "Config",
    "ConfigError",
    "Heartbeat",
    "Jwt",
    "Log",
    "Server",
    "is_loopback",
    "load",
    "parse",
    "source_of",
]
