"""The configuration: every setting of the gateway, and where its value comes from.

A process calls `load`, which takes the defaults, then a TOML file, then the environment, then flags. `parse` takes only
tables, for tests and for embedding. Both return a checked `Config`, or raise `ConfigError`, whose text is one line for
the operator. Structs that are constructed directly are not checked.
"""

from gateway.config.schema import Auth, Cluster, Config, Heartbeat, Jwt, Log, Server
from gateway.config.sources import load, parse, read_file, read_toml, source_of
from gateway.config.types import ConfigError, is_loopback

__all__ = [
    "Auth",
    "Cluster",
    "Config",
    "ConfigError",
    "Heartbeat",
    "Jwt",
    "Log",
    "Server",
    "is_loopback",
    "load",
    "parse",
    "read_file",
    "read_toml",
    "source_of",
]
