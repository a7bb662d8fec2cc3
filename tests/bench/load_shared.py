"""The load of gateways that share a port: callers and nodes that come in by it, wherever the kernel puts them."""

import gc
import secrets
from dataclasses import asdict
from typing import Any

from tests.bench.client import Target, open_websocket
from tests.bench.frames import PeerError, ReplyCounter
from tests.bench.load_routed import Node, register_elsewhere, request_for
from tests.bench.load_rpc import Caller, End, RpcLoad, request_ring


def shared(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    """Keep calls in flight from each of many callers to a node of its own.

    Job: pairs, inFlight (of each), warmup and seconds (both in seconds), pids of the gateways, and of what is beside
    them. Result: RpcResult; messages are calls. PeerError when one has not come back in the end.
    """
    latencies: list[tuple[float, int]] = []
    ends: dict[int, End] = {}
    for number in range(job["pairs"]):
        (caller, before), (node, rest) = (open_websocket(target, 2 * number + which) for which in range(2))
        if before or rest:
            raise PeerError(f"the server spoke first: {before or rest!r}")
        method = b"bench.m" + secrets.token_hex(4).encode()
        register_elsewhere(caller, node, method)
        ring, frame = request_ring(request_for(method))
        ends[caller.fileno()] = Caller(caller, memoryview(ring), frame, latencies, ReplyCounter())
        ends[node.fileno()] = Node(node, target)
    load = RpcLoad((job["pids"], job["beside"]), job["inFlight"], ends, latencies)
    gc.disable()
    result = load.run(job["warmup"], job["seconds"])
    if result.unanswered:
        raise PeerError(f"{result.unanswered} calls have not come back")
    return asdict(result)
