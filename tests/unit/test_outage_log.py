"""When callers are asked to retry during an outage of the database."""

import pytest

from service.outage_log import QUIET_SECONDS, OutageLog
from storage.errors import StorageUnavailableError

GONE = StorageUnavailableError("gone")


class Clock:
    """The time, as a test sets it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("service.outage_log.time.monotonic", clock.monotonic)
    return clock


def test_callers_retry_later_the_longer_an_outage_lasts_and_within_half_a_minute(
    clock: Clock,
) -> None:
    outages = OutageLog()
    delays = []
    for _ in range(120):
        outages.failed("storage unavailable", GONE)
        delays.append(outages.retry_seconds())
        clock.now += 1
    assert delays[:4] == [1, 1.5, 2, 2.5]
    assert delays == sorted(delays)
    assert delays[-1] == 30


def test_the_next_outage_begins_with_a_second_again(clock: Clock) -> None:
    outages = OutageLog()
    outages.failed("storage unavailable", GONE)
    clock.now += 20
    outages.failed("storage unavailable", GONE)
    assert outages.retry_seconds() == 11
    clock.now += QUIET_SECONDS
    outages.worked()
    assert outages.retry_seconds() == 1
    outages.failed("storage unavailable", GONE)
    assert outages.retry_seconds() == 1
