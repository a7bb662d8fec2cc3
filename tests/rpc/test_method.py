"""What a method may look like, what its parameters may be, and what is said where they are not."""

import types
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, Raw

from gateway import errors
from gateway.rpc.method import AUTHENTICATED, CALL, BadParams, Method, Refusal, collect, method


class Point(msgspec.Struct, forbid_unknown_fields=True):
    """Where, with a default."""

    x: int
    y: Annotated[int, Meta(ge=0)] = 7


class Snapshot(msgspec.Struct, rename="camel"):
    """Names on the wire that are not those of the fields."""

    file_name: str
    at: list[Point] = []
    quality: float | None = None


class Row(msgspec.Struct, array_like=True):
    """What is an array in JSON."""

    x: int


class Left(msgspec.Struct):
    """One of two that JSON cannot tell apart."""

    x: int


class Right(msgspec.Struct):
    """The other."""

    x: int


class Either(msgspec.Struct):
    """Has a field that msgspec cannot decode."""

    side: Left | Right


def entry(function: Callable[..., Any], name: str = "a.b", **options: Any) -> Method:
    """The method that a function is declared as."""
    (found,) = collect(method(name, **options)(function))
    return found


def annotated(function: Callable[..., Any], **annotations: str) -> Callable[..., Any]:
    """Give a function these annotations and no others, as a user may write them that has no checker of types."""
    function.__annotations__ = annotations
    return function


# Declaring


def test_a_function_is_a_method_as_it_stands() -> None:
    @method("camera.snapshot", scope=CALL, timeout=3.0, while_draining=True)
    async def snapshot(peer: object, params: Point) -> list[int]:
        """Take a picture.

        Now.
        """
        return [params.x]

    (found,) = collect(snapshot)
    assert found.name == "camera.snapshot"
    assert found.scope == "call:camera.snapshot"
    assert (found.timeout, found.while_draining, found.is_async) == (3.0, True, True)
    assert (found.params, found.result) == (Point, list[int])
    assert found.doc == "Take a picture.\n\nNow."
    assert found.handler is snapshot


def test_what_is_not_said_has_its_default() -> None:
    def plain(peer: object) -> int:
        return 1

    found = entry(annotated(plain))
    assert (found.scope, found.timeout, found.while_draining, found.is_async) == (None, None, False, False)
    assert (found.params, found.result, found.doc) == (None, Any, "")


@pytest.mark.parametrize(
    ("scope", "needed"),
    [(None, None), (AUTHENTICATED, AUTHENTICATED), (CALL, "call:a.b"), ("admin", "admin"), ("serve:x", "serve:x")],
)
def test_the_scope_that_is_needed(scope: str | None, needed: str | None) -> None:
    assert entry(lambda peer: None, scope=scope).scope == needed


def test_a_module_an_object_and_a_function_declare() -> None:
    @method("m.one")
    def one(peer: object) -> int:
        return 1

    class Two:
        size = 3

        @method("m.two")
        def two(self, peer: object) -> int:
            return self.size

        def helper(self, a: int, b: int, c: int) -> int:
            return a + b + c

    module = types.ModuleType("handlers")
    vars(module).update(one=one, Two=Two, number=1, text="text")
    assert [found.name for found in collect(module)] == ["m.one"]
    assert [found.name for found in collect(one)] == ["m.one"]
    (two,) = collect(Two())
    assert two.name == "m.two"
    assert two.handler(None) == 3
    assert two.params is None


@pytest.mark.parametrize("source", [types.ModuleType("empty"), object(), 1, "a.b", lambda peer: None])
def test_others_declare_nothing(source: object) -> None:
    assert list(collect(source)) == []


def no_arguments() -> None: ...


def three_arguments(peer: object, params: Point, more: int) -> None: ...


def any_arguments(peer: object, *params: int) -> None: ...


def by_keyword(peer: object, *, params: Point) -> None: ...


def keywords(peer: object, **params: int) -> None: ...


def untyped(peer: object, params: object) -> None: ...


annotated(untyped)


def a_dictionary(peer: object, params: dict[str, int]) -> None: ...


def a_number(peer: object, params: int) -> None: ...


def optional(peer: object, params: Point | None) -> None: ...


def unknown_connection(peer: object) -> None: ...


def unknown_params(peer: object, params: object) -> None: ...


def unknown_result(peer: object) -> None: ...


annotated(unknown_connection, peer="NotImported")
annotated(unknown_params, params="NotImported")
annotated(unknown_result, **{"return": "NotImported"})


def params_that_cannot_be_decoded(peer: object, params: Either) -> None: ...


def params_by_position_only(peer: object, params: Row) -> None: ...


@pytest.mark.parametrize(
    "function",
    [
        no_arguments,
        three_arguments,
        any_arguments,
        by_keyword,
        keywords,
        untyped,
        a_dictionary,
        a_number,
        optional,
        unknown_connection,
        unknown_params,
        unknown_result,
        params_that_cannot_be_decoded,
        params_by_position_only,
    ],
    ids=lambda function: function.__name__,
)
def test_a_wrong_signature_is_refused_by_the_name_of_the_method(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"^method a\.b: "):
        entry(function)


def test_a_method_must_have_a_name() -> None:
    with pytest.raises((TypeError, ValueError), match="name"):
        entry(lambda peer: None, name="")


# Parameters


def decode(function: Callable[..., Any], data: str) -> Any:
    """The second argument that a method gets for these parameters."""
    found = entry(function)
    assert found.decode is not None
    return found.decode(data.encode())


def takes_point(peer: object, params: Point) -> None: ...


def takes_snapshot(peer: object, params: Snapshot) -> None: ...


def takes_anything(peer: object, params: bytes) -> Raw:
    return Raw(params)


def takes_nothing(peer: object) -> None: ...


@pytest.mark.parametrize(
    ("data", "point"),
    [
        ('{"x":1}', Point(1, 7)),
        ('{"y":0,"x":-1}', Point(-1, 0)),
        ("[1]", Point(1, 7)),
        ("[1,2]", Point(1, 2)),
        (" [ 1 , 2 ] ".strip(), Point(1, 2)),
        ('{"x":1,"x":2}', Point(2, 7)),
    ],
)
def test_parameters_by_name_and_by_position(data: str, point: Point) -> None:
    assert decode(takes_point, data) == point


@pytest.mark.parametrize(
    ("data", "snapshot"),
    [
        ('{"fileName":"a"}', Snapshot("a")),
        ('{"fileName":"a","other":1}', Snapshot("a")),
        (r'["\u0041",[{"x":1}],2]', Snapshot("A", [Point(1)], 2.0)),
        ('["a",[],null]', Snapshot("a")),
    ],
)
def test_names_are_those_on_the_wire_and_unknown_ones_are_the_structs_business(data: str, snapshot: Snapshot) -> None:
    assert decode(takes_snapshot, data) == snapshot


@pytest.mark.parametrize(
    ("function", "data", "why"),
    [
        (takes_point, "", "Object missing required field `x`"),
        (takes_point, "{}", "Object missing required field `x`"),
        (takes_point, "[]", "Object missing required field `x`"),
        (takes_point, '{"x":"1"}', "x: Expected `int`, got `str`"),
        (takes_point, '{"x":1.5}', "x: Expected `int`, got `float`"),
        (takes_point, '{"x":null}', "x: Expected `int`, got `null`"),
        (takes_point, '{"x":1,"y":-1}', "y: Expected `int` >= 0"),
        (takes_point, '{"x":1,"z":1}', "Object contains unknown field `z`"),
        (takes_point, '["1"]', "x: Expected `int`, got `str`"),
        (takes_point, "[1,-1]", "y: Expected `int` >= 0"),
        (takes_point, "[1,2,3]", "more than 2 parameters by position"),
        (takes_snapshot, '{"file_name":"a"}', "Object missing required field `fileName`"),
        (takes_snapshot, '{"fileName":1}', "fileName: Expected `str`, got `int`"),
        (takes_snapshot, '{"fileName":"a","at":[{"x":1},{"x":true}]}', "at[1].x: Expected `int`, got `bool`"),
        (takes_snapshot, '["a",[{"x":1,"y":-2}]]', "at[0].y: Expected `int` >= 0"),
        (takes_snapshot, '["a",[{}]]', "at[0]: Object missing required field `x`"),
        (takes_snapshot, '["a",[],"high"]', "quality: Expected `float | null`, got `str`"),
        (takes_nothing, '{"x":1}', "this method has no parameters"),
        (takes_nothing, "[1]", "this method has no parameters"),
        (takes_nothing, "[null]", "this method has no parameters"),
    ],
)
def test_what_does_not_fit_is_named(function: Callable[..., Any], data: str, why: str) -> None:
    with pytest.raises(BadParams) as caught:
        decode(function, data)
    assert str(caught.value) == why


def test_very_many_parameters_by_position_are_not_decoded() -> None:
    data = "[" + ",".join(["1"] * 500_000)
    with pytest.raises(BadParams) as caught:
        decode(takes_point, data + "]")
    assert str(caught.value) == "more than 2 parameters by position"


@pytest.mark.parametrize("data", ["", "{}", "[]", "{ }", "[ \n]"])
def test_no_parameters_can_be_said_in_several_ways(data: str) -> None:
    assert decode(takes_nothing, data) is None


def test_parameters_that_a_method_takes_as_they_came_are_not_looked_at() -> None:
    assert entry(takes_anything).decode is None


def test_what_is_said_of_a_parameter_is_not_as_long_as_the_peer_likes() -> None:
    with pytest.raises(BadParams) as caught:
        decode(takes_point, '{"x":1,"%s":1}' % ("z" * 100_000))
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("values", ["1e999", "9" * 5000, "-" + "9" * 5000])
def test_a_number_out_of_range_is_the_callers_mistake(values: str) -> None:
    with pytest.raises(BadParams):
        decode(takes_snapshot, f'{{"fileName":"a","quality":{values}}}')


# Refusals


def test_a_refusal_carries_what_is_said() -> None:
    refusal = Refusal(errors.NOT_FOUND, "no such lamp", lamp="a")
    assert (refusal.error, refusal.detail, refusal.data) == (errors.NOT_FOUND, "no such lamp", {"lamp": "a"})
    assert str(refusal) == "no such lamp"
    assert str(Refusal(errors.NOT_FOUND)) == errors.NOT_FOUND.message
