"""The methods of a greenhouse: `methods.modules` names this module, and the gateway serves what it declares."""

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.api import AUTHENTICATED, CALL, CallError, Connection, Refusal, RpcError, errors, method

SECONDS_A_LITRE = 0.2
TANK_EMPTY = RpcError(1, "tank_empty", "There is not enough water", temporary=True)
DECLINED = RpcError(2, "declined", "The caller has not agreed")


class Tank:
    """The state that all connections share."""

    def __init__(self) -> None:
        self.litres = 12.0
        self.open_valves: set[int] = set()


tank = Tank()


class WaterParams(msgspec.Struct, forbid_unknown_fields=True):
    """Which bed is watered, and how many litres it gets."""

    bed: Annotated[int, Meta(ge=1, le=4)]
    litres: Annotated[float, Meta(gt=0, le=20)] = 1.0


class Watered(msgspec.Struct):
    """The bed, and how many litres are left in the tank."""

    bed: int
    left: float


@method("greenhouse.level", scope=AUTHENTICATED)
def level(peer: Connection) -> float:
    """Tell how many litres are in the tank."""
    return tank.litres


@method("greenhouse.water", scope=CALL, timeout=60.0)
async def water(peer: Connection, params: WaterParams) -> Watered:
    """Open the valve of a bed until it has its litres."""
    if params.bed in tank.open_valves:
        raise Refusal(errors.CONFLICT, f"bed {params.bed} is being watered")
    if params.litres > tank.litres:
        left = f"{tank.litres} litres are left"
        raise Refusal(TANK_EMPTY, left, retryAfterMs=60_000, outcome="not_delivered")
    tank.open_valves.add(params.bed)
    try:
        await asyncio.sleep(params.litres * SECONDS_A_LITRE)
    finally:
        tank.open_valves.discard(params.bed)
    tank.litres -= params.litres
    return Watered(params.bed, tank.litres)


@method("greenhouse.drain", scope="admin")
async def drain(peer: Connection) -> bool:
    """Empty the tank, if the caller's own method `operator.confirm` returns true."""
    question = f"Empty the tank, {tank.litres} litres?"
    try:
        agreed = await peer.call("operator.confirm", {"question": question}, timeout=20.0)
    except CallError as error:
        raise Refusal(DECLINED, error.message) from error
    if agreed is True:
        tank.litres = 0.0
    return agreed is True
