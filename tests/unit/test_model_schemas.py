"""Inputs of every bundled model, generated from the snapshot, are accepted or refused by name."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from providers.base import Violation
from providers.kie.catalogue.facts import JOBS_PATH, bundled, is_model_id
from providers.kie.catalogue.validator import Checked, Validators
from tests.support.market_inputs import (
    JOBS_MODELS,
    LISTED_JOBS_MODELS,
    MODELS,
    checked_fields,
    minimal_input,
    value_of,
    values_of_other_types,
)

VALIDATORS = Validators("input")
Case = tuple[str, str, Any]  # a model, a field, and a value for it


def checked(model: str, given: dict[str, Any]) -> Checked:
    schema = bundled()[model].input_schema
    assert schema is not None
    return VALIDATORS.check(model, schema, given)


def refusals(model: str, given: dict[str, Any]) -> list[Violation]:
    return checked(model, given).violations


def refused_fields(model: str, given: dict[str, Any]) -> set[str]:
    return {violation.field for violation in refusals(model, given)}


def fields() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for model in JOBS_MODELS:
        for name, field in checked_fields(model):
            yield model, name, field


def with_field(model: str, name: str, value: Any) -> dict[str, Any]:
    """Return a minimal input in which one field has a value."""
    given = minimal_input(model)
    groups = MODELS[model].get("one_of", [])
    if any(name in group for group in groups):
        for group in groups:
            for other in group:
                given.pop(other, None)
    return {**given, name: value}


def test_the_snapshot_has_every_model_and_every_field() -> None:
    models = bundled()
    assert len(models) == 240
    assert sum(facts.listed for facts in models.values()) == 218
    jobs = [facts for facts in models.values() if facts.listed and facts.path == JOBS_PATH]
    assert len(jobs) == len(LISTED_JOBS_MODELS) == 179
    described = (len(MODELS[facts.id]["fields"]) for facts in jobs)
    assert sum(described) == 1_133
    assert all(map(is_model_id, models))
    assert [name for name, facts in models.items() if facts.input_schema] == JOBS_MODELS


@pytest.mark.parametrize("model", JOBS_MODELS)
def test_the_smallest_valid_input_is_accepted_as_it_is(model: str) -> None:
    given = minimal_input(model)
    assert checked(model, given) == Checked(given, [])


def test_a_missing_required_field_without_a_default_is_refused_by_its_name() -> None:
    cases = 0
    for model, name, field in fields():
        if field.get("required") and "default" not in field:
            given = minimal_input(model)
            del given[name]
            assert refusals(model, given) == [Violation(f"input.{name}", "is required")]
            cases += 1
    assert cases > 200


def test_a_missing_required_field_with_a_default_is_filled_in() -> None:
    cases = 0
    for model in JOBS_MODELS:
        for name, field in MODELS[model]["fields"].items():
            if field.get("required") and "default" in field:
                given = minimal_input(model)
                del given[name]
                assert checked(model, given).input == {**given, name: field["default"]}, model
                cases += 1
    assert cases > 50


def test_an_optional_field_is_not_filled_in() -> None:
    for model in JOBS_MODELS:
        given = minimal_input(model)
        assert checked(model, given).input is given


def test_a_value_that_is_no_choice_is_refused_by_name_with_the_choices() -> None:
    cases = 0
    for model, name, field in fields():
        for choice in field.get("enum", ()):
            for wrong in near(choice, field["enum"]):
                (refusal,) = refusals(model, with_field(model, name, wrong))
                assert refusal.field == f"input.{name}"
                assert refusal.description.startswith("must be one of ") or (
                    len(field["enum"]) == 1
                )
                assert str(field["enum"][0]) in refusal.description
                cases += 1
    assert cases > 2_000


def near(choice: Any, choices: list[Any]) -> Iterator[Any]:
    """Yield wrong values of the right type that resemble a choice."""
    if isinstance(choice, str):
        wrong: tuple[Any, ...] = (choice + "x", choice.swapcase(), f" {choice}", "")
    else:
        wrong = (choice + 1_000, -choice - 1)
    return (value for value in wrong if value not in choices)


def test_a_value_of_another_type_is_refused_by_name() -> None:
    cases = 0
    for model, name, field in fields():
        for wrong in (*values_of_other_types(field), None):
            assert refused_fields(model, with_field(model, name, wrong)) == {f"input.{name}"}, (
                model,
                name,
                wrong,
            )
            cases += 1
    assert cases > 5_000


def test_a_number_is_never_taken_for_a_string_nor_a_string_for_a_number() -> None:
    cases = 0
    for model, name, field in fields():
        if field["type"] == "string" and "format" not in field:
            for choice in field.get("enum", ["5"]):
                if choice.isdecimal():
                    given = with_field(model, name, int(choice))
                    words = f'must be the string "{choice}"'
                    assert refusals(model, given) == [Violation(f"input.{name}", words)]
                    cases += 1
        elif field["type"] in {"integer", "number"}:
            given = with_field(model, name, str(value_of(field)))
            words = f"must be the number {value_of(field)}"
            assert refusals(model, given) == [Violation(f"input.{name}", words)]
            cases += 1
    assert cases > 250


def test_a_value_beyond_a_bound_is_refused_by_name() -> None:
    cases = 0
    for model, name, field in fields():
        for wrong in beyond(field):
            assert refused_fields(model, with_field(model, name, wrong)) == {f"input.{name}"}, (
                model,
                name,
            )
            cases += 1
    assert cases > 350


def beyond(field: dict[str, Any]) -> Iterator[Any]:
    """Yield values just outside the bounds of a field."""
    if "enum" in field:
        return
    if "minimum" in field:
        yield field["minimum"] - 1
    if "maximum" in field:
        yield field["maximum"] + 1
    if "maxLength" in field:
        yield "a" * (field["maxLength"] + 1)
    if field.get("minLength"):
        yield "a" * (field["minLength"] - 1)
    if "maxItems" in field:
        item = value_of({"type": field["items"], "format": field.get("format")})
        yield [item] * (field["maxItems"] + 1)
    if field.get("minItems"):
        yield []


def test_a_misspelled_field_is_refused_with_the_name_it_resembles() -> None:
    cases = 0
    for model in JOBS_MODELS:
        facts = MODELS[model]
        for name in facts["fields"]:
            wrong = f"{name[:-2]}{name[-1:]}{name[-2:-1]}"
            if len(name) < 5 or wrong in facts["fields"] or facts.get("partial"):
                continue
            given = {**minimal_input(model), wrong: 1}
            (refusal,) = refusals(model, given)
            assert refusal.field == f"input.{wrong}"
            assert refusal.description.startswith("is unknown; did you mean ")
            cases += 1
    assert cases > 800


def test_a_disputed_field_is_never_a_reason_to_refuse() -> None:
    cases = 0
    for model in JOBS_MODELS:
        for name in MODELS[model].get("doubts", ()):
            for value in ("", "a" * 50_000, -1, 5, 1.5, None, True, [], [1] * 100, {"a": 1}):
                assert refusals(model, {**minimal_input(model), name: value}) == []
                cases += 1
            given = minimal_input(model)
            given.pop(name, None)
            assert refusals(model, given) == []
    assert cases > 300


def test_an_unknown_field_of_a_partly_known_model_is_accepted() -> None:
    partial = [model for model in JOBS_MODELS if MODELS[model].get("partial")]
    assert len(partial) == 5
    for model in partial:
        assert refusals(model, {**minimal_input(model), "not_in_the_snapshot": 1}) == []


def test_exactly_one_of_the_groups_of_fields_is_needed() -> None:
    models = [model for model in JOBS_MODELS if "one_of" in MODELS[model]]
    assert models
    for model in models:
        groups = MODELS[model]["one_of"]
        names = [name for group in groups for name in group]
        fields_of = MODELS[model]["fields"]
        rest = {name: v for name, v in minimal_input(model).items() if name not in names}
        (none,) = refusals(model, rest)
        assert none == Violation("input", f"must have exactly one of {', '.join(names)}")
        (both,) = refusals(model, {**rest, **{name: value_of(fields_of[name]) for name in names}})
        assert both == Violation("input", f"must have only one of {', '.join(names)}")
        for group in groups:
            assert refusals(model, {**rest, **{n: value_of(fields_of[n]) for n in group}}) == []


def test_all_violations_are_found_at_once() -> None:
    given = {"resolution": "720", "duration": "5", "resolutoin": "720p", "image": 1}
    assert [v for v in refusals("bytedance/seedance-2", given) if v.field != "input.image"] == [
        Violation("input.duration", "must be the number 5"),
        Violation("input.resolution", "must be one of 480p, 720p, 1080p, 4k"),
        Violation("input.resolutoin", "is unknown; did you mean resolution?"),
    ]


def test_the_snapshot_is_read_and_compiled_in_a_moment() -> None:
    bundled.cache_clear()
    started = time.process_time()
    models = bundled()
    reading = time.process_time() - started
    validators = Validators("input")
    started = time.process_time()
    for name in JOBS_MODELS:
        validators.check(name, models[name].input_schema or {}, {})
    assert reading < 1
    assert time.process_time() - started < 2
