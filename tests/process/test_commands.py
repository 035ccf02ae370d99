"""`python -m service migrate`, `new-epoch` and `import`, as processes."""

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.__main__ import main
from service.leases import LeaseTimes
from storage.changes import START
from storage.opening import open_store
from storage.schema import MIGRATIONS
from tests.support.databases import change, rows
from tests.support.harness import API_KEY, INSTANT, poller_bounds, serving
from tests.support.paths import ROOT
from tests.support.prompts import STUCK
from tests.support.storing import new, stored

OURS = sorted(path.stem for path in MIGRATIONS.glob("0*.py"))
SECONDS = 30
SUCCESS = pb.TASK_STATUS_SUCCESS
# The state of a task whose process was killed between the claim and the response.
SUBMITTING = (
    "UPDATE tasks SET stage = 'SUBMITTING', provider_task_id = '', accept_time = NULL,"
    " due_time = 4000000000 WHERE id = ?"
)
BUSY = "create:code,code=455,times=0"


async def run(folder: Path, *arguments: str, database_url: str = "") -> tuple[int, str, str]:
    """Run a command in a folder; return its exit code, what it printed and its log."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", *arguments),
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "DATABASE_URL": database_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, log = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode is not None
    assert "Traceback" not in log.decode()
    return process.returncode, printed.decode(), log.decode()


# --- refresh-catalogue ---


async def test_refresh_catalogue_prints_each_change_as_soon_as_it_is_saved(
    tmp_path: Path, database_url: str
) -> None:
    async with Simulator(replace(INSTANT, withdrawn_models=("z-image",))) as kie:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "refresh-catalogue"),
            cwd=tmp_path,
            env={
                "PYTHONPATH": str(ROOT),
                "DATABASE_URL": database_url,
                "KIE_API_KEY": API_KEY,
                "KIE_API_URL": kie.url,
                "KIE_UPLOAD_URL": kie.url,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            while await process.stdout.readline() != b"retired: z-image\n":
                assert process.returncode is None
        process.kill()  # all schemas would take minutes
        await process.communicate()
    retired = rows(database_url, "SELECT id FROM models WHERE retired_time IS NOT NULL")
    assert retired == [("z-image",)]


async def test_refresh_catalogue_needs_a_key_or_a_simulator(
    tmp_path: Path, postgresql_url: str
) -> None:
    code, printed, log = await run(tmp_path, "refresh-catalogue", database_url=postgresql_url)
    assert (code, printed) == (2, "")
    assert log.startswith("KIE_API_KEY: must be set")


# --- migrate ---


async def test_migrate_applies_what_is_missing_says_so_and_ends(
    tmp_path: Path, database_url: str
) -> None:
    said = "".join(f"applied {name}\n" for name in OURS)
    assert await run(tmp_path, "migrate", database_url=database_url) == (0, said, "")
    again = await run(tmp_path, "migrate", database_url=database_url)
    assert again == (0, "nothing to apply\n", "")
    assert rows(database_url, "SELECT count(*) FROM tasks") == [(0,)]


async def test_migrate_refuses_a_file_that_a_service_uses(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/generation.db")
    code, printed, log = await run(tmp_path, "migrate")
    await store.close()
    assert (code, printed) == (2, "")
    assert "cannot migrate" in log
    assert "generation.db is in use by another process" in log


# --- new-epoch ---


async def test_new_epoch_lets_streams_of_changes_start_over(
    tmp_path: Path, database_url: str
) -> None:
    epochs = []
    for _ in range(2):
        store = open_store(database_url)
        epochs.append((await store.changes("c", START, 1)).epoch)
        await store.close()
        code, printed, _ = await run(tmp_path, "new-epoch", database_url=database_url)
        assert (code, printed) == (0, "streams of all changes start over\n")
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("arguments", [("migrate",), ("import", "sqlite:///generation.db")])
async def test_an_unavailable_database_ends_a_command_with_1_and_without_its_password(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    await open_store(f"sqlite:///{tmp_path}/generation.db").close()
    away = "postgresql://somebody:pass-word@127.0.0.1:1/generation"
    code, _, log = await run(tmp_path, *arguments, database_url=away)
    assert code == 1
    assert f"cannot {arguments[0]}" in log
    assert "pass-word" not in log


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("serve-and-protect",), "serve-and-protect"),
        (("import",), "sqlite:///FILE"),
        (("import", "generation.db"), "must look like sqlite:///generation.db"),
        (("import", "sqlite:///generation.db"), "there is no file generation.db"),
        (("migrate", "now"), "now"),
    ],
)
async def test_a_bad_argument_ends_with_2_and_is_named(
    tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    code, printed, log = await run(
        tmp_path, *arguments, database_url="postgresql://127.0.0.1:1/generation"
    )
    assert (code, printed) == (2, "")
    assert named in log


async def test_a_bad_setting_ends_a_command_with_2_and_is_named(tmp_path: Path) -> None:
    code, printed, log = await run(tmp_path, "migrate", database_url="mysql://x")
    assert (code, printed) == (2, "")
    assert "DATABASE_URL" in log


# --- import ---


async def test_tasks_that_were_not_imported_end_an_import_with_1_and_are_named(
    tmp_path: Path, postgresql_url: str
) -> None:
    file_url = f"sqlite:///{tmp_path}/generation.db"
    store = open_store(file_url)
    await stored(store, new("whole"), new("damaged"))
    await store.close()
    change(file_url, "UPDATE tasks SET params = 'text' WHERE id = 'damaged'")
    code, printed, log = await run(tmp_path, "import", file_url, database_url=postgresql_url)
    assert (code, printed) == (1, "tasks imported: 1; imported before: 0\n")
    assert re.search(r"a task was not imported .*task_id=damaged", log)
    assert "tasks not imported: 1" in log


async def test_tasks_in_progress_on_sqlite_end_on_postgresql_and_nothing_is_bought_twice(
    tmp_path: Path, kie: Simulator, postgresql_url: str
) -> None:
    bounds = poller_bounds(leases=LeaseTimes(lease_seconds=0.5))
    file_url = f"sqlite:///{tmp_path}/generation.db"
    async with serving(tmp_path, kie, database_url=file_url, create_wait_seconds=1) as old:
        done = await old.end((await old.create(request_id="done")).id)
        working = await old.create(STUCK, request_id="working")
        killed = await old.create(STUCK, request_id="killed")
        kie.add_fault(BUSY)
        waiting = await old.until_put_back((await old.create(request_id="waiting")).id)
    kie.clear_faults()
    change(file_url, SUBMITTING, killed.id)

    code, printed, _ = await run(tmp_path, "import", file_url, database_url=postgresql_url)
    assert (code, printed) == (0, "tasks imported: 4; imported before: 0\n")

    kie.finish(working.provider_task_id)
    async with (
        serving(tmp_path, kie, database_url=postgresql_url, bounds=bounds) as one,
        serving(tmp_path, kie, database_url=postgresql_url, bounds=bounds) as two,
    ):
        assert await one.end(done.id) == done
        for service, task in ((one, working), (two, waiting)):
            assert (await service.end(task.id)).status == SUCCESS
        assert (await two.query(working.id)).provider_task_id == working.provider_task_id
        unknown = (await two.end(killed.id)).failure.reason
        assert unknown == pb.ERROR_REASON_SUBMISSION_UNKNOWN

        listed = (await one.stub.ListTasks(pb.ListTasksRequest())).tasks
        assert [task.id for task in listed] == [waiting.id, killed.id, working.id, done.id]
        for params, task in ((None, done), (STUCK, working), (None, waiting)):
            again = await two.create(params, request_id=task.request_id)
            assert (again.id, again.status) == (task.id, SUCCESS)
    assert len(kie.tasks) == 4


async def test_after_an_import_no_service_starts_on_the_file_and_the_error_says_why(
    tmp_path: Path, postgresql_url: str
) -> None:
    file_url = f"sqlite:///{tmp_path}/generation.db"
    await open_store(file_url).close()
    assert (await run(tmp_path, "import", file_url, database_url=postgresql_url))[0] == 0
    code, _, log = await run(tmp_path)
    assert code == 2
    assert "cannot start" in log
    assert "generation.db was imported into PostgreSQL" in log


@pytest.mark.parametrize("arguments", [["frob"], ["frob", "x"], ["--frob"], ["migrate", "x"]])
def test_an_unknown_argument_is_named_with_the_known_ones(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "argument :" not in error
    assert arguments[-1] in error or "argument COMMAND: invalid choice: 'frob'" in error


def test_the_help_names_every_command_and_has_no_empty_entry(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert {"migrate", "import"} <= set(help_text.split())
    assert not any(line.isspace() for line in help_text.splitlines())
