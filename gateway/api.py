"""The names that a module with methods of your own imports. They are stable; the rest of the package may change.

A method is a function with a decorator::

    from gateway.api import CALL, Connection, Refusal, errors, method

    @method("garden.water", scope=CALL, timeout=60.0)
    async def water(peer: Connection, params: WaterParams) -> Watered:
        '''Open the valve of a bed.'''
        if params.bed in being_watered:
            raise Refusal(errors.CONFLICT, f"bed {params.bed} is being watered")
        ...

======================  ==========================================================================================
`method`                declares a function as a JSON-RPC method, with its name, its scope and its deadline
`AUTHENTICATED`         the scope of a method that every authenticated caller may use
`CALL`                  the scope ``call:`` followed by the method's own name
`Connection`            the first argument of every method: the caller, with `conn_id`, `remote`, `principal`,
                        `notify()` and `call()`
`Refusal`               raise it to answer a request with an error; the connection lives on, nothing is logged
`BadParams`             raise it to answer -32602 if parameters are wrong in a way that their types cannot express
`errors`                the module with the gateway's own errors, such as `errors.CONFLICT`, for `Refusal`
`RpcError`              an error of your own for `Refusal`: its code, name, message, and whether it is temporary
`CallError`             raised by `Connection.call()` if the client answers with an error, or not at all
`Then`                  return it to have a function called right after the reply has been sent
======================  ==========================================================================================

docs/methods-howto.md shows how they are used.
"""

from gateway import errors
from gateway.connections.connection import Connection
from gateway.errors import RpcError
from gateway.rpc.calls import CallError
from gateway.rpc.method import AUTHENTICATED, CALL, BadParams, Refusal, Then, method

__all__ = [
    "AUTHENTICATED",
    "CALL",
    "BadParams",
    "CallError",
    "Connection",
    "Refusal",
    "RpcError",
    "Then",
    "errors",
    "method",
]
