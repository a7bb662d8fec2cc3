"""A gateway loads only what it has."""

from tests.support.command import run

ALONE = """
import sys
from gateway.app import create_app
from gateway.config import Config
create_app(Config())
some = "gateway.cluster.", "gateway.assembly.cluster", "opentelemetry"
print([name for name in sys.modules if name.startswith(some)])
"""


def test_a_gateway_alone_loads_nothing_of_a_cluster() -> None:
    ended = run(program=ALONE)
    own = ["gateway.cluster.stream", "gateway.cluster.history", "gateway.cluster.memory"]
    assert ended.stdout == f"{own}\n", ended.stderr
