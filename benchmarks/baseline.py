"""The floor: a server that does the work nobody can avoid, and nothing else.

The same grpc.aio on the same uvloop with the same channel options, a message of the same size
serialised for each call; for CreateTask the same POST on a fresh connection and the same number of
grouped durable commits; for WatchTask a stream that waits for a push; for UploadFile a pipe into a
multipart. No callers, no rules, no errors, no reads. `python -m benchmarks.baseline OPTIONS` takes
commands, see child.py; with `--collect-rarely` its garbage collector is set as the service's.

OPTIONS are the channel options as JSON. They are not imported here: the modules of the service
would fill the heap that the floor's garbage collector has to walk.
"""

import asyncio
import gc
import json
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import aiohttp
import grpc
import psycopg2
import uvloop
from psycopg2.extras import execute_values

from benchmarks.child import Command, answer_commands
from benchmarks.tasks import params, prompt, task_id
from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import (
    GenerationServiceServicer,
    add_GenerationServiceServicer_to_server,
)

COLLECT_RARELY = "--collect-rarely"
COLLECTION_THRESHOLDS = (50_000, 10, 10)  # those of service/__main__.py
# The task, that it is about to be sent, and what the provider called it: none can be left out or
# put together without losing a task or buying one twice.
UPDATES_BEFORE_POST, UPDATES_AFTER_POST = 1, 1
INSERT, UPDATE = "insert", "update"
Row = tuple[str, bytes, str]

CREATE_TABLE = "CREATE TABLE floor_tasks (id TEXT PRIMARY KEY, params {blob}, snapshot TEXT)"


class SqliteCommits:
    """Commits to a SQLite file, synchronous FULL."""

    def __init__(self, database: str) -> None:
        # The writer's thread alone uses it, but for its making.
        self._connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = wal", "synchronous = full"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(CREATE_TABLE.format(blob="BLOB"))

    def commit(self, jobs: Sequence[tuple[str, Row]]) -> None:
        """Write all of them in one transaction."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for kind, row in jobs:
            if kind == INSERT:
                execute("INSERT INTO floor_tasks VALUES (?, ?, ?)", row)
            else:
                execute("UPDATE floor_tasks SET params = ?2, snapshot = ?3 WHERE id = ?1", row)
        execute("COMMIT")


class PostgresCommits:
    """Commits to PostgreSQL: a statement for all inserts of a group, and one for all updates."""

    def __init__(self, database: str) -> None:
        self._connection = psycopg2.connect(database)
        with self._connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS floor_tasks")
            cursor.execute(CREATE_TABLE.format(blob="BYTEA"))
        self._connection.commit()

    def commit(self, jobs: Sequence[tuple[str, Row]]) -> None:
        """Write all of them in one transaction."""
        inserts = [row for kind, row in jobs if kind == INSERT]
        updates = [row for kind, row in jobs if kind == UPDATE]
        with self._connection.cursor() as cursor:
            if inserts:
                execute_values(cursor, "INSERT INTO floor_tasks VALUES %s", inserts)
            if updates:
                execute_values(
                    cursor,
                    "UPDATE floor_tasks SET params = v.params, snapshot = v.snapshot"
                    " FROM (VALUES %s) AS v (id, params, snapshot) WHERE floor_tasks.id = v.id",
                    updates,
                    template="(%s, %s::bytea, %s)",
                )
        self._connection.commit()


class GroupCommits:
    """One thread that commits all that waits together."""

    def __init__(self, commit: Callable[[Sequence[tuple[str, Row]]], None]) -> None:
        self._commit = commit
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[str, Row, asyncio.Future[None]]] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    async def write(self, kind: str, row: Row) -> None:
        """Return once it is on the disk."""
        done = self._loop.create_future()
        self._jobs.put((kind, row, done))
        await done

    def _serve(self) -> None:
        while True:
            batch = [self._jobs.get()]
            try:
                while True:
                    batch.append(self._jobs.get_nowait())
            except Empty:
                pass
            self._commit([(kind, row) for kind, row, _ in batch])
            self._loop.call_soon_threadsafe(_release, [done for _, _, done in batch])


def _release(waiting: Sequence["asyncio.Future[None]"]) -> None:
    for done in waiting:
        if not done.done():
            done.set_result(None)


class Floor(GenerationServiceServicer):
    """The handlers."""

    def __init__(self) -> None:
        self._query = pb.QueryTaskResponse()
        self._create = pb.CreateTaskResponse()
        self._watch = pb.WatchTaskResponse()
        self._pushed = asyncio.Event()
        self._commits: GroupCommits
        self._provider_url = ""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._order = {
            "model": "google/imagen4-fast",
            "input": {"prompt": prompt(), "aspect_ratio": "16:9"},
        }
        self._row = (params().SerializeToString(), "x" * 300)
        self._created = 0

    async def QueryTask(self, request: Any, context: Any) -> pb.QueryTaskResponse:  # noqa: N802
        """Answer."""
        del request, context
        return self._query

    async def CreateTask(self, request: Any, context: Any) -> pb.CreateTaskResponse:  # noqa: N802
        """Commit, POST, commit, answer."""
        del request, context
        self._created += 1
        row: Row = (task_id(self._created), *self._row)
        await self._commits.write(INSERT, row)
        for _ in range(UPDATES_BEFORE_POST):
            await self._commits.write(UPDATE, row)
        url = self._provider_url + "/api/v1/jobs/createTask"
        async with self._http.post(url, json=self._order) as answer:
            await answer.json()
        for _ in range(UPDATES_AFTER_POST):
            await self._commits.write(UPDATE, row)
        return self._create

    async def WatchTask(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[pb.WatchTaskResponse]:
        """Answer, and again with every push."""
        del request, context
        while True:
            pushed = self._pushed
            yield self._watch
            await pushed.wait()

    async def UploadFile(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: Any
    ) -> pb.UploadFileResponse:
        """Pipe the chunks into a multipart."""
        del context
        metadata = (await anext(request_iterator)).metadata
        form = aiohttp.MultipartWriter("form-data")
        form.append("user-uploads").set_content_disposition("form-data", name="uploadPath")
        form.append(metadata.file_name).set_content_disposition("form-data", name="fileName")
        form.append_payload(_File(request_iterator, metadata))
        url = self._provider_url + "/api/file-stream-upload"
        async with self._http.post(url, data=form) as answer:
            await answer.json()
        return pb.UploadFileResponse(file=pb.UploadedFile(size_bytes=metadata.size_bytes))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    # --- commands ---

    async def answer(self, *, task: str) -> None:
        """Answer with this task from now on: a QueryTaskResponse in hexadecimal."""
        self._query = pb.QueryTaskResponse.FromString(bytes.fromhex(task))
        self._create = pb.CreateTaskResponse(task=self._query.task)
        self._watch = pb.WatchTaskResponse(task=self._query.task)

    async def use(self, *, provider_url: str, database: str = "") -> None:
        """Send orders and files there; commit to that database, a file or a PostgreSQL URL."""
        self._provider_url = provider_url
        if database:
            postgres = database.startswith("postgres")
            commits = PostgresCommits(database) if postgres else SqliteCommits(database)
            self._commits = GroupCommits(commits.commit)

    async def push(self) -> None:
        """Send the message to every stream."""
        self._pushed.set()
        self._pushed = asyncio.Event()


class _File(aiohttp.AsyncIterablePayload):
    """The file's part of the multipart."""

    def __init__(
        self, requests: AsyncIterator[pb.UploadFileRequest], metadata: pb.UploadMetadata
    ) -> None:
        super().__init__(_chunks(requests), content_type="video/mp4")
        self._size = metadata.size_bytes
        self.set_content_disposition("form-data", name="file", filename=metadata.file_name)


async def _chunks(requests: AsyncIterator[pb.UploadFileRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.chunk


async def main() -> None:
    """Serve and take commands until stdin ends."""
    floor = Floor()  # type: ignore[abstract] # it has no lists and cancels nothing
    options = [(name, value) for name, value in json.loads(sys.argv[1])]
    server = grpc.aio.server(options=options)
    add_GenerationServiceServicer_to_server(floor, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    if COLLECT_RARELY in sys.argv:
        gc.freeze()
        gc.set_threshold(*COLLECTION_THRESHOLDS)
    commands: dict[str, Command] = {
        "answer": floor.answer,
        "use": floor.use,
        "push": floor.push,
    }
    await answer_commands(commands, {"address": f"127.0.0.1:{port}"})
    await server.stop(0)
    await floor.close()


if __name__ == "__main__":
    uvloop.run(main())
