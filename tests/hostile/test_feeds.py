"""Thousands of streams of one caller, read or not, affect no other caller."""

from pathlib import Path

import pytest

from tests.hostile.attacks import feeds
from tests.hostile.drill import Drill, Scale, withstands
from tests.hostile.processes import Setup
from tests.hostile.target import Attack

# Streams that are opened at once are accepted before the next call of any other caller.
OPENING_P99_SECONDS_MAX = 0.4
BUSY_SECONDS = 4.0  # each task that is created is logged


async def test_streams_of_all_changes_of_a_busy_caller_delay_no_other_caller(
    scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(
        feeds.busy_feeds,
        "alice",
        1_000,
        BUSY_SECONDS,
        p99_seconds_max=OPENING_P99_SECONDS_MAX,
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


@pytest.mark.parametrize("attack", [feeds.unread_feeds, feeds.unread_watches])
async def test_streams_of_large_tasks_that_are_not_read_take_a_bounded_part_of_memory(
    attack: Attack, scale: Scale, tmp_path: Path
) -> None:
    setup = Setup({"KIE_MARKET_VALIDATION": "basic"})
    drill = Drill(
        attack, "alice", 4_000, scale.seconds, setup, p99_seconds_max=OPENING_P99_SECONDS_MAX
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)
