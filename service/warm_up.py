"""Fill the cache of responses at startup."""

import math

import structlog

from service.messages import Answers
from storage.errors import StorageUnavailableError
from storage.store import Store

TASKS_MAX = 7_200  # an hour's tasks at the account's limit: 0.15 s of work, and 8 MiB
BATCH = 100  # some 2 ms of the event loop

log = structlog.get_logger()


async def warm_answers(
    store: Store, answers: Answers, tasks_max: int = TASKS_MAX, batch: int = BATCH
) -> None:
    """Cache the responses for the newest results: they are the most likely to be requested."""
    before = math.inf
    try:
        for _ in range(0, tasks_max, batch):
            tasks = await store.newest_ended(before, batch)
            for task in tasks:
                answers.of(task)
            if len(tasks) < batch:
                return
            before = tasks[-1].complete_time or 0
    except StorageUnavailableError as error:
        log.warning("storage unavailable; the answers are not cached yet", error=str(error))
