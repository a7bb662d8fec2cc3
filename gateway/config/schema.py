"""Every setting of the gateway: its name, type, default, unit and bounds. Pure.

Durations are seconds, sizes are bytes. An empty string means "none", because TOML has no null. Structs that are
constructed directly are not checked.
"""

from collections.abc import Callable, Iterator
from types import UnionType
from typing import Any, Final, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from gateway.config.types import (
    Algorithm,
    AuthMode,
    Batch,
    ClusterName,
    Count,
    CountOrZero,
    EventLoop,
    FilePath,
    HistoryBytes,
    Host,
    ListenHost,
    LogFormat,
    LogLevel,
    MemberName,
    MemberTimeout,
    MessageBytes,
    ModuleName,
    NatsUrl,
    Origin,
    OutboxBytes,
    Port,
    Proxy,
    Rate,
    RegistrationBytes,
    Replicas,
    Seconds,
    SecondsOrZero,
    SocketPath,
    Storage,
    Subprotocol,
    Switch,
    Text,
    TopicPattern,
)


class Server(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[server]`: where the gateway listens, and the deadlines of a connection's beginning and end.

    `host` is one address or name, or several in an array. If `unix_socket` is set, the gateway listens there instead of
    on `host` and `port`. `port` 0 takes a free port, the same for every address.
    If `reuse_port` is true, several processes of one user listen on the same port, and each gets a share of the
    connections. `tls_cert` (with its chain) and `tls_key` are PEM files; both are set or neither is. On `ops_port` of
    `ops_host`, which is one address or several as well, there are only `/healthz`, `/readyz` and `/metrics`, without
    TLS; 0: nowhere.

    `handshake_timeout` is one budget from TCP accept, through TLS and the request head, to the 101, and to the
    credential of a peer that brings it in a message. Any other response has the same time again to leave.
    `receive_timeout` is the longest time without a complete message, a control frame or 16 KiB of a message.
    `close_timeout` is how long a peer may take to answer a close frame. `drain_timeout` is how long calls in flight may
    go on after SIGTERM; 0: the gateway does not wait for them.
    `keepalive_timeout` is how long an HTTP connection may stay idle between two requests. `hold_timeout` is how long a
    connection that has lost its link is held at most, if its client has asked for that; 0: none is.

    If `allowed_hosts` is empty, loopback names are allowed on loopback, and any name elsewhere. If `allowed_origins` is
    empty, the origin that `Host` names is allowed. `trusted_proxies` are the peers whose X-Forwarded-For or Forwarded
    is believed; "unix" stands for every peer on a Unix socket. `subprotocols` are chosen if a client offers them.
    """

    host: ListenHost | tuple[ListenHost, ...] = "127.0.0.1"
    port: Port = 8765
    unix_socket: SocketPath = ""
    reuse_port: Switch = False
    ops_port: Port = 0
    ops_host: ListenHost | tuple[ListenHost, ...] = "127.0.0.1"
    tls_cert: FilePath = ""
    tls_key: FilePath = ""
    handshake_timeout: Seconds = 5.0
    receive_timeout: Seconds = 60.0
    close_timeout: Seconds = 2.0
    drain_timeout: SecondsOrZero = 10.0
    keepalive_timeout: Seconds = 75.0
    hold_timeout: SecondsOrZero = 30.0
    compression: Switch = False
    event_loop: EventLoop = "uvloop"
    allowed_hosts: tuple[Host, ...] = ()
    allowed_origins: tuple[Origin, ...] = ()
    trusted_proxies: tuple[Proxy, ...] = ()
    subprotocols: tuple[Subprotocol, ...] = ("jsonrpc",)

    @property
    def hosts(self) -> tuple[str, ...]:
        """`host`, always as a tuple."""
        return (self.host,) if isinstance(self.host, str) else self.host

    @property
    def ops_hosts(self) -> tuple[str, ...]:
        """`ops_host`, always as a tuple."""
        return (self.ops_host,) if isinstance(self.ops_host, str) else self.ops_host


class Heartbeat(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[heartbeat]`: a peer from which nothing has come for `interval` seconds gets a ping.

    It is taken for dead if it sends no byte within `timeout` seconds after that.
    """

    interval: Seconds = 30.0
    timeout: Seconds = 10.0


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[limits]`: what one connection, one address and all connections together may use.

    `max_connections` counts WebSockets. `max_http_connections` counts what is accepted and not upgraded: TLS
    handshakes, requests, and HTTP connections between two requests. `max_connections_per_address` bounds both, each by
    itself. `max_connections_per_address` and `max_connections_per_principal` 0: no limit. An IPv6 address counts as its
    /64. `reserved_for_admin` places of `max_connections` are for principals with the scope admin. That bound and
    `max_connections_per_principal` do not hold in mode none, in which all connections have the same principal.
    `max_unauthenticated` bounds the connections that have not brought their credential yet, and
    `max_unauthenticated_per_address` such connections of one address.

    `max_message_bytes` is inclusive. `max_in_flight` counts the requests of a connection, `max_node_in_flight` the
    calls that a node has not answered, `max_batch` the elements of one batch. `call_timeout` is the deadline of a
    call, `max_call_timeout` the longest deadline that a caller may ask for. `max_registration_bytes` bounds what one
    node says of its methods. A connection is cut if its outbox stays over `max_outbox_bytes` for `outbox_timeout`; 0:
    at once. `max_principal_bytes` bounds what is held for all connections of a principal, except
    in mode none. `max_held` bounds the connections that have lost their link, and `max_held_bytes` what is kept for one
    that has or may; 0: twice `max_outbox_bytes`. `max_waiting` bounds the calls that wait for one node to come.

    `rate` is the requests per second of one connection; 0: no limit. `burst` is how many may come at once; 0: as many
    as `rate` allows in a second, and at least one. `control_rate` is the pings, pongs and empty fragments per second of
    one connection, and ten times as many may come at once; 0: no limit.
    """

    max_connections: Count = 10_000
    max_http_connections: Count = 1000
    max_connections_per_address: CountOrZero = 0
    max_connections_per_principal: CountOrZero = 1000
    reserved_for_admin: CountOrZero = 16
    max_unauthenticated: Count = 1000
    max_unauthenticated_per_address: Count = 100
    max_message_bytes: MessageBytes = 1_048_576
    max_in_flight: Count = 64
    max_node_in_flight: Count = 256
    max_registration_bytes: RegistrationBytes = 262_144
    max_batch: Batch = 100
    call_timeout: Seconds = 30.0
    max_call_timeout: Seconds = 600.0
    max_outbox_bytes: OutboxBytes = 4_194_304
    outbox_timeout: SecondsOrZero = 5.0
    max_principal_bytes: Count = 268_435_456
    max_held: CountOrZero = 1000
    max_held_bytes: CountOrZero = 0
    max_waiting: CountOrZero = 256
    rate: Rate = 0.0
    burst: CountOrZero = 0
    control_rate: Rate = 100.0


class Jwt(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[auth.jwt]`: how a JWT (RFC 7519) is verified. Exactly one of the three files has the keys.

    If `issuer` or `audience` is set, the JWT must have that claim with this value.
    """

    algorithms: tuple[Algorithm, ...] = ()
    secret_file: FilePath = ""
    public_key_file: FilePath = ""
    jwks_file: FilePath = ""
    issuer: Text = ""
    audience: Text = ""


class Auth(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[auth]`: who may connect. Mode none makes every peer an operator, so it is meant for loopback.

    `allow_insecure` lets mode none listen on any address. `tokens_file` is the TOML file of mode token. A connection is
    warned `expiry_notice` seconds before its credential expires; 0: it is not warned.
    """

    mode: AuthMode = "none"
    allow_insecure: Switch = False
    tokens_file: FilePath = ""
    expiry_notice: SecondsOrZero = 60.0
    jwt: Jwt = Jwt()


class Events(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[events]`: which messages are kept for subscribers that come back, and how many topics there may be.

    At most `history_count` messages of each topic are kept, each for `history_age` seconds at most, and at most
    `history_bytes` of all topics together. If any of the three is 0, there is no history. `conflate` names topics, or
    patterns of them, of which a subscriber gets only the latest of the messages that could not be sent yet.
    """

    history_count: CountOrZero = 100
    history_age: SecondsOrZero = 300.0
    history_bytes: HistoryBytes = 67_108_864
    max_topics: Count = 10_000
    conflate: tuple[TopicPattern, ...] = ()


class Log(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[log]`: the lowest level that is logged, and the format: one JSON object per line, or text for a terminal."""

    level: LogLevel = "info"
    format: LogFormat = "json"


class Cluster(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[cluster]`: the NATS that this gateway shares with others. If `nats` is empty it is alone.

    `nats` are servers that are tried in turn; those with tls:// refuse plaintext. `name` is the beginning of all
    subjects, and the name of the stream of events: all members of a cluster have the same. `member` is this gateway's
    name for people; if it is empty, it is where the gateway listens.

    At NATS the gateway is a `user` with the password in `password_file`, or has the token in `token_file`, or the
    credentials in `credentials_file`, which is a .creds file. `tls_ca` has the certificates that are trusted instead of
    the system's, `tls_cert` and `tls_key` are this gateway's own certificate, all PEM.

    `storage` is where NATS keeps the events, `replicas` on how many of its servers. A member of which nothing is heard
    for `member_timeout` seconds is taken for dead.
    """

    nats: tuple[NatsUrl, ...] = ()
    name: ClusterName = "gateway"
    member: MemberName = ""
    user: Text = ""
    password_file: FilePath = ""
    token_file: FilePath = ""
    credentials_file: FilePath = ""
    tls_ca: FilePath = ""
    tls_cert: FilePath = ""
    tls_key: FilePath = ""
    storage: Storage = "file"
    replicas: Replicas = 1
    member_timeout: MemberTimeout = 1.5


class Tracing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[tracing]`: an OpenTelemetry span for each routed call. The OTEL_ variables say where the spans go."""

    enabled: Switch = False


class Methods(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[methods]`: `modules` are imported at the start, and the methods that they define are served."""

    modules: tuple[ModuleName, ...] = ()


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration, one member per section. `Config()` is valid, and is what `conf/gateway.toml` says."""

    server: Server = Server()
    heartbeat: Heartbeat = Heartbeat()
    limits: Limits = Limits()
    auth: Auth = Auth()
    events: Events = Events()
    log: Log = Log()
    cluster: Cluster = Cluster()
    methods: Methods = Methods()
    tracing: Tracing = Tracing()


KeyPath = tuple[str, ...]
"""The name of a key or a table, part by part."""


class Key(NamedTuple):
    """One key as its Struct declares it. If the key is an array, all but `array` and `alone` is about its items."""

    plain: Any  # the type alone, so that a wrong type and a wrong value are told apart
    bounded: Any  # the type with its bounds
    right: str
    check: Callable[[Any], bool] | None
    array: bool
    alone: bool  # one item may stand for itself, without an array
    hidden: bool  # a wrong value is not shown


def _key(declared: Any) -> Key:
    alone = get_origin(declared) in (Union, UnionType)
    if alone:
        declared = next(kind for kind in get_args(declared) if get_origin(kind) is tuple)
    array = get_origin(declared) is tuple
    item = get_args(declared)[0] if array else declared
    plain, meta = get_args(item)
    extra = meta.extra or {}
    kind = str if get_origin(plain) is Literal else plain
    return Key(kind, item, meta.description, extra.get("check"), array, alone, extra.get("hidden", False))


def _schema(struct: type[Struct], at: KeyPath = ()) -> Iterator[tuple[KeyPath, Key | tuple[str, ...]]]:
    """Yield the path of each table and key of `struct`: a table with the names in it, a key with its `Key`."""
    fields = msgspec.structs.fields(struct)
    yield at, tuple(field.name for field in fields)
    for field in fields:
        path = (*at, field.name)
        if isinstance(field.type, type) and issubclass(field.type, Struct):
            yield from _schema(field.type, path)
        else:
            yield path, _key(field.type)


KEYS: Final = {path: entry for path, entry in _schema(Config) if isinstance(entry, Key)}
"""All keys, by path."""

TABLES: Final = {path: entry for path, entry in _schema(Config) if not isinstance(entry, Key)}
"""All tables by path, each with the names in it. The empty path is the whole file."""
