"""OpenTelemetry: a span for each routed call, if the extra `otel` is installed and `tracing.enabled` is set.

Only `assembly.extras.load_tracing` imports this module. The import raises ImportError if the extra is not installed.

The caller's ``traceparent`` (W3C Trace Context) is a member of the request, beside ``params``. The node gets the
``traceparent`` of the gateway's span. Without tracing it gets the caller's, as it came.
"""

from __future__ import annotations

from typing import Final

import msgspec
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider

SERVICE: Final = "aisopod-gateway"


class Tracing:
    """Traces calls, as a `nodes.routing.Tracing`. ``provider`` is the SDK's, or a test's."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer(SERVICE)

    def begin(self, method: str, node: str, caller: str, traceparent: bytes) -> tuple[TracedCall, msgspec.Raw]:
        """Begin a span under the caller's, and return it with the ``traceparent`` for the node, in JSON.

        ``traceparent`` is the caller's JSON as it came. If it is empty or invalid, the span begins a new trace.
        """
        try:
            carrier = {"traceparent": msgspec.json.decode(traceparent, type=str)} if traceparent else {}
        except msgspec.DecodeError:
            carrier = {}
        attributes = {"rpc.system": "jsonrpc", "rpc.method": method, "gateway.node": node, "gateway.caller": caller}
        span = self._tracer.start_span(method, extract(carrier), SpanKind.SERVER, attributes)
        onward: dict[str, str] = {}
        inject(onward, trace.set_span_in_context(span))
        return TracedCall(span), msgspec.Raw(msgspec.json.encode(onward.get("traceparent", "")))


class TracedCall:
    """The span of one call, as a `nodes.routing.Span`."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def finish(self, outcome: str) -> None:
        """End the span. Any outcome but ``ok`` makes it an error. Call it once."""
        self._span.set_attribute("gateway.outcome", outcome)
        if outcome != "ok":
            self._span.set_status(Status(StatusCode.ERROR, outcome))
        self._span.end()


def exporting() -> Tracing:
    """Make a tracing that sends its spans to an OTLP collector, as OpenTelemetry's own OTEL_ variables say."""
    provider = SdkProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
