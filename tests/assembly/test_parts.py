"""What the parts of a gateway have of its configuration."""

from gateway.assembly import parts
from gateway.config import parse
from gateway.nodes.registry import Nodes
from gateway.rpc.calls import Calls
from gateway.telemetry.lines import Lines

CONFIG = parse({"limits": {"max_node_in_flight": 7, "max_outbox_bytes": 4194304}})


def test_a_router_has_the_limits_of_calls() -> None:
    nodes = Nodes(lambda node, change: None, lambda node: None)
    router = parts.router(CONFIG, nodes, Calls(), Lines())
    assert (router.max_node_in_flight, router.max_credit_bytes) == (7, 2097152)


def test_streams_of_gateways_that_are_alone_have_nothing_in_common() -> None:
    first, second = parts.stream(CONFIG), parts.stream(CONFIG)
    assert first.position("a").epoch != second.position("a").epoch
