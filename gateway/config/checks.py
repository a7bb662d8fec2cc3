"""Checks combinations of settings, each of which is right by itself. Pure."""

from typing import NamedTuple, NoReturn

from gateway.config.certificates import CertificateError, client_context, tls_context
from gateway.config.schema import Cluster, Config, Jwt
from gateway.config.types import ConfigError, is_loopback, literal


class Value(NamedTuple):
    """A converted value, and the source that set it. The source with the highest `rank` prevails."""

    value: object
    source: str
    rank: int


Values = dict[str, Value]
"""The values that were set, by dotted key. A key that is missing has its default."""


def check(config: Config, values: Values) -> None:
    """Raise `ConfigError` for the first combination of settings that cannot be used.

    Of the keys that are involved, the error names one from the strongest source.
    """
    for check_one in (_check_port, _check_times, _check_sizes, _check_room, _check_auth, _check_tls, _check_cluster):
        check_one(config, values)


def _blame(values: Values, wrong: str, right: str, *keys: str) -> NoReturn:
    """Refuse a combination of `keys`. The error names the source that was applied last, and the first key from it."""
    key = max((key for key in keys if key in values), key=lambda key: values[key].rank, default=keys[0])
    source = values[key].source if key in values else "default"
    raise ConfigError(source, key, wrong, right) from None


def _check_port(config: Config, values: Values) -> None:
    server = config.server
    if server.reuse_port and server.unix_socket:
        wrong = f"true, and server.unix_socket {literal(server.unix_socket)} can have one listener only"
        _blame(values, wrong, "false, or server.host and port instead of unix_socket", "server.reuse_port")


def _check_times(config: Config, values: Values) -> None:
    server, heartbeat, limits = config.server, config.heartbeat, config.limits
    silence = heartbeat.interval + heartbeat.timeout
    if server.receive_timeout <= silence:
        _blame(
            values,
            f"server.receive_timeout {server.receive_timeout} does not exceed heartbeat.interval"
            f" {heartbeat.interval} + heartbeat.timeout {heartbeat.timeout}",
            f"a server.receive_timeout above {silence}",
            "server.receive_timeout",
            "heartbeat.interval",
            "heartbeat.timeout",
        )
    if limits.max_call_timeout < limits.call_timeout:
        _blame(
            values,
            f"limits.max_call_timeout {limits.max_call_timeout} is below limits.call_timeout {limits.call_timeout}",
            f"a limits.max_call_timeout of at least {limits.call_timeout}",
            "limits.max_call_timeout",
            "limits.call_timeout",
        )


def _check_sizes(config: Config, values: Values) -> None:
    outbox, message = config.limits.max_outbox_bytes, config.limits.max_message_bytes
    if outbox < 2 * message:
        _blame(
            values,
            f"limits.max_outbox_bytes {outbox} is less than twice limits.max_message_bytes {message}",
            f"a limits.max_outbox_bytes of at least {2 * message}",
            "limits.max_outbox_bytes",
            "limits.max_message_bytes",
        )
    principal = config.limits.max_principal_bytes
    if principal < outbox + message:
        _blame(
            values,
            f"limits.max_principal_bytes {principal} is less than limits.max_outbox_bytes {outbox}"
            f" + limits.max_message_bytes {message}, which one connection may hold",
            f"a limits.max_principal_bytes of at least {outbox + message}",
            "limits.max_principal_bytes",
            "limits.max_outbox_bytes",
            "limits.max_message_bytes",
        )


def _check_room(config: Config, values: Values) -> None:
    """In mode none every peer may take every place, so nothing is reserved."""
    reserved, most = config.limits.reserved_for_admin, config.limits.max_connections
    if config.auth.mode != "none" and reserved >= most:
        _blame(
            values,
            f"limits.reserved_for_admin {reserved} is not below limits.max_connections {most}",
            f"a limits.reserved_for_admin below {most}",
            "limits.reserved_for_admin",
            "limits.max_connections",
        )


def _check_auth(config: Config, values: Values) -> None:
    server, auth = config.server, config.auth
    if auth.mode == "token" and not auth.tokens_file:
        right = "auth.tokens_file, the path of a TOML file of tokens"
        _blame(values, '"token" without auth.tokens_file', right, "auth.mode")
    if auth.mode == "jwt":
        _check_jwt(auth.jwt, values)
    exposed = () if server.unix_socket else [host for host in server.hosts if not is_loopback(host)]
    if auth.mode == "none" and exposed and not auth.allow_insecure:
        _blame(
            values,
            f'"{exposed[0]}" is not loopback, and auth.mode "none" lets everybody in',
            "127.0.0.1, ::1, localhost, or auth.allow_insecure = true",
            "server.host",
            "auth.mode",
            "auth.allow_insecure",
        )


def _check_jwt(jwt: Jwt, values: Values) -> None:
    if not jwt.algorithms:
        _blame(values, '"jwt" without auth.jwt.algorithms', 'those of its signatures, such as ["EdDSA"]', "auth.mode")
    files = {
        "auth.jwt.secret_file": jwt.secret_file,
        "auth.jwt.public_key_file": jwt.public_key_file,
        "auth.jwt.jwks_file": jwt.jwks_file,
    }
    given = [key for key, path in files.items() if path]
    if len(given) != 1:
        wrong = f"{' and '.join(given)} are set" if given else '"jwt" without a key'
        right = "one of auth.jwt.secret_file, public_key_file and jwks_file"
        _blame(values, wrong, right, *(given or ["auth.mode"]))
    symmetric = [name for name in jwt.algorithms if name.startswith("HS")]
    if symmetric and jwt.public_key_file:
        # Otherwise the public key could be used as the secret (RFC 8725 section 2.1).
        wrong = f"{symmetric[0]} needs a secret, and auth.jwt.public_key_file is set"
        _blame(values, wrong, "an algorithm of that key, such as RS256", "auth.jwt.algorithms")
    if len(symmetric) < len(jwt.algorithms) and jwt.secret_file:
        other = next(name for name in jwt.algorithms if name not in symmetric)
        wrong = f"{other} needs a public key, and auth.jwt.secret_file is set"
        _blame(values, wrong, "HS256, HS384 or HS512", "auth.jwt.algorithms")


def _check_tls(config: Config, values: Values) -> None:
    files = {"server.tls_cert": config.server.tls_cert, "server.tls_key": config.server.tls_key}
    _check_both(files, values)
    try:
        tls_context(*files.values())
    except CertificateError as error:
        _blame(values, error.wrong, error.right, error.key)


def _check_both(settings: dict[str, str], values: Values) -> None:
    """Refuse one of two settings without the other."""
    if any(settings.values()) and not all(settings.values()):
        given, missing = sorted(settings, key=lambda name: not settings[name])
        _blame(values, f"set without {missing}", "both or neither", given)


def _check_cluster(config: Config, values: Values) -> None:
    """A gateway that is alone needs none of it."""
    cluster = config.cluster
    if not cluster.nats:
        return
    kinds = {
        "cluster.user": cluster.user,
        "cluster.token_file": cluster.token_file,
        "cluster.credentials_file": cluster.credentials_file,
    }
    given = [key for key, value in kinds.items() if value]
    if len(given) > 1:
        right = "one of cluster.user with password_file, token_file and credentials_file"
        _blame(values, f"{' and '.join(given)} are set", right, *given)
    _check_both({"cluster.user": cluster.user, "cluster.password_file": cluster.password_file}, values)
    _check_cluster_tls(cluster, values)


def _check_cluster_tls(cluster: Cluster, values: Values) -> None:
    files = {"cluster.tls_cert": cluster.tls_cert, "cluster.tls_key": cluster.tls_key}
    _check_both(files, values)
    given = [key for key, file in {"cluster.tls_ca": cluster.tls_ca, **files}.items() if file]
    plaintext = [url for url in cluster.nats if not url.startswith("tls://")]
    if not given:
        return
    if plaintext:
        wrong = f"{given[0]} is set, and {plaintext[0]} may be plaintext"
        _blame(values, wrong, "tls:// for all of cluster.nats", "cluster.nats", *given)
    try:
        client_context(cluster.tls_ca, cluster.tls_cert, cluster.tls_key)
    except CertificateError as error:
        _blame(values, error.wrong, error.right, error.key)
