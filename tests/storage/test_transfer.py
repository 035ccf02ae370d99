"""From SQLite to PostgreSQL: each task is imported once, or reported."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from storage import sqlite, transfer
from storage.claims import Quota
from storage.creation import Existing
from storage.errors import StorageConfigError, StorageUnavailableError
from storage.opening import open_store
from storage.rows import COLUMNS
from storage.task import Failure, Stage, Status, Task
from storage.transfer import ImportResult, Skipped, TransferError, import_sqlite
from tests.support.databases import change, fill, locked, rows
from tests.support.storing import NO_LIMIT, NOW, any_task, new, saved, stored
from tests.support.waiting import eventually

SLOTS = "SELECT quota, number, free_time FROM slots ORDER BY quota, number"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file that is imported."""
    return tmp_path / "generation.db"


@pytest.fixture
def file_url(path: Path) -> str:
    return f"sqlite:///{path}"


async def keep(database_url: str, *tasks: Task) -> None:
    """Store tasks as a service would have left them."""
    store = open_store(database_url)
    await stored(store, *tasks)
    await store.close()


async def kept(database_url: str, *task_ids: str) -> list[Task | None]:
    store = open_store(database_url)
    tasks = [await store.get(task_id) for task_id in task_ids]
    await store.close()
    return tasks


def all_rows(database_url: str) -> list[Any]:
    """Return the tasks, without the position of their change, which is new after an import."""
    names = ", ".join(column.column_name for column in COLUMNS)
    found = rows(database_url, f"SELECT {names} FROM tasks ORDER BY id")  # noqa: S608
    return [tuple(bytes(v) if isinstance(v, memoryview) else v for v in row) for row in found]


# --- what is imported ---


async def test_every_column_of_every_ended_task_is_imported_unchanged(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    odd = [any_task(seed)._replace(id=f"t{seed}", request_id=f"r{seed}") for seed in range(60)]
    await keep(file_url, *(task._replace(due_time=None) for task in odd))
    fill(file_url, 1_200, NOW)
    assert import_sqlite(path, postgresql_url) == ImportResult(1_260, 0, [])
    assert all_rows(postgresql_url) == all_rows(file_url)


async def test_a_request_id_is_known_after_it_was_imported(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    await keep(file_url, new("t", request_id="r"))
    import_sqlite(path, postgresql_url)
    store = open_store(postgresql_url)
    again = await store.create(new("other", request_id="r"), NO_LIMIT)
    await store.close()
    assert isinstance(again, Existing)
    assert again.task.id == "t"


async def test_tasks_that_waited_for_the_stopped_service_are_due_and_others_keep_their_time(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    far = 4_000_000_000.0
    waiting = [
        new("accepted", due_time=far),
        new("submitting", stage=Stage.SUBMITTING, submit_time=NOW, due_time=far),
        new("queued", stage=Stage.QUEUED, provider_task_id="k", due_time=far),
        new("generating", stage=Stage.GENERATING, provider_task_id="l", due_time=far),
    ]
    others = [
        new("was due", due_time=5.0),
        new("waits for its callback", stage=Stage.SUBMITTING, unknown_time=NOW, due_time=far),
        new("is asked for hourly", status=Status.FAILED, stage=None, due_time=far),
        new("ended", status=Status.SUCCESS, stage=None, due_time=None),
    ]
    await keep(file_url, *waiting, *others)
    import_sqlite(path, postgresql_url)
    store = open_store(postgresql_url)
    for task in waiting:
        imported = await store.get(task.id)
        assert imported
        assert imported.due_time
        assert imported.due_time <= store.now()
        assert imported._replace(due_time=task.due_time) == task
    for task in others:
        assert await store.get(task.id) == task
    await store.close()


async def test_slots_are_imported_and_the_later_time_counts(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    quota = Quota("creates", 3, 10)
    for url, taken in ((file_url, 2), (postgresql_url, 1)):
        store = open_store(url)
        await store.add_slots(quota)
        for number in range(taken):
            await store.take_slot(quota, NOW + number)
        await store.close()
    change(postgresql_url, "UPDATE slots SET free_time = ? WHERE number = 0", NOW + 500)
    import_sqlite(path, postgresql_url)
    assert rows(postgresql_url, SLOTS) == [
        ("creates", 0, NOW + 500),
        ("creates", 1, NOW + 11),
        ("creates", 2, 0),
    ]


async def test_callbacks_of_imported_tasks_are_recognised(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    assert await secrets_of(file_url, b"of the file") == [b"of the file"]
    import_sqlite(path, postgresql_url)
    assert await secrets_of(postgresql_url, b"of a replica") == [b"of the file"]


async def test_replicas_that_have_a_secret_keep_it_and_recognise_that_of_the_file_too(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    await secrets_of(file_url, b"of the file")
    await secrets_of(postgresql_url, b"of a replica")
    import_sqlite(path, postgresql_url)
    assert await secrets_of(postgresql_url, b"x") == [b"of a replica", b"of the file"]


async def secrets_of(database_url: str, proposed: bytes) -> list[bytes]:
    """Return the secrets of callback URLs as a service would start with them."""
    store = open_store(database_url)
    found = await store.callback_secrets(proposed)
    await store.close()
    return found


# --- again ---

INTERRUPTED = f"PRAGMA user_version = {sqlite.RETIRED_VERSION}"  # as a file is before its end


async def test_a_file_that_was_imported_completely_is_refused_so_that_nothing_comes_back(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    await keep(file_url, new("t"))
    import_sqlite(path, postgresql_url)
    change(postgresql_url, "DELETE FROM tasks")  # as a purge does
    with pytest.raises(StorageConfigError, match="imported completely"):
        import_sqlite(path, postgresql_url)
    assert rows(postgresql_url, "SELECT id FROM tasks") == []


async def test_after_an_interruption_the_rest_is_imported_and_nothing_twice(
    file_url: str, path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(file_url, *(new(f"t{number}") for number in range(10)))
    import_batch = transfer._import_batch
    batches: list[int] = []

    def broken(target: Any, batch: Any) -> Any:
        batches.append(len(batch))
        if len(batches) == 3:
            raise StorageUnavailableError("away")
        return import_batch(target, batch)

    monkeypatch.setattr(transfer, "_import_batch", broken)
    with pytest.raises(StorageUnavailableError):
        import_sqlite(path, postgresql_url, 3)
    assert len(rows(postgresql_url, "SELECT id FROM tasks")) == 6
    assert import_sqlite(path, postgresql_url, 3) == ImportResult(4, 6, [])
    assert len(rows(postgresql_url, "SELECT id FROM tasks")) == 10


async def test_a_server_that_dies_half_way_leaves_whole_batches(
    file_url: str, path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(file_url, *(new(f"t{number}") for number in range(10)))
    import_batch = transfer._import_batch

    def deadly(target: Any, batch: Any) -> Any:
        if batch[0][0] == "t6":
            cluster.kill()
        return import_batch(target, batch)

    monkeypatch.setattr(transfer, "_import_batch", deadly)
    with pytest.raises(StorageUnavailableError):
        import_sqlite(path, cluster.url, 3)
    cluster.start()
    monkeypatch.setattr(transfer, "_import_batch", import_batch)
    assert import_sqlite(path, cluster.url, 3) == ImportResult(4, 6, [])


async def test_a_task_that_is_newer_in_postgresql_is_not_overwritten(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    await keep(file_url, new("t"))
    import_sqlite(path, postgresql_url)
    store = open_store(postgresql_url)
    before = await store.get("t")
    assert before
    after = await saved(store, before, before.failed(Failure("CANCELLED", "no"), NOW))
    await store.close()
    change(file_url, INTERRUPTED)
    assert import_sqlite(path, postgresql_url) == ImportResult(0, 1, [])
    assert await kept(postgresql_url, "t") == [after]


async def test_a_task_that_changed_in_the_file_is_named_and_not_overwritten(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    await keep(file_url, new("t"))
    import_sqlite(path, postgresql_url)
    change(file_url, INTERRUPTED)
    change(file_url, "UPDATE tasks SET version = version + 1, stage = 'QUEUED'")
    [task] = await kept(postgresql_url, "t")
    result = import_sqlite(path, postgresql_url)
    assert result == ImportResult(0, 0, [Skipped("t", "it has changed in the file since")])
    assert await kept(postgresql_url, "t") == [task]


# --- the file afterwards ---


async def test_no_service_starts_on_an_imported_file_until_people_say_so(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    await keep(file_url, new("t"))
    import_sqlite(path, postgresql_url)
    with pytest.raises(StorageConfigError, match=r"generation.db was imported into PostgreSQL"):
        open_store(file_url)
    change(file_url, "PRAGMA user_version = 0")
    assert await kept(file_url, "t") == [new("t")]


async def test_a_file_is_retired_before_its_first_task_is_in_postgresql(
    file_url: str, path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(file_url, new("t"))
    monkeypatch.setattr(transfer, "_import_tasks", lambda *_: pytest.fail("killed here"))
    with pytest.raises(pytest.fail.Exception):
        import_sqlite(path, postgresql_url)
    with pytest.raises(StorageConfigError, match="was imported"):
        open_store(file_url)
    assert rows(postgresql_url, "SELECT id FROM tasks") == []


# --- what is refused ---


async def test_a_conflicting_request_id_refuses_the_import_and_is_named(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    await keep(file_url, new("ours", request_id="r"), new("more"))
    await keep(postgresql_url, new("theirs", request_id="r"), new("t", caller="d", request_id="r"))
    with pytest.raises(TransferError, match=r"for 1 of the same request_ids: r of c$"):
        import_sqlite(path, postgresql_url)
    assert await kept(postgresql_url, "ours", "more") == [None, None]
    assert await kept(file_url, "ours") == [new("ours", request_id="r")], "it serves on"


async def test_a_request_id_that_is_used_during_the_import_ends_it(
    file_url: str, path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(file_url, new("ours", request_id="r"))
    await keep(postgresql_url, new("theirs", request_id="r"))
    monkeypatch.setattr(transfer, "_refuse_known_requests", lambda *_: None)
    with pytest.raises(TransferError, match="repeat the import"):
        import_sqlite(path, postgresql_url)


async def test_a_file_that_a_service_uses_is_refused(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    store = open_store(file_url)
    with pytest.raises(StorageConfigError, match="in use by another process"):
        import_sqlite(path, postgresql_url)
    await store.close()


async def test_a_service_is_refused_the_file_while_it_is_imported(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    await keep(file_url, new("t"))
    await keep(postgresql_url)
    with locked(postgresql_url):
        importing = asyncio.create_task(asyncio.to_thread(import_sqlite, path, postgresql_url))
        await eventually(lambda: rows(file_url, "PRAGMA user_version") == [(2,)])
        with pytest.raises(StorageConfigError, match="in use by another process"):
            open_store(file_url)
    assert await importing == ImportResult(1, 0, [])


def test_a_missing_file_is_named_and_not_created(path: Path, postgresql_url: str) -> None:
    with pytest.raises(StorageConfigError, match=r"there is no file .*generation\.db"):
        import_sqlite(path, postgresql_url)
    assert not path.exists()


def test_a_file_that_is_not_a_database_is_named(path: Path, postgresql_url: str) -> None:
    path.write_text("not a database")
    with pytest.raises(StorageConfigError, match=r"generation\.db is not a SQLite database"):
        import_sqlite(path, postgresql_url)


async def test_a_target_that_is_sqlite_is_refused(path: Path, file_url: str) -> None:
    await keep(file_url)
    with pytest.raises(StorageConfigError, match="must look like postgresql://"):
        import_sqlite(path, f"{file_url}.other")


async def test_a_file_of_a_newer_version_is_refused_as_its_columns_would_be_lost(
    path: Path, file_url: str, postgresql_url: str
) -> None:
    await keep(file_url)
    change(file_url, "INSERT INTO schema_migration (name, applied) VALUES ('0999_later', '')")
    with pytest.raises(StorageConfigError, match="newer version of this service: 0999_later"):
        import_sqlite(path, postgresql_url)


async def test_an_unavailable_target_does_not_retire_the_file(
    path: Path, file_url: str, cluster: Any
) -> None:
    await keep(file_url, new("t"))
    cluster.stop()
    with pytest.raises(StorageUnavailableError):
        import_sqlite(path, cluster.url)
    assert await kept(file_url, "t") == [new("t")]


# --- what cannot be imported ---


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("params", "CAST('text' AS TEXT)"),
        ("result_json", "'a' || char(0) || 'b'"),
        ("failure_message", "CAST(X'ff00ff' AS TEXT)"),
        ("failure_message", "X'00'"),
        ("create_time", "'yesterday'"),
        ("progress_percent", "2147483648"),
        ("setbacks", "1.5"),
    ],
)
async def test_tasks_that_postgresql_cannot_store_are_named_and_the_others_imported(
    file_url: str, path: Path, postgresql_url: str, column: str, value: str
) -> None:
    await keep(file_url, new("whole"), new("damaged"), new("whole too"))
    change(file_url, f"UPDATE tasks SET {column} = {value} WHERE id = 'damaged'")  # noqa: S608
    result = import_sqlite(path, postgresql_url)
    assert result == ImportResult(
        2, 0, [Skipped("damaged", f"PostgreSQL cannot store its {column}")]
    )
    found = await kept(postgresql_url, "whole", "damaged", "whole too")
    assert [task is not None for task in found] == [True, False, True]


async def test_a_damaged_row_that_postgresql_can_store_keeps_its_request_id(
    file_url: str, path: Path, postgresql_url: str
) -> None:
    await keep(file_url, new("t", request_id="r", due_time=None))
    change(file_url, "UPDATE tasks SET status = 'X'")
    assert import_sqlite(path, postgresql_url) == ImportResult(1, 0, [])
    assert rows(postgresql_url, "SELECT status, request_id FROM tasks") == [("X", "r")]


async def test_tasks_that_disappear_from_postgresql_are_reported(
    file_url: str, path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(file_url, new("t"), new("u"))
    import_tasks = transfer._import_tasks

    def lossy(*args: Any) -> ImportResult:
        result = import_tasks(*args)
        change(postgresql_url, "DELETE FROM tasks WHERE id = 'u'")
        return result

    monkeypatch.setattr(transfer, "_import_tasks", lossy)
    with pytest.raises(TransferError, match=r"^1 of the imported tasks"):
        import_sqlite(path, postgresql_url)
