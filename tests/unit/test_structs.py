"""A Struct as JSON: how numbers are written, and which inputs are refused before any is read."""

import json
import math
import random
import struct
import time
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value

from providers.base import Violation
from providers.kie.structs import json_number, read_struct, render


def struct_of(value: dict[str, Any]) -> Struct:
    result = Struct()
    result.update(value)
    return result


def values(value: dict[str, Any]) -> dict[str, Any]:
    found, violations = read_struct(struct_of(value), "input")
    assert violations == []
    return found


def refusals(value: Struct) -> list[Violation]:
    found, violations = read_struct(value, "input")
    assert violations
    assert found == {}
    return violations


# --- numbers ---

NUMBERS = [
    *(0.0, -0.0, 1.0, -1.0, 5.0, 0.1, 0.5, 1.5, -2.25, 1 / 3, 1e-7, 5e-324, 1e15, 1e16, 1e21),
    *(1e22, 2.0**53, 2.0**53 + 2, -(2.0**53), 1.7976931348623157e308, 123456789.125, 1e100),
]


def random_doubles(count: int) -> list[float]:
    """Return finite doubles of all magnitudes."""
    rng = random.Random(14)
    bits = (struct.unpack("<d", rng.randbytes(8))[0] for _ in range(count))
    return [number for number in bits if math.isfinite(number)]


def test_a_written_number_is_read_as_the_same_number() -> None:
    rng = random.Random(14)
    whole = [float(rng.randint(-(2**60), 2**60)) for _ in range(10_000)]
    near_whole = [math.nextafter(number, math.inf) for number in whole]
    for number in (*NUMBERS, *whole, *near_whole, *random_doubles(50_000)):
        assert json.loads(render(number)) == number
        if number.is_integer():
            assert render(number).lstrip("-").isdecimal()


def test_a_fraction_is_written_with_as_few_digits_as_possible() -> None:
    assert [render(number) for number in (0.1, 0.30000000000000004, -2.5, 1 / 3)] == [
        "0.1",
        "0.30000000000000004",
        "-2.5",
        "0.3333333333333333",
    ]


def test_an_integral_number_is_an_integer_in_json() -> None:
    given = values({"duration": 5, "seed": 2.0**53, "scale": 0.5, "list": [1.0, -3, 2.5]})
    text = '{"duration":5,"list":[1,-3,2.5],"scale":0.5,"seed":9007199254740992}'
    assert json.dumps(given, sort_keys=True, separators=(",", ":")) == text
    assert type(json_number(5.0)) is int


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_hold_is_refused(number: float) -> None:
    assert refusals(struct_of({"a": [0, {"b": number}]})) == [
        Violation("input.a[1].b", "must be a finite number")
    ]


@pytest.mark.parametrize("number", [2.0**53 + 2, -(2.0**53) - 2, 1e22, 1e308])
def test_an_integral_number_that_is_not_exact_is_refused(number: float) -> None:
    words = "must be at most 9007199254740992 in magnitude if it is integral"
    assert refusals(struct_of({"seed": number})) == [Violation("input.seed", words)]


def test_a_number_beyond_a_double_is_refused_in_json() -> None:
    given = json_format.Parse('{"a": 1e400}', Struct())
    assert refusals(given) == [Violation("input.a", "must be a finite number")]


# --- values ---


def test_every_kind_of_value_is_read() -> None:
    given: dict[str, Any] = {
        "a": None,
        "b": True,
        "c": "猫\n",
        "d": [],
        "e": {},
        "f": [[1], {"g": [False]}],
    }
    assert values(given) == given


def test_types_are_never_converted() -> None:
    given = values({"a": "5", "b": 5, "c": "true", "d": True, "e": "1.0"})
    assert given == {"a": "5", "b": 5, "c": "true", "d": True, "e": "1.0"}
    assert type(given["d"]) is bool


def test_a_value_without_a_kind_is_refused() -> None:
    words = "is a Value without a kind: set one, such as null_value"
    assert refusals(Struct(fields={"a": Value()})) == [Violation("input.a", words)]


def test_nul_is_refused_where_it_is() -> None:
    given = struct_of({"image_urls": ["a", "b", "c\0d"], "prompt": "a\0"})
    assert sorted(refusals(given), key=lambda v: v.field) == [
        Violation("input.image_urls[2]", "must not contain NUL"),
        Violation("input.prompt", "must not contain NUL"),
    ]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "must not have an empty key"),
        ("k" * 129, "must have keys of at most 128 characters"),
        ("a\nb", "must have keys without control characters: 'a\\nb'"),
        ("a\x7f", "must have keys without control characters: 'a\\x7f'"),
        ("a\x85", "must have keys without control characters: 'a\\x85'"),
        ("\0", "must have keys without control characters: '\\x00'"),
    ],
)
def test_a_bad_key_is_refused_at_its_object(key: str, words: str) -> None:
    assert refusals(struct_of({"a": [{key: 1}]})) == [Violation("input.a[0]", words)]


def test_a_key_may_have_128_characters_of_any_script() -> None:
    given = {"k" * 128: 1, "名前": 2, "a b": 3, "a.b[0]": 4}
    assert values(given) == given


# --- bounds ---


def nested(levels: int) -> dict[str, Any]:
    """Return an object of so many levels, itself included."""
    value: dict[str, Any] = {"a": 1}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def test_an_input_may_have_eight_levels() -> None:
    assert values(nested(8)) == nested(8)
    (refusal,) = refusals(struct_of(nested(9)))
    assert refusal == Violation(
        "input" + ".a" * 8, "is nested too deeply: at most 8 levels are allowed"
    )


def test_lists_count_as_levels() -> None:
    assert values({"a": [[[[[[[1]]]]]]]})
    assert refusals(struct_of({"a": [[[[[[[[1]]]]]]]]}))


def test_an_input_may_have_ten_thousand_values() -> None:
    assert len(values({f"k{n}": n for n in range(10_000)})) == 10_000
    words = Violation("input", "must have at most 10000 values")
    assert refusals(struct_of({f"k{n}": n for n in range(10_001)})) == [words]
    assert refusals(struct_of({"a": [{"b": 1}] * 5_001})) == [words]


def test_an_input_may_have_256_kib_as_json() -> None:
    limit = 256 << 10
    room = limit - len('{"a":""}')
    assert values({"a": "a" * room})
    assert values({"a": "猫" * (room // 3)})
    words = Violation("input", f"must have at most {limit} bytes as JSON")
    assert refusals(struct_of({"a": "a" * (room + 1)})) == [words]
    assert refusals(struct_of({"a": "猫" * (room // 3 + 1)})) == [words]
    assert refusals(struct_of({"a": "\x01" * (room // 6 + 1)})) == [words]


@pytest.mark.parametrize(
    "given",
    [
        struct_of({f"key_{n}": n for n in range(100_000)}),
        struct_of({"a": "a" * (5 << 20)}),
        struct_of({"a": [None] * 100_000}),
        struct_of({"a": {f"key_{n}": {} for n in range(20_000)}}),
        struct_of({"a": "\x01" * (250 << 10)}),
        struct_of({f"{n}\n": math.nan for n in range(9_000)}),
        struct_of(nested(90)),
    ],
    ids=["keys", "5 MB", "nulls", "objects", "control characters", "violations", "90 levels"],
)
def test_an_excessive_input_is_refused_in_little_time(given: Struct) -> None:
    started = time.process_time()
    assert len(refusals(given)) <= 100
    assert time.process_time() - started < 0.2


def test_a_thousand_levels_are_refused() -> None:
    deep = Struct()
    value = deep.fields["a"]
    for _ in range(1_000):
        value = value.list_value.values.add()
    (refusal,) = refusals(deep)
    assert refusal.description == "is nested too deeply: at most 8 levels are allowed"
