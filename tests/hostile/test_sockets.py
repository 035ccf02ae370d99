"""Connections that send nothing, little, or nonsense are closed."""

from pathlib import Path

import pytest

from tests.hostile.attacks import sockets
from tests.hostile.drill import Drill, Scale, withstands
from tests.hostile.processes import Descriptors, Setup

SILENCE_SECONDS = 10  # that the service grants an HTTP connection
STATUS_REQUESTS = 2  # a second, of a task whose callback is repeated


@pytest.mark.parametrize("caller", ["", "alice"], ids=["stranger", "caller"])
async def test_more_connections_than_descriptors_leave_some_for_the_service_itself(
    caller: str, scale: Scale, tmp_path: Path
) -> None:
    hard = 1_400 * scale.factor
    setup = Setup(descriptors=Descriptors(soft=256, hard=hard))
    drill = Drill(sockets.idle_connections, caller, hard + 200, scale.seconds, setup)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_silent_or_slow_http_connections_are_closed(scale: Scale, tmp_path: Path) -> None:
    drill = Drill(
        sockets.dripping_http,
        "",
        40 * scale.factor,
        SILENCE_SECONDS + 2,
        outcome_max={"open": 0},
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_requests_that_are_not_callbacks_do_not_fill_the_log(
    scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(sockets.forged_callbacks, "", 0, scale.seconds * 2)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_a_callback_that_repeats_costs_one_status_request_a_second(
    scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(
        sockets.repeated_callbacks,
        "alice",
        0,
        scale.seconds,
        Setup(settings={"POLL_INTERVAL_SECONDS": "60"}),  # no polls but those of callbacks
        outcome_max={"status requests": STATUS_REQUESTS * (scale.seconds + 1)},
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)
