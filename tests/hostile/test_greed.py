"""One caller can take his share of the service, and no more."""

from pathlib import Path

import pytest

from tests.hostile.attacks import greed
from tests.hostile.drill import Drill, Scale, withstands
from tests.hostile.processes import Setup

QUEUE_MAX = 400
RUNNING_MAX = 20
CREATES_PER_MINUTE = 30
CANCELS_AT_ONCE = 8
BATCH = 256  # limits in the database may be exceeded by one
UPLOADS = 32  # half of UPLOADS_MAX
SLOW_UPLOAD_SECONDS = 75  # more than the minute over which the rate of an upload is measured


async def test_one_caller_cannot_fill_the_queue(scale: Scale, tmp_path: Path) -> None:
    queue_max = QUEUE_MAX * scale.factor
    settings = {"QUEUE_MAX_TASKS": str(queue_max), "KIE_RUNNING_MAX": str(RUNNING_MAX)}
    drill = Drill(
        greed.creates,
        "alice",
        queue_max * 3,
        scale.seconds,
        Setup(settings),
        {"accepted": queue_max / 2 + RUNNING_MAX + BATCH},
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_one_caller_cannot_take_all_that_runs_at_the_provider(
    scale: Scale, tmp_path: Path
) -> None:
    setup = Setup({"KIE_RUNNING_MAX": str(RUNNING_MAX)})
    drill = Drill(greed.creates, "alice", RUNNING_MAX * 2, scale.seconds, setup)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_creates_that_are_cancelled_count_towards_the_creates_of_a_caller(
    scale: Scale, tmp_path: Path
) -> None:
    limits = f"[callers.alice]\ncreates_per_minute = {CREATES_PER_MINUTE}\n"
    drill = Drill(
        greed.created_and_cancelled,
        "alice",
        CANCELS_AT_ONCE,
        scale.seconds,
        Setup(caller_limits=limits),
        {"accepted": CREATES_PER_MINUTE + CANCELS_AT_ONCE},
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_a_caller_creates_only_tasks_of_allowed_models(scale: Scale, tmp_path: Path) -> None:
    setup = Setup(caller_limits='[callers.alice]\nmodels = ["imagen4"]\n')
    drill = Drill(
        greed.expensive_creates, "alice", 300 * scale.factor, scale.seconds, setup, {"accepted": 0}
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_lists_of_long_prompts_take_a_bounded_part_of_memory_and_time(
    scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(greed.long_lists, "alice", 64 * scale.factor, scale.seconds)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_uploads_that_the_provider_does_not_read_take_a_bounded_part_of_memory(
    scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(
        greed.hanging_uploads,
        "alice",
        100 * scale.factor,
        scale.seconds,
        outcome_max={"open": UPLOADS},
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_slow_uploads_take_a_bounded_part_of_the_service(
    scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(
        greed.dripping_uploads,
        "alice",
        150 * scale.factor,
        scale.seconds,
        outcome_max={"open": UPLOADS},
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


@pytest.mark.torture
async def test_slow_uploads_end_after_a_minute(tmp_path: Path) -> None:
    drill = Drill(
        greed.dripping_uploads,
        "alice",
        UPLOADS,
        SLOW_UPLOAD_SECONDS,
        outcome_max={"open": 0},
    )
    await withstands(drill, tmp_path)
