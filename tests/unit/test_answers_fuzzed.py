"""20,000 corrupted answers: none raises an exception, and no id is lost."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, get_args

import pytest

from providers.base import Accepted, Inconclusive, Poll, Submission, Succeeded
from providers.kie.envelope import (
    UnreadableAnswerError,
    parse_envelope,
    read_submission,
    unreadable_record,
    unreadable_submission,
)
from providers.kie.registry import ADAPTERS
from service.verdicts import Verdicts
from tests.support.judging import NOW, QUEUED, SUBMITTING, VERDICTS

ANSWERS = 20_000
ID = "281e5b0d7c1f4b6e9a3c2d1e0f9f39b9"
URL = "https://x.example/a.png"
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    "",
    "x",
    "200",
    [],
    {},
    [[]],
    {"a": None},
    "[",
    "{",
    "NaN",
]
WHOLE_ID = re.compile(rb'"[^"]*' + ID.encode() + rb'[^"]*"')  # another id would be as good
# The id under its name, whole, as JSON or as JSON text inside JSON.
NAMED = re.compile(rf'"(?:taskId|recordId)\\*":\s*\\*"{ID}\\*"')


def create() -> Any:
    return {"code": 200, "msg": "success", "data": {"taskId": ID, "recordId": ID}}


def record(rng: random.Random) -> Any:
    result = {"resultUrls": [URL, URL]}
    jobs = {
        "state": rng.choice(["success", "fail", "generating"]),
        "resultJson": json.dumps(result),
    }
    flags = {"successFlag": rng.randrange(4), "response": result}
    common = {"taskId": ID, "param": "{}", "creditsConsumed": 4.5, "completeTime": 1777539378147}
    return {"code": 200, "msg": "success", "data": {**common, **rng.choice([jobs, flags])}}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each node."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    whole = dict(value) if isinstance(value, dict) else list(value)
    whole[path[0]] = changed(value[path[0]], path[1:], change)
    return whole


def copy(odd: Any, value: Any) -> Any:
    """Replace a value by an odd one."""
    del value
    return odd


def reordered(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        keys = rng.sample([*value], len(value))
        return {key: reordered(value[key], rng) for key in keys}
    return [reordered(item, rng) for item in value] if isinstance(value, list) else value


def renested(rng: random.Random) -> Callable[[Any], Any]:
    ways: list[Callable[[Any], Any]] = [
        lambda value: [value],
        lambda value: {"data": value},
        lambda value: {"list": [value, None]},
        json.dumps,
        lambda value: json.dumps(json.dumps(value)),
    ]
    return rng.choice(ways)


def spoiled(value: Any, rng: random.Random) -> bytes:
    """Corrupt an answer by one to three changes of its structure, and perhaps of its bytes."""
    for _ in range(rng.randint(1, 3)):
        match rng.randrange(3):
            case 0:
                value = reordered(value, rng)
            case 1:
                odd = rng.choice(ODD)
                value = changed(value, rng.choice(places(value)), partial(copy, odd))
            case _:
                value = changed(value, rng.choice(places(value)), renested(rng))
    data = bytearray(json.dumps(value).encode())
    if data and rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    if data and rng.random() < 0.2:
        at = rng.randrange(len(data))
        if not any(at in range(*found.span()) for found in WHOLE_ID.finditer(data)):
            data[at] = rng.choice(b'\xff\x00\n\t"{}x')
    return bytes(data)


def submitted(status: int, data: bytes) -> Submission:
    try:
        return read_submission(parse_envelope(status, data), prompt="a cat")
    except UnreadableAnswerError as error:
        return unreadable_submission(error)


def polled(model: str, status: int, data: bytes) -> Poll:
    try:
        return ADAPTERS[model].read(parse_envelope(status, data))
    except UnreadableAnswerError as error:
        return unreadable_record(error)


def status(rng: random.Random) -> int:
    return rng.choices([200, 404, 500, 502], weights=[9, 1, 1, 1])[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_corrupted_create_is_an_outcome_that_keeps_the_id(seed: int) -> None:
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(ANSWERS // 8):
        code, data = status(rng), spoiled(create(), rng)
        outcome = submitted(code, data)
        outcomes[type(outcome).__name__] += 1
        text = data.decode(errors="replace")
        if NAMED.search(text):
            assert outcome.provider_task_id == ID, (code, text, outcome)
        VERDICTS.after_submission(SUBMITTING, outcome, NOW, NOW)
    assert outcomes[Accepted.__name__] > ANSWERS // 400, outcomes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["imagen4", "veo3", "midjourney", "market"])
def test_a_corrupted_record_is_a_verdict_or_counted_as_inconclusive(seed: int, family: str) -> None:
    rng = random.Random(f"{seed}{family}")
    verdicts: Verdicts = VERDICTS
    outcomes: Counter[str] = Counter()
    for _ in range(ANSWERS // 8):
        data = spoiled(record(rng), rng)
        outcome = polled(family, status(rng), data)
        outcomes[type(outcome).__name__] += 1
        assert isinstance(outcome, get_args(Poll))
        if isinstance(outcome, Succeeded):
            kept = json.loads(outcome.result_json)["resultUrls"]
            assert tuple(kept) == outcome.urls
        after = verdicts.after_poll(QUEUED, outcome, NOW + 1)
        assert after is not None
        assert after.ended or isinstance(outcome, Inconclusive) or after.due_time is not None
    assert outcomes["Succeeded"] > ANSWERS // 400, outcomes
