"""The blocking client, in threads and in programs of its own."""

import asyncio
import inspect
import os
import signal
import sys
import threading
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import kie_generation
from kie_generation import (
    Imagen4Params,
    TaskNotFoundError,
    TaskStatus,
    UnavailableError,
    ended,
    sync,
)
from kie_generation.generated.generation.v1.generation_pb2 import (
    ListTasksResponse,
    WatchTaskRequest,
    WatchTaskResponse,
)
from tests.support.paths import ROOT
from tests.support.scripted_server import (
    FAST,
    UNAVAILABLE,
    Context,
    ScriptedService,
    Silence,
    pending,
    serving,
    success,
    uploaded,
)

PARAMS = Imagen4Params(prompt="a lighthouse")
SECONDS = 30.0
METHODS = [
    *("create", "get", "list", "list_models", "get_model", "cancel"),
    *("watch", "watch_tasks", "wait", "upload"),
]


async def in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.wait_for(asyncio.to_thread(work, *arguments), SECONDS)


# --- against the real service ---


async def test_a_task_is_created_watched_listed_and_saved(address: str, tmp_path: Path) -> None:
    def work() -> None:
        with sync.GenerationClient(address) as client:
            created = client.create(PARAMS, prompt_id="p-1")
            revisions = [task.revision for task in client.watch(created.id)]
            assert revisions == sorted(set(revisions))
            last = client.wait(created.id, timeout=SECONDS)
            assert last == client.get(created.id)
            assert last.status == TaskStatus.TASK_STATUS_SUCCESS
            assert list(client.list(prompt_id="p-1")) == [last]
            assert list(client.list(prompt_id="p-2")) == []
            (saved,) = sync.save_artifacts(last, tmp_path / "results")
            assert saved.read_bytes().startswith(b"\x89PNG")

    await in_thread(work)


async def test_threads_share_a_client(address: str) -> None:
    def work() -> None:
        with sync.GenerationClient(address) as client, ThreadPoolExecutor(8) as threads:

            def run(number: int) -> str:
                task = client.create(PARAMS, prompt_id=f"p-{number}")
                *_, last = client.watch(task.id)
                assert ended(last)
                return last.prompt_id

            numbers = range(16)
            assert list(threads.map(run, numbers)) == [f"p-{number}" for number in numbers]

    await in_thread(work)


@pytest.mark.parametrize("kind", ["path", "blocking iterator"])
async def test_a_file_is_uploaded_from_a_path_or_a_blocking_iterator(
    address: str, tmp_path: Path, kind: str
) -> None:
    content = b"\x89PNG\r\n\x1a\n" + bytes(600_000)
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    reading: list[int] = []

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(content), 100_000):
            reading.append(threading.get_ident())
            yield content[start : start + 100_000]

    def work() -> None:
        with sync.GenerationClient(address) as client:
            source = path if kind == "path" else chunks()
            file = client.upload(source, file_name="photo.png")
        assert file.size_bytes == len(content)
        assert file.mime_type == "image/png"

    await in_thread(work)
    assert _event_loop_thread() not in reading


def _event_loop_thread() -> int | None:
    (thread,) = (each for each in threading.enumerate() if each.name == "kie_generation.sync")
    return thread.ident


# --- errors, and what ends a call ---


async def test_errors_are_those_of_the_async_client(address: str) -> None:
    def work() -> None:
        with sync.GenerationClient(address) as client:
            with pytest.raises(TaskNotFoundError):
                client.get("nothing")
            with pytest.raises(TaskNotFoundError):
                next(client.watch("nothing"))
            with pytest.raises(TypeError):
                client.create(ListTasksResponse(), prompt_id="p-1")

    await in_thread(work)


async def test_a_lost_stream_is_reopened_and_reported() -> None:
    service = ScriptedService()
    service.streams.extend([[pending(1), UNAVAILABLE], [success(2)]])
    connection: list[UnavailableError | None] = []

    def work(address: str) -> None:
        with sync.GenerationClient(address, retry=FAST) as client:
            tasks = client.watch("t-1", on_connection=connection.append)
            assert [task.revision for task in tasks] == [1, 2]

    async with serving(service) as address:
        await in_thread(work, address)
    assert isinstance(connection[0], UnavailableError)
    assert connection[-1] is None


async def test_wait_raises_timeout_error() -> None:
    service = ScriptedService()
    service.streams.append([Silence()])

    def work(address: str) -> None:
        with sync.GenerationClient(address) as client, pytest.raises(TimeoutError):
            client.wait("t-1", timeout=0.1)

    async with serving(service) as address:
        await in_thread(work, address)


class Watched(ScriptedService):
    """Keeps a stream open, and notices when it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = asyncio.Event()

    async def WatchTask(  # noqa: N802 - gRPC names the methods of a servicer
        self,
        request: WatchTaskRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> AsyncIterator[WatchTaskResponse]:
        try:
            yield WatchTaskResponse(task=pending(1))
            self.watched.set()
            await asyncio.Event().wait()
        finally:
            self.closed.set()


async def test_a_watch_that_is_left_early_closes_its_stream() -> None:
    service = Watched()

    def work(address: str) -> None:
        client = sync.GenerationClient(address)
        for task in client.watch("t-1"):
            assert task.revision == 1
            break
        assert client.get("t-1").revision == 2
        client.close()

    service.answers.append(pending(2))
    async with serving(service) as address:
        await in_thread(work, address)
        await asyncio.wait_for(service.closed.wait(), SECONDS)


async def test_a_closed_client_fails_at_once_and_ends_the_watches_of_other_threads() -> None:
    service = Watched()

    def watch(client: sync.GenerationClient) -> None:
        with pytest.raises(RuntimeError, match="closed"):
            list(client.watch("t-1"))

    def close(client: sync.GenerationClient) -> None:
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.get("t-1")

    async with serving(service) as address:
        client = sync.GenerationClient(address)
        watching = asyncio.create_task(in_thread(watch, client))
        await asyncio.wait_for(service.watched.wait(), SECONDS)
        await in_thread(close, client)
        await watching


async def test_a_callback_that_calls_the_client_raises_instead_of_hanging() -> None:
    service = ScriptedService()
    service.answers.extend([UNAVAILABLE, uploaded()])
    client = sync.GenerationClient("127.0.0.1:1", retry=FAST, on_retry=lambda _: client.close())

    def work() -> None:
        with client, pytest.raises(RuntimeError, match="callback"):
            client.get("t-1")

    await in_thread(work)


# --- programs ---


async def run_program(program: str, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT / "client")},
        stdout=PIPE,
        stderr=STDOUT,
    )


async def output_of(program: Process) -> str:
    out, _ = await asyncio.wait_for(program.communicate(), SECONDS)
    return out.decode()


UNCLOSED = """
import sys
from kie_generation.sync import GenerationClient

client = GenerationClient(sys.argv[1])
print(client.get("t-1").revision)
for task in client.watch("t-1"):
    break
"""


async def test_a_program_that_does_not_close_its_client_ends_quietly() -> None:
    service = ScriptedService()
    service.answers.append(pending(7))
    service.streams.append([pending(8), Silence()])
    async with serving(service) as address:
        program = await run_program(UNCLOSED, address)
        assert await output_of(program) == "7\n"
    assert program.returncode == 0


WATCHING = """
import sys
from kie_generation.sync import GenerationClient

try:
    with GenerationClient(sys.argv[1]) as client:
        for task in client.watch("t-1"):
            print(task.revision, flush=True)
except KeyboardInterrupt:
    print("interrupted")
"""


async def test_ctrl_c_ends_a_blocking_call() -> None:
    service = ScriptedService()
    service.streams.append([pending(1), Silence()])
    async with serving(service) as address:
        program = await run_program(WATCHING, address)
        assert program.stdout is not None
        assert await asyncio.wait_for(program.stdout.readline(), SECONDS) == b"1\n"
        program.send_signal(signal.SIGINT)
        assert await output_of(program) == "interrupted\n"
    assert program.returncode == 0


FORKED = """
import os, sys
from kie_generation.sync import GenerationClient

client = GenerationClient(sys.argv[1])
if sys.argv[2] == "before":
    client.get("t-1")
if child := os.fork():
    os.waitpid(child, 0)
else:
    try:
        print("revision", client.get("t-1").revision, flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("used", "shown"),
    [
        ("after", "revision 1\n"),
        ("before", "a client was used before this process was forked\n"),
    ],
)
async def test_a_client_works_in_a_forked_process_unless_it_was_used_before(
    used: str, shown: str
) -> None:
    service = ScriptedService()
    service.answers.extend([pending(1)] * 2)
    async with serving(service) as address:
        assert await output_of(await run_program(FORKED, address, used)) == shown


# --- the same client ---


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_the_signature_and_the_documentation_of_the_async_one(method: str) -> None:
    blocking = getattr(sync.GenerationClient, method)
    original = getattr(kie_generation.GenerationClient, method)
    assert inspect.signature(blocking) == inspect.signature(original)
    assert inspect.getdoc(blocking) == inspect.getdoc(original)


def test_the_blocking_client_has_every_method_of_the_async_one() -> None:
    public = {name for name in vars(kie_generation.GenerationClient) if not name.startswith("_")}
    assert public == set(METHODS)
    original = inspect.signature(kie_generation.GenerationClient)
    assert inspect.signature(sync.GenerationClient) == original
