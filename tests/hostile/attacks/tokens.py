"""Attacks on the tokens file, and by a caller whose token was revoked."""

import asyncio
from pathlib import Path

from benchmarks.h2 import request
from generated.generation.v1 import generation_pb2 as pb
from tests.hostile.frames import Sender, Stream, comes_true, headers
from tests.hostile.target import SERVICE, Outcome, Target, calling, imagen4
from tests.support.prompts import STUCK_PROMPT

REREAD_SECONDS = 2.5  # the service checks the file every second
LONGEST_SECONDS = 5.0


async def revoked_token(target: Target) -> Outcome:
    """Watch `count` times, also after the token is revoked and another line is mistyped."""
    async with calling(target) as calls:
        task_id = await calls.create(imagen4(STUCK_PROMPT))
        assert task_id
        message = pb.WatchTaskRequest(task_id=task_id).SerializeToString()
        watches = await _watch(target, message)
        _revoke(Path(target.tokens_file))
        await asyncio.sleep(REREAD_SECONDS)
        query = pb.QueryTaskRequest(task_id=task_id).SerializeToString()
        answered = await calls.unary("QueryTask", query) is not None
    await comes_true(lambda: not any(watch.is_open for watch in watches), target.seconds)
    return {"answered": float(answered), "watches open": sum(watch.is_open for watch in watches)}


async def emptied_file(target: Target) -> Outcome:
    """Empty the tokens file for `seconds`, as an editor that writes in place does."""
    text = _overwrite(Path(target.tokens_file), "")
    await asyncio.sleep(target.seconds)
    _overwrite(Path(target.tokens_file), text)
    return {}


def _revoke(file: Path) -> None:
    """Replace the file by one without Alice, and with a line that cannot be read."""
    lines = file.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("alice ")]
    new = file.with_suffix(".new")
    new.write_text("\n".join([*kept, "carol not-a-hash", ""]))
    new.replace(file)


def _overwrite(file: Path, text: str) -> str:
    """Write a file in place; return its previous content."""
    before = file.read_text()
    file.write_text(text)
    return before


async def _watch(target: Target, message: bytes) -> list[Stream]:
    """Open watches, and wait until each is served."""
    connection = await Sender.connect(target)
    frames = request(headers(target, SERVICE + "WatchTask"), message)
    watches = [Stream() for _ in range(target.count)]
    for watch in watches:
        connection.call(frames, watch)
    connection.flush()
    assert await comes_true(lambda: all(watch.is_served for watch in watches), LONGEST_SECONDS)
    return watches
