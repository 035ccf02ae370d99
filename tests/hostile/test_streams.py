"""Many calls, and calls that are not read, affect only the caller that makes them."""

from pathlib import Path

import pytest

from tests.hostile.attacks import streams
from tests.hostile.drill import Drill, Scale, withstands
from tests.hostile.processes import Setup
from tests.hostile.target import Attack

CALLERS = pytest.mark.parametrize("caller", ["", "alice"], ids=["stranger", "caller"])
WATCHES_MAX = 400
CONNECTIONS = 4
RESETTING_CONNECTIONS = 2
POLITE_RESETS_P99_SECONDS_MAX = 1.0
# Up to MAX_PENDING_CALLS that arrive at once are accepted before the next call of any other caller.
PENDING_P99_SECONDS_MAX = 0.4


@CALLERS
async def test_calls_that_are_reset_at_once_delay_no_other_caller(
    caller: str, scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(
        streams.reset_calls,
        caller,
        RESETTING_CONNECTIONS,
        scale.seconds * 2,
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_resets_of_a_client_that_answers_pings_delay_others_only_briefly(
    scale: Scale, tmp_path: Path
) -> None:
    """Up to a thousand such calls of a connection wait before the next one of any other caller."""
    drill = Drill(
        streams.polite_resets,
        "",
        RESETTING_CONNECTIONS,
        scale.seconds,
        p99_seconds_max=POLITE_RESETS_P99_SECONDS_MAX,
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


@CALLERS
async def test_metadata_that_is_not_utf_8_does_not_fill_the_log(
    caller: str, scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(streams.unreadable_metadata, caller, 200 * scale.factor, scale.seconds)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


@CALLERS
async def test_a_flood_of_refused_calls_delays_no_other_caller(
    caller: str, scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(streams.refused_calls, caller, CONNECTIONS, scale.seconds * 2)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


@pytest.mark.parametrize("attack", [streams.health_watches, streams.reflections])
@CALLERS
async def test_streams_of_health_and_reflection_count_towards_the_watches_of_a_caller(
    caller: str, attack: Attack, scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(
        attack,
        caller,
        4_000 * scale.factor,
        scale.seconds / 5,
        Setup({"WATCH_MAX_STREAMS": str(WATCHES_MAX)}),
        {"served": WATCHES_MAX / 2 if caller else 0},
        p99_seconds_max=PENDING_P99_SECONDS_MAX,
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_one_caller_cannot_take_all_watches(scale: Scale, tmp_path: Path) -> None:
    drill = Drill(
        streams.task_watches,
        "alice",
        2_000 * scale.factor,
        scale.seconds,
        Setup({"WATCH_MAX_STREAMS": str(WATCHES_MAX * scale.factor)}),
        {"served": WATCHES_MAX * scale.factor / 2},
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


@CALLERS
async def test_streams_that_are_not_read_do_not_delay_the_shutdown(
    caller: str, scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(streams.unread_streams, caller, scale.factor, 1)
    await withstands(drill, tmp_path, scale.p99_seconds_max)
