"""Ids of new tasks."""

import uuid

from service.task_ids import AT_A_TIME, TaskIds

NOW = 1_800_000_000.0


def test_an_id_is_a_uuid_of_version_7_without_hyphens() -> None:
    new = TaskIds().new(NOW)
    parsed = uuid.UUID(new)
    assert (parsed.hex, parsed.version, parsed.variant) == (new, 7, uuid.RFC_4122)


def test_an_id_begins_with_its_time_in_milliseconds() -> None:
    assert int(TaskIds().new(NOW + 0.0015)[:12], 16) == round(NOW * 1_000) + 1


def test_later_ids_sort_after_earlier_ones() -> None:
    ids = TaskIds()
    made = [ids.new(NOW + number / 1_000) for number in range(100)]
    assert made == sorted(made)


def test_no_id_is_made_twice() -> None:
    both = TaskIds(), TaskIds()
    made = [ids.new(NOW) for ids in both for _ in range(AT_A_TIME * 2 + 1)]
    assert len({*made}) == len(made)


def test_every_random_bit_of_an_id_varies() -> None:
    ids = TaskIds()
    numbers = [int(ids.new(NOW), 16) for _ in range(1_000)]
    varying = 0
    for number in numbers:
        varying |= number ^ numbers[0]
    assert varying.bit_count() == 74
