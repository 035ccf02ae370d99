"""The baseline: a minimal server that does only the unavoidable work.

It is the same grpc.aio on the same uvloop with the same channel options. Each call serializes a
message of the same size. CreateTask makes the same POST on a new connection and the same number of
grouped durable commits; WatchTask is a stream that waits for a push; UploadFile pipes the chunks
into a multipart request. There are no callers, rules, errors or reads.

`python -m benchmarks.baseline OPTIONS THRESHOLDS` answers commands, see child.py. OPTIONS are the
channel options and THRESHOLDS those of the garbage collector, both as JSON; without thresholds, the
collector has Python's defaults. They are not imported here, because the modules of the service
would double the number of objects that the collector has to traverse.
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
from benchmarks.tasks import params, prompt
from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import (
    GenerationServiceServicer,
    add_GenerationServiceServicer_to_server,
)

# An INSERT of the task, an UPDATE before it is sent, and one with the provider's id. Without any of
# them, or with two in one commit, a crash could lose a task or pay for it twice.
INSERT, UPDATE = "insert", "update"
Row = tuple[str, bytes, str]

CREATE_TABLE = "CREATE TABLE baseline_tasks (id TEXT PRIMARY KEY, params {blob}, snapshot TEXT)"


class SqliteCommits:
    """Commits to a SQLite file, synchronous FULL."""

    def __init__(self, database: str) -> None:
        # Only the writer's thread uses it after this.
        self._connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = wal", "synchronous = full"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(CREATE_TABLE.format(blob="BLOB"))

    def commit(self, jobs: Sequence[tuple[str, Row]]) -> None:
        """Execute all jobs in one transaction."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for kind, row in jobs:
            if kind == INSERT:
                execute("INSERT INTO baseline_tasks VALUES (?, ?, ?)", row)
            else:
                execute("UPDATE baseline_tasks SET params = ?2, snapshot = ?3 WHERE id = ?1", row)
        execute("COMMIT")


class PostgresCommits:
    """Commits to PostgreSQL: one statement for the inserts of a group, and one for its updates."""

    def __init__(self, database: str) -> None:
        self._connection = psycopg2.connect(database)
        with self._connection.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS baseline_tasks")
            cursor.execute(CREATE_TABLE.format(blob="BYTEA"))
        self._connection.commit()

    def commit(self, jobs: Sequence[tuple[str, Row]]) -> None:
        """Execute all jobs in one transaction."""
        inserts = [row for kind, row in jobs if kind == INSERT]
        updates = [row for kind, row in jobs if kind == UPDATE]
        with self._connection.cursor() as cursor:
            if inserts:
                execute_values(cursor, "INSERT INTO baseline_tasks VALUES %s", inserts)
            if updates:
                execute_values(
                    cursor,
                    "UPDATE baseline_tasks SET params = v.params, snapshot = v.snapshot"
                    " FROM (VALUES %s) AS v (id, params, snapshot) WHERE baseline_tasks.id = v.id",
                    updates,
                    template="(%s, %s::bytea, %s)",
                )
        self._connection.commit()


class GroupCommits:
    """A thread that commits all waiting jobs in one transaction."""

    def __init__(self, commit: Callable[[Sequence[tuple[str, Row]]], None]) -> None:
        self._commit = commit
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[str, Row, asyncio.Future[None]]] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    async def write(self, kind: str, row: Row) -> None:
        """Return when the job is committed."""
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


class Baseline(GenerationServiceServicer):
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
        self._body = {
            "model": "google/imagen4-fast",
            "input": {"prompt": prompt(), "aspect_ratio": "16:9"},
        }
        self._row = (params().SerializeToString(), "x" * 300)
        self._created = 0

    async def QueryTask(self, request: Any, context: Any) -> pb.QueryTaskResponse:  # noqa: N802
        """Return the message."""
        del request, context
        return self._query

    async def CreateTask(self, request: Any, context: Any) -> pb.CreateTaskResponse:  # noqa: N802
        """Commit twice, POST, commit, and return the message."""
        del request, context
        self._created += 1
        row: Row = (f"{self._created:032x}", *self._row)  # ascending, as those of the service
        await self._commits.write(INSERT, row)
        await self._commits.write(UPDATE, row)
        url = self._provider_url + "/api/v1/jobs/createTask"
        async with self._http.post(url, json=self._body) as answer:
            await answer.json()
        await self._commits.write(UPDATE, row)
        return self._create

    async def WatchTask(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[pb.WatchTaskResponse]:
        """Yield the message, and again after every push."""
        del request, context
        while True:
            pushed = self._pushed
            yield self._watch
            await pushed.wait()

    async def UploadFile(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: Any
    ) -> pb.UploadFileResponse:
        """Pipe the chunks into a multipart request."""
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
        """Return this task from now on: a QueryTaskResponse in hexadecimal."""
        self._query = pb.QueryTaskResponse.FromString(bytes.fromhex(task))
        self._create = pb.CreateTaskResponse(task=self._query.task)
        self._watch = pb.WatchTaskResponse(task=self._query.task)

    async def use(self, *, provider_url: str, database: str = "") -> None:
        """Set the provider and the database: a file or a PostgreSQL URL."""
        self._provider_url = provider_url
        if database:
            postgres = database.startswith("postgres")
            commits = PostgresCommits(database) if postgres else SqliteCommits(database)
            self._commits = GroupCommits(commits.commit)

    async def push(self) -> None:
        """Yield the message on every stream."""
        self._pushed.set()
        self._pushed = asyncio.Event()


class _File(aiohttp.AsyncIterablePayload):
    """The file in the multipart request."""

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
    """Serve and answer commands until stdin ends."""
    options, thresholds = map(json.loads, sys.argv[1:])
    baseline = Baseline()  # type: ignore[abstract] # ListTasks and CancelTask are not measured
    server = grpc.aio.server(options=[(name, value) for name, value in options])
    add_GenerationServiceServicer_to_server(baseline, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    if thresholds:
        gc.freeze()
        gc.set_threshold(*thresholds)
    commands: dict[str, Command] = {
        "answer": baseline.answer,
        "use": baseline.use,
        "push": baseline.push,
    }
    await answer_commands(commands, {"address": f"127.0.0.1:{port}"})
    await server.stop(0)
    await baseline.close()


if __name__ == "__main__":
    uvloop.run(main())
