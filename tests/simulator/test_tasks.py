"""A task's states as a pure function of time, the book of tasks, and the sliding windows."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from providers.kie.simulator import SimulatorSettings
from providers.kie.simulator.book import TaskBook
from providers.kie.simulator.jobs import jobs_order
from providers.kie.simulator.models import MODELS
from providers.kie.simulator.settings import FIXED_AT_START
from providers.kie.simulator.tasks import Purchase, Task, draw_task
from providers.kie.simulator.windows import SlidingWindow
from tests.support.kie_client import IMAGEN4, JOBS, Kie, running

BORN_MS = 1_800_000_000_000


def task(number: int = 0, prompt: str = "a cat", **changes: Any) -> Task:
    settings = SimulatorSettings(**{"seconds": {"imagen4": (10, 10)}, **changes})
    order = jobs_order({**IMAGEN4, "input": {"prompt": prompt}})
    purchase = Purchase(
        task_id=f"{number:032x}",
        now_ms=BORN_MS,
        base_url="http://kie",
        settings=settings,
        rng=random.Random(number),
    )
    return draw_task(order, purchase)


@pytest.mark.parametrize(
    ("changes", "course"),
    [
        ({"direct_rate": 1}, ["waiting"] * 10 + ["success"]),
        (
            {"direct_rate": 0, "queuing_rate": 1},
            ["waiting", *["queuing"] * 2, *["generating"] * 7, "success"],
        ),
        ({"direct_rate": 0, "queuing_rate": 0}, ["waiting", *["generating"] * 9, "success"]),
        ({"direct_rate": 1, "fail_rate": 1}, ["waiting"] * 10 + ["fail"]),
    ],
)
def test_the_state_follows_from_the_creation_and_the_time_alone(
    changes: dict[str, Any], course: list[str]
) -> None:
    drawn = task(**changes)
    moments = [BORN_MS + 1000 * second for second in range(11)]
    assert [drawn.state_at(moment) for moment in moments] == course
    assert [drawn.state_at(moment) for moment in reversed(moments)] == course[::-1]


def test_a_clock_set_back_shows_the_first_state() -> None:
    assert task().state_at(BORN_MS - 60_000) == "waiting"


def test_progress_grows_to_99_and_reaches_100_at_the_end() -> None:
    drawn = task()
    percents = [drawn.progress_at(BORN_MS + ms) for ms in (0, 5000, 9999, 10_000)]
    assert percents == [0, 50, 99, 100]


def test_a_stuck_task_never_ends() -> None:
    stuck = task(prompt="[sim:stuck]", direct_rate=0)
    assert stuck.state_at(BORN_MS * 2) == "generating"
    assert stuck.progress_at(BORN_MS * 2) == 99


def test_cost_time_is_in_seconds() -> None:
    assert task().ends_ms == BORN_MS + 10_000


def test_equal_seeds_give_equal_tasks() -> None:
    ranges: dict[str, Any] = {"seconds": {"imagen4": (1, 100)}}
    assert task(7, **ranges) == task(7, **ranges)
    assert task(7, **ranges).ends_ms != task(8, **ranges).ends_ms


def test_realistic_durations_are_the_recorded_ones() -> None:
    settings = SimulatorSettings(realistic=True)
    assert settings.seconds_of(MODELS["google/imagen4"]) == (12, 112)
    assert settings.seconds_of(MODELS["veo3"]) == (56, 313)


def test_a_model_s_own_duration_beats_its_family_s_and_speed_divides_both() -> None:
    settings = SimulatorSettings(speed=2, seconds={"veo3": (2, 4), "imagen4": (6, 8)})
    assert settings.seconds_of(MODELS["veo3_lite"]) == (1, 2)
    assert settings.seconds_of(MODELS["google/imagen4"]) == (3, 4)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"speed": 0}, "speed must be a number above 0"),
        ({"speed": "fast"}, "speed must be"),
        ({"fail_rate": 1.5}, "fail_rate must be a number from 0 to 1"),
        ({"max_running": True}, "max_running must be a whole number"),
        ({"realistic": 1}, "realistic must be true or false"),
        ({"latency_seconds": [2, 1]}, "latency_seconds must be two numbers"),
        ({"callback_retry_seconds": [-1]}, "callback_retry_seconds must be"),
        ({"public_url": "kie"}, "public_url must be"),
        ({"veo_times": "stardate"}, "veo_times must be one of text, iso, ms"),
        ({"seconds": {"dalle": [1, 2]}}, "neither a model nor a family"),
        ({"seconds": {"veo3": [2, 1]}}, "veo3 must have two numbers"),
        ({"costs": 7}, "costs must map"),
        ({"colour": "red"}, "unknown setting colour"),
        *(({name: None}, "fixed when the simulator starts") for name in FIXED_AT_START),
    ],
)
def test_a_wrong_setting_is_refused_with_the_reason(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        SimulatorSettings().changed(changes)


def test_secrets_are_never_shown() -> None:
    settings = SimulatorSettings(api_key="open sesame", webhook_key="open sesame")
    assert "sesame" not in f"{settings!r} {settings.shown()}"


def test_the_book_drops_the_oldest_tasks_over_its_bound() -> None:
    book = TaskBook(3, None)
    for number in range(5):
        book.put(task(number))
    assert [kept.id for kept in book] == [task(number).id for number in (2, 3, 4)]


def test_the_book_is_bounded_in_size_too() -> None:
    book = TaskBook(1_000, None, bodies_max_characters=2_000)
    for number in range(10):
        book.put(task(number, prompt="a" * 900))
    assert [kept.id for kept in book] == [task(number).id for number in (8, 9)]


def test_the_times_of_polls_are_bounded_and_their_count_is_not() -> None:
    book = TaskBook(3, None)
    for moment in range(250):
        book.note_poll("a", moment)
    polls = book.polls_of("a")
    assert (polls.count, list(polls.times_ms)) == (250, list(range(150, 250)))


def test_a_state_file_brings_every_task_back(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "tasks.jsonl"
    book = TaskBook(10, file)
    tasks = [task(number) for number in range(3)]
    for kept in tasks:
        book.put(kept)
    ended = replace(tasks[1], ends_ms=BORN_MS, succeeds=False)
    book.put(ended)
    book.close()
    again = TaskBook(10, file)
    assert list(again) == [tasks[0], ended, tasks[2]]
    again.close()


def test_a_torn_last_line_is_cut_off_and_the_rest_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    book = TaskBook(10, file)
    book.put(task(0))
    book.close()
    with file.open("a") as writer:
        writer.write('{"id": "torn')
    again = TaskBook(10, file)
    again.put(task(1))
    again.close()
    third = TaskBook(10, file)
    assert list(third) == [task(0), task(1)]
    third.close()


def test_a_state_file_of_something_else_is_refused_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("{}\n")
    with pytest.raises(ValueError, match=r"tasks.jsonl, line 1 is not a task"):
        TaskBook(10, file)


async def test_a_restarted_simulator_still_knows_its_tasks(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    async with running(state_file=file) as kie:
        pending, ended = await kie.create(), await kie.create()
        kie.simulator.finish(ended)
        before = [await kie.record(task_id) for task_id in (pending, ended)]
    async with running(state_file=file) as kie:
        after = [await kie.record(task_id) for task_id in (pending, ended)]
        assert kie.simulator.stats["purchases"]["total"] == 2
    assert [(r["state"], r["createTime"]) for r in before] == [
        (r["state"], r["createTime"]) for r in after
    ]


async def test_a_reset_forgets_the_state_file_s_tasks_too(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    async with running(state_file=file) as kie:
        await kie.create()
        kie.simulator.reset()
        kept = await kie.create()
    async with running(state_file=file) as kie:
        assert [row["id"] for row in kie.simulator.tasks] == [kept]


async def test_every_poll_of_a_task_is_counted(kie_with_task: tuple[Kie, str]) -> None:
    kie, task_id = kie_with_task
    for _ in range(3):
        await kie.record(task_id)
    polls = kie.simulator.tasks[0]["polls"]
    assert (polls["count"], len(polls["times_ms"])) == (3, 3)


@pytest.fixture
async def kie_with_task() -> Any:
    async with running() as kie:
        yield kie, await kie.create(JOBS, IMAGEN4)


def test_no_window_of_any_ten_seconds_holds_more_than_the_limit() -> None:
    window, rng = SlidingWindow(), random.Random(7)
    moments = sorted(rng.uniform(0, 100) for _ in range(1000))
    admitted = [moment for moment in moments if window.admit(moment, 10, 20)]
    for first, last in zip(admitted, admitted[20:], strict=False):
        assert last - first >= 10
    assert len(admitted) > 150


def test_a_window_lets_one_in_as_soon_as_one_is_out() -> None:
    window = SlidingWindow()
    assert [window.admit(moment, 10, 2) for moment in (0, 5, 9.9, 10, 14.9, 15)] == [
        *(True, True, False),
        *(True, False, True),
    ]
