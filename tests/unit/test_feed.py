"""The feed, with a database whose pages arrive when a test wants them."""

import asyncio
from typing import cast

from prometheus_client import CollectorRegistry

from service.feed import Feed, FeedTimes
from service.feed_metrics import FeedMetrics
from service.resume_token import ChangeFilter
from service.series import MetricFactory
from storage.changes import NOTHING_PURGED, Change, ChangePage, Position
from storage.store import Store

ALICE = ChangeFilter("alice", "", ended_only=False)


class Changes:
    """A store in which twelve tasks of alice have changed, one after the other."""

    shared = False

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self.page_arrives = asyncio.Event()

    async def changes(self, caller: str | None, after: Position, limit: int) -> ChangePage:
        assert caller is None
        assert limit >= 12
        self.reading.set()
        await self.page_arrives.wait()
        positions = [Position(number, f"t{number}") for number in range(1, 13)]
        return ChangePage(
            changes=[Change(p, "alice", "p", "PENDING") for p in positions if p > after],
            end=Position(13),
            horizon=13,
            is_last=True,
            is_blocked=False,
            purged=NOTHING_PURGED,
            epoch=b"1",
        )


async def test_a_stream_that_is_alone_when_it_joins_misses_nothing_before_the_page_being_read() -> (
    None
):
    store = Changes()
    feed = Feed(cast("Store", store), FeedMetrics(MetricFactory(CollectorRegistry())), FeedTimes())
    ahead = feed.add(ALICE, Position(10, "t10"))
    assert feed.join(ahead)
    reading = asyncio.create_task(feed.run_once())
    await store.reading.wait()
    feed.remove(ahead)
    behind = feed.add(ALICE, Position(8, "t8"))
    assert feed.join(behind)
    store.page_arrives.set()
    await reading
    assert [change.position.number for change in behind.take(9)] == [9, 10, 11, 12]
