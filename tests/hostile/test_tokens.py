"""A token is valid until it is revoked, and a broken line affects no other token."""

from pathlib import Path

from tests.hostile.attacks import tokens
from tests.hostile.drill import Drill, Scale, withstands
from tests.hostile.processes import Setup

HEARTBEATS = Setup({"WATCH_HEARTBEAT_SECONDS": "1"})


async def test_a_revoked_token_ends_calls_and_watches_though_another_line_is_mistyped(
    scale: Scale, tmp_path: Path
) -> None:
    outcome_max = {"answered": 0.0, "watches open": 0.0}
    drill = Drill(
        tokens.revoked_token, "alice", 20 * scale.factor, scale.seconds, HEARTBEATS, outcome_max
    )
    await withstands(drill, tmp_path, scale.p99_seconds_max)


async def test_a_tokens_file_that_is_briefly_empty_locks_out_no_caller(
    scale: Scale, tmp_path: Path
) -> None:
    await withstands(Drill(tokens.emptied_file, "", 0, scale.seconds), tmp_path)
