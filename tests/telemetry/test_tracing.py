"""A span for each routed call, under the caller's; its `traceparent` reaches the node."""

import json
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import errors
from gateway.nodes.registry import Nodes, Served
from gateway.nodes.routing import Router
from gateway.rpc.calls import Calls
from gateway.rpc.dispatcher import Dispatcher
from gateway.status import Status
from gateway.telemetry.lines import Lines
from gateway.telemetry.tracing import Tracing
from tests.support.command import run
from tests.support.peers import RawPeer
from tests.support.process import StartGateway
from tests.support.rpc import Listing, NodeListing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Traced:
    """A dispatcher with one node, and the spans of its calls; `tracing` False: there are none."""

    def __init__(self, *, tracing: bool = True) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        nodes = Nodes(lambda node, change: None, lambda node: None)
        self.machine, self.caller = NodeListing(), Listing()
        nodes.register(self.machine, "pi", [Served("lamp.on", b'"lamp.on"', "call:lamp.on", "", b"")], False)
        status, calls = Status("1", lambda: 0.0), Calls()
        router = Router(
            nodes,
            calls,
            call_timeout=9.0,
            max_in_flight=4,
            max_node_in_flight=4,
            max_message_bytes=1_048_576,
            max_credit_bytes=2_097_152,
            lines=Lines(),
            tracing=Tracing(provider) if tracing else None,
        )
        self._dispatcher = Dispatcher(
            status, calls, router, max_in_flight=4, max_batch=4, call_timeout=9.0, lines=Lines()
        )

    def ask(self, **members: object) -> dict[str, Any]:
        """Call, and return what the node gets."""
        self._dispatcher.dispatch(self.caller, json.dumps({"jsonrpc": "2.0", "method": "lamp.on"} | members).encode())
        (got,) = self.machine.take()
        received: dict[str, Any] = json.loads(got)
        return received

    def answer(self, identity: int, **outcome: object) -> None:
        """Let the node answer."""
        self._dispatcher.dispatch(self.machine, json.dumps({"jsonrpc": "2.0", "id": identity} | outcome).encode())

    def lose(self) -> None:
        """Let the node go."""
        self._dispatcher.lost(self.machine)

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that are over."""
        return list(self.exporter.get_finished_spans())


async def test_a_call_is_a_span_under_the_callers_and_above_the_nodes() -> None:
    traced = Traced()
    got = traced.ask(id=1, traceparent=PARENT)
    assert traced.spans == []
    traced.answer(got["id"], result=1)
    (span,) = traced.spans
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, "00f067aa0ba902b7")
    assert got["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert span.name == "lamp.on"
    assert dict(span.attributes or {}) == {
        "rpc.system": "jsonrpc",
        "rpc.method": "lamp.on",
        "gateway.node": "pi",
        "gateway.caller": "anonymous",
        "gateway.outcome": "ok",
    }
    assert span.status.is_unset


@pytest.mark.parametrize("parent", [None, "no such thing", 7, {"a": 1}])
async def test_without_a_parent_a_trace_begins(parent: object) -> None:
    traced = Traced()
    got = traced.ask(id=1) if parent is None else traced.ask(id=1, traceparent=parent)
    traced.answer(got["id"], error={"code": 1, "message": "no"})
    (span,) = traced.spans
    assert span.parent is None
    assert got["traceparent"].startswith(f"00-{span.context.trace_id:032x}-")
    assert (span.attributes or {})["gateway.outcome"] == "error"
    assert not span.status.is_ok


async def test_a_call_that_is_lost_ends_its_span() -> None:
    traced = Traced()
    traced.ask(id=1)
    traced.lose()
    (span,) = traced.spans
    assert (span.attributes or {})["gateway.outcome"] == errors.NODE_LOST.name


async def test_without_tracing_the_callers_word_is_passed_on_as_it_is() -> None:
    traced = Traced(tracing=False)
    assert traced.ask(id=1, traceparent=PARENT)["traceparent"] == PARENT
    assert traced.ask(traceparent=PARENT)["traceparent"] == PARENT
    assert "traceparent" not in traced.ask(id=2)
    assert traced.spans == []


async def test_a_gateway_starts_with_tracing(gateway: StartGateway) -> None:
    process = await gateway(
        {"tracing": {"enabled": True}}, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    )
    with await RawPeer.open(process) as peer:
        await peer.welcome()
        await peer.leave()


def test_without_the_extra_it_is_said() -> None:
    program = "import sys; sys.modules['opentelemetry'] = None\nfrom gateway.cli import main\nsys.exit(main(['check']))"
    ended = run(program=program, environ={"GATEWAY_TRACING__ENABLED": "true"})
    assert ended.status == 2
    assert "tracing.enabled: OpenTelemetry is missing" in ended.stderr
    assert ended.stderr.count("\n") == 1
