"""Methods as in `tests.fuzz.methods`, but one of them raises: what a run must find."""

from gateway.connections.connection import Connection
from gateway.rpc.method import AUTHENTICATED, method
from tests.fuzz.methods import barrier

__all__ = ["barrier", "later"]


@method("fuzz.later", scope=AUTHENTICATED)
async def later(peer: Connection, params: bytes) -> None:
    """Raise what is no refusal."""
    raise ZeroDivisionError
