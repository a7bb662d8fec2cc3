"""What the gateway says to an upgrade request: rows H7 to H11 of the fault table, section 2 of the contract.

One gateway serves the whole file: a request that breaks it fails the tests that follow, too.
"""

import base64
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway.handshake.upgrade import host_name
from tests.support.peers import RawPeer, Response
from tests.support.process import GatewayProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPGRADE_HEADERS = {"upgrade": "websocket", "sec-websocket-version": "13"}
"""What a 426 must carry (RFC 9110, section 15.5.22; RFC 6455, section 4.4)."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[GatewayProcess]:
    """A gateway on loopback with nothing but defaults."""
    async with GatewayProcess() as process:
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listed() -> AsyncIterator[GatewayProcess]:
    """A gateway that has lists of hosts and of origins."""
    names = {"allowed_hosts": ["gateway.example"], "allowed_origins": ["https://console.example"]}
    async with GatewayProcess({"server": names}) as process:
        yield process


async def ask(where: GatewayProcess, head: bytes | None = None, **headers: str) -> Response:
    """Send an upgrade request, or another head, on a new connection and return the answer."""
    with await RawPeer.connect(where) as peer:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        await peer.send_raw(head or peer.upgrade_head(headers=fields))
        return await peer.read_response()


async def head_of(where: GatewayProcess, *extra: str, without: tuple[str, ...] = (), version: str = "") -> bytes:
    """Return the head of an upgrade request with lines added as they are."""
    with await RawPeer.connect(where) as peer:
        head = peer.upgrade_head(without=without, version=version or "HTTP/1.1")
    return head[:-2] + b"".join(line.encode() + b"\r\n" for line in extra) + b"\r\n"


async def still_serves(where: GatewayProcess) -> None:
    """Fail unless a proper client is still welcome and no refusal has left a traceback."""
    with await RawPeer.open(where) as peer:
        assert (await peer.welcome())["connId"]
        await peer.leave()
    where.assert_no_defects()


async def test_upgrade_is_accepted(served: GatewayProcess) -> None:
    await still_serves(served)


# Malformed requests


async def test_h7_200_headers(served: GatewayProcess) -> None:
    lines = [f"X-Filler-{number}: x" for number in range(200)]
    assert (await ask(served, await head_of(served, *lines))).status == 400
    await still_serves(served)


async def test_h7_200_headers_on_another_path(served: GatewayProcess) -> None:
    lines = [f"X-Filler-{number}: x" for number in range(200)]
    head = (await head_of(served, *lines)).replace(b"/ws", b"/healthz", 1)
    assert (await ask(served, head)).status == 400
    await still_serves(served)


async def test_h7_header_of_9_kb(served: GatewayProcess) -> None:
    assert (await ask(served, await head_of(served, "X-Filler: " + "x" * 9000))).status == 400
    await still_serves(served)


async def test_h7_request_line_of_9_kb(served: GatewayProcess) -> None:
    head = (await head_of(served)).replace(b"/ws", b"/ws?" + b"x" * 9000, 1)
    assert (await ask(served, head)).status == 400
    await still_serves(served)


async def test_h8_two_hosts(served: GatewayProcess) -> None:
    assert (await ask(served, await head_of(served, f"Host: 127.0.0.1:{served.port}"))).status == 400
    await still_serves(served)


async def test_h8_no_host(served: GatewayProcess) -> None:
    assert (await ask(served, await head_of(served, without=("Host",)))).status == 400
    await still_serves(served)


async def test_h8_empty_host(served: GatewayProcess) -> None:
    assert (await ask(served, Host="")).status in (400, 421)
    await still_serves(served)


@pytest.mark.parametrize(
    "extra",
    [
        ("Content-Length: 5", b"hello"),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
    ],
    ids=["length", "chunked"],
)
async def test_h9_body_on_the_upgrade(served: GatewayProcess, extra: tuple[str, bytes]) -> None:
    line, body = extra
    assert (await ask(served, await head_of(served, line) + body)).status == 400
    await still_serves(served)


async def test_h9_http_1_0(served: GatewayProcess) -> None:
    assert (await ask(served, await head_of(served, version="HTTP/1.0"))).status == 400
    await still_serves(served)


@pytest.mark.parametrize("version", ["7", "8", "0", "14", "x"])
async def test_h9_other_version(served: GatewayProcess, version: str) -> None:
    answer = await ask(served, Sec_WebSocket_Version=version)
    assert answer.status == 426
    assert answer.headers.items() >= UPGRADE_HEADERS.items()
    await still_serves(served)


async def test_plain_get(served: GatewayProcess) -> None:
    with await RawPeer.connect(served) as peer:
        answer = await peer.get("/ws")
        assert answer.status == 426
        assert answer.headers.items() >= UPGRADE_HEADERS.items()


async def test_other_method(served: GatewayProcess) -> None:
    assert (await ask(served, (await head_of(served)).replace(b"GET", b"POST", 1))).status == 405


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        base64.b64encode(bytes(15)).decode(),
        base64.b64encode(bytes(17)).decode(),
        "dGhlIHNhbXBsZSBub25jZQ",
    ],
    ids=["empty", "not base64", "15 bytes", "17 bytes", "no padding"],
)
async def test_bad_key(served: GatewayProcess, key: str) -> None:
    assert (await ask(served, Sec_WebSocket_Key=key)).status == 400
    await still_serves(served)


async def test_no_key(served: GatewayProcess) -> None:
    assert (await ask(served, await head_of(served, without=("Sec-WebSocket-Key",)))).status == 400


@pytest.mark.parametrize("noise", [b"\x00\xff\x16\r\n\r\n", b"HELO\r\n\r\n", b"GET /ws HTTP/9.9\r\n\r\n"])
async def test_noise_is_refused(served: GatewayProcess, noise: bytes) -> None:
    assert (await ask(served, noise)).status == 400
    await still_serves(served)


async def test_head_in_pieces(served: GatewayProcess) -> None:
    with await RawPeer.connect(served) as peer:
        for byte in peer.upgrade_head():
            await peer.send_raw(bytes([byte]))
        assert (await peer.read_response()).status == 101


async def test_frames_behind_the_head_in_one_segment(served: GatewayProcess) -> None:
    with await RawPeer.connect(served) as peer:
        await peer.send_raw(peer.upgrade_head() + b"\x89\x80\x00\x00\x00\x00")
        assert (await peer.read_response()).status == 101
        await peer.welcome()
        assert (await peer.recv_frame()).opcode == 10


# Origin and host


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "null",
        "http://127.0.0.1.evil.example",
        "x",
    ],
)
async def test_h10_foreign_origin(served: GatewayProcess, origin: str) -> None:
    assert (await ask(served, Origin=origin)).status == 403
    await still_serves(served)


async def test_origin_of_the_host(served: GatewayProcess) -> None:
    assert (await ask(served, Origin=f"http://127.0.0.1:{served.port}")).status == 101


async def test_origin_of_the_host_without_port(served: GatewayProcess) -> None:
    assert (await ask(served, Host="localhost", Origin="http://localhost")).status == 101
    assert (await ask(served, Host="localhost:80", Origin="http://localhost")).status == 101


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:8765", "10.0.0.1"],
)
async def test_h11_rebinding_host(served: GatewayProcess, host: str) -> None:
    """DNS rebinding: the page's own origin, its name pointed at loopback."""
    assert (await ask(served, Host=host)).status == 421
    assert (await ask(served, Host=host, Origin=f"http://{host}")).status == 421
    await still_serves(served)


BAD_HOSTS = [
    "localhost:1@evil.example",
    "localhost@evil.example",
    "evil.example@localhost",
    "localhost/",
    "localhost:80/",
    "localhost:x",
    "localhost:-1",
    "localhost:80:80",
    "local host",
    "localhost, evil.example",
    "localhost#x",
    "localhost?x",
    "localhost\\x",
    "localh\xf6st",
    "%zz",
    ":80",
    "[::1",
    "[::1]x",
    "[::1]80",
    "[::1%25lo]",
    "[localhost]",
    "[127.0.0.1]",
    "::1",
    "http://localhost",
]


@pytest.mark.parametrize("host", BAD_HOSTS)
async def test_a_host_that_other_parsers_read_otherwise(served: GatewayProcess, host: str) -> None:
    """The origin is what such a parser finds."""
    for origin in ("http://evil.example", "http://localhost"):
        assert (await ask(served, Host=host, Origin=origin)).status == 400
    with await RawPeer.connect(served) as peer:
        assert (await peer.get("/metrics", headers={"Host": host})).status == 400


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Example.COM", "example.com"),
        ("example.com:", "example.com"),
        ("example.com:8765", "example.com"),
        ("a_b~c!$&'()*+,;=-.d", "a_b~c!$&'()*+,;=-.d"),
        ("caf%C3%A9.example", "caf%c3%a9.example"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("[2001:DB8::1]", "[2001:db8::1]"),
        ("[::ffff:192.0.2.1]:80", "[::ffff:192.0.2.1]"),
        ("[v1.future:address]:80", "[v1.future:address]"),
        *((host, None) for host in BAD_HOSTS),
    ],
)
async def test_the_name_in_a_host_header(host: str, name: str | None) -> None:
    assert host_name(host) == name


async def test_every_response_forbids_to_guess_its_type(served: GatewayProcess) -> None:
    async def sent(data: str) -> Response:
        with await RawPeer.connect(served) as peer:
            await peer.send_raw(data.replace("$", f"HTTP/1.1\r\nHost: {peer.authority}").encode() + b"\r\n\r\n")
            return await peer.read_response()

    requests = {
        "GET /healthz $": 200,
        "GET /readyz $": 200,
        "GET /metrics $": 200,
        "GET / $": 200,
        "GET /console/nothing $": 404,
        "GET /nothing $": 404,
        "POST /metrics $": 405,
        "GET /healthz $\r\nExpect: nonsense": 417,
        "GET /ws $": 426,
        "GET /ws $\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13": 400,
        "GET /metrics HTTP/1.1\r\nHost: evil.example": 421,
        "GET /ws HTTP/1.1": 400,
        "no HTTP": 400,
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2": 400,
        f"GET / $\r\nX: {'x' * 9000}": 400,
        "GET / $" + "\r\nX: x" * 200: 400,
    }
    for request, status in requests.items():
        response = await sent(request)
        assert (response.status, response.headers.get("x-content-type-options")) == (status, "nosniff"), request[:80]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1", "[::1]:8765", "127.0.0.1:1"])
async def test_loopback_hosts(served: GatewayProcess, host: str) -> None:
    assert (await ask(served, Host=host)).status == 101


async def test_allowed_hosts(listed: GatewayProcess) -> None:
    assert (await ask(listed, Host="gateway.example")).status == 101
    assert (await ask(listed, Host="Gateway.Example:8765")).status == 101
    # The list is exact: loopback is not on it.
    assert (await ask(listed, Host=f"127.0.0.1:{listed.port}")).status == 421
    assert (await ask(listed, Host="www.gateway.example")).status == 421


async def test_allowed_origins(listed: GatewayProcess) -> None:
    async def status(origin: str) -> int:
        return (await ask(listed, Host="gateway.example", Origin=origin)).status

    assert await status("https://console.example") == 101
    assert await status("https://CONSOLE.example") == 101
    assert await status("http://console.example") == 403
    assert await status("https://console.example:444") == 403
    assert await status("http://gateway.example") == 101


async def test_origin_of_the_host_behind_a_tls_proxy(listed: GatewayProcess) -> None:
    """Neither names a port: they are the same, though the gateway itself sees no TLS."""
    assert (await ask(listed, Host="gateway.example", Origin="https://gateway.example")).status == 101


# The other paths, and the log


async def test_health(served: GatewayProcess) -> None:
    with await RawPeer.connect(served) as peer:
        assert (await peer.get("/healthz")).status == 200
        assert (await peer.get("/readyz")).status == 200
        assert (await peer.get("/nowhere")).status == 404


async def test_a_refusal_is_logged_once_with_its_peer(served: GatewayProcess) -> None:
    with await RawPeer.connect(served, source="127.0.0.77") as peer:
        await peer.send_raw(peer.upgrade_head(headers={"Origin": "https://evil.example"}))
        assert (await peer.read_response()).status == 403
        line = await served.wait_event("handshake.rejected", remote=peer.local)
        assert line["status"] == 403
        assert len(served.events("handshake.rejected", remote=peer.local)) == 1


async def test_repeated_refusals_are_sampled(served: GatewayProcess) -> None:
    """openclaw#20168: 1.4 GB of log from one peer that did not give up."""

    async def knock() -> str:
        with await RawPeer.connect(served, source="127.0.0.78") as peer:
            await peer.send_raw(peer.upgrade_head(headers={"Origin": "https://evil.example"}))
            assert (await peer.read_response()).status == 403
            return peer.local

    names = {await knock() for _ in range(200)}
    await served.wait_event("handshake.rejected", where=lambda line: line["remote"] in names)
    lines = [line for line in served.events("handshake.rejected") if line["remote"] in names]
    assert 1 <= len(lines) <= 20


async def test_a_refused_peer_that_talks_on_is_let_go(served: GatewayProcess) -> None:
    """After a malformed head nothing can be told apart any more, so the connection ends."""
    with await RawPeer.connect(served) as peer:
        await peer.send_raw(b"HELO\r\n\r\n")
        assert (await peer.read_response()).status == 400
        assert await peer.wait_closed() in ("eof", "reset")


async def test_any_host_where_the_gateway_is_not_on_loopback() -> None:
    """Rebinding gains nothing there: a credential is needed, or its absence was chosen."""
    async with GatewayProcess({"server": {"host": "0.0.0.0"}, "auth": {"allow_insecure": True}}) as process:
        assert (await ask(process, Host="any.example")).status == 101


async def test_h11_rebinding_host_on_the_metrics(served: GatewayProcess) -> None:
    with await RawPeer.connect(served) as peer:
        assert (await peer.get("/metrics", headers={"Host": "evil.example"})).status == 421
    with await RawPeer.connect(served) as peer:
        assert (await peer.get("/metrics")).status == 200
