"""The clock of the store: steady, and aware of jumps where it has to follow another one."""

import time

import pytest

from storage.clock import Clock

HOUR = 3_600.0


class Followed(Clock):
    """A clock that follows another one."""

    def jump(self, seconds: float) -> None:
        self._jump_to(self._offset + seconds)


@pytest.mark.parametrize("seconds", [2 * HOUR, -2 * HOUR, 365 * 24 * HOUR])
def test_setting_the_machines_clock_does_not_change_the_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    clock = Clock()
    before = clock.now()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + seconds)
    assert 0 <= clock.now() - before < 60
    assert clock.last_jump is None


def test_the_time_is_the_machines_at_the_start() -> None:
    assert abs(Clock().now() - time.time()) < 1


@pytest.mark.parametrize("seconds", [2 * HOUR, -2 * HOUR])
def test_a_jump_does_not_count_as_time_that_has_passed(seconds: float) -> None:
    clock = Followed()
    long_ago = clock.now() - 5 * HOUR
    clock.jump(seconds)
    assert clock.last_jump is not None
    assert clock.last_jump.seconds == seconds
    now = clock.now()
    assert clock.elapsed_seconds(long_ago, now) == pytest.approx(5 * HOUR, abs=60)
    assert clock.elapsed_seconds(now + 0.5, now + 30) == pytest.approx(29.5, abs=1)


def test_jumps_in_both_directions_add_up() -> None:
    clock = Followed()
    long_ago = clock.now() - HOUR
    clock.jump(6 * HOUR)
    between = clock.now()
    clock.jump(-6 * HOUR)
    assert clock.jumped_seconds(long_ago) == 0
    assert clock.elapsed_seconds(long_ago, clock.now()) == pytest.approx(HOUR, abs=60)
    assert clock.elapsed_seconds(between, clock.now()) == 0, "it seems to be in the future"


def test_time_without_jumps_leaves_out_the_net_jump_forward() -> None:
    clock = Followed()
    clock.jump(-HOUR)
    assert clock.without_jumps(10 * HOUR) == 10 * HOUR
    clock.jump(3 * HOUR)
    assert clock.without_jumps(10 * HOUR) == 8 * HOUR


def test_what_other_processes_stored_before_a_jump_forward_is_recognised() -> None:
    clock = Followed()
    late = clock.now() + 5  # by a process that notices the jump later
    clock.jump(2 * HOUR)
    early = clock.now() - 5  # by one that noticed it earlier
    assert clock.jumped_seconds(late) == 2 * HOUR
    assert clock.jumped_seconds(early) == 0
