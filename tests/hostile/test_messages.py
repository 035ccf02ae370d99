"""The content and the size of a message cost only its sender."""

from pathlib import Path

import pytest

from tests.hostile.attacks import messages
from tests.hostile.drill import Drill, Scale, withstands

CALLERS = pytest.mark.parametrize("caller", ["", "alice"], ids=["stranger", "caller"])


async def test_a_message_of_many_values_delays_no_other_caller(
    scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(messages.many_values, "alice", scale.factor, scale.seconds)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


@CALLERS
async def test_refused_messages_leave_no_memory_behind(
    caller: str, scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(messages.refused_messages, caller, 1_200 * scale.factor, scale.seconds)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_refused_uploads_leave_no_memory_behind(scale: Scale, tmp_path: Path) -> None:
    drill = Drill(messages.refused_uploads, "alice", 200 * scale.factor, scale.seconds)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


@CALLERS
async def test_messages_that_never_end_take_no_memory(
    caller: str, scale: Scale, tmp_path: Path
) -> None:
    drill = Drill(messages.unfinished_messages, caller, 250 * scale.factor, scale.seconds)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_unknown_fields_are_refused(scale: Scale, tmp_path: Path) -> None:
    outcome_max = {"accepted": 0.0}
    drill = Drill(messages.unknown_fields, "alice", 30 * scale.factor, 0, outcome_max=outcome_max)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_long_names_of_services_leave_no_memory_behind(scale: Scale, tmp_path: Path) -> None:
    drill = Drill(messages.long_checks, "", 600 * scale.factor, scale.seconds)
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_open_streams_do_not_keep_their_requests(scale: Scale, tmp_path: Path) -> None:
    drill = Drill(messages.long_streams, "alice", 300 * scale.factor, scale.seconds)
    await withstands(drill, tmp_path, scale.p99_seconds_max)
