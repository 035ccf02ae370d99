"""The limits of callers: each refuses or delays its own caller and no other."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2 import Imagen4Params
from kie_generation import GenerationClient
from kie_generation.errors import RefusedError
from providers.kie.simulator import Simulator
from service.agenda import AgendaTimes
from service.bounds import Bounds
from service.caller_limits import CallerLimitsError, read_limits
from service.holds import HoldTimes
from service.limits import LimitBounds
from storage.pages import ListFilter
from storage.store import Store
from storage.task import Task
from tests.support.databases import change, rows
from tests.support.harness import Service, poller_bounds, serving, upload_messages
from tests.support.prompts import STUCK, STUCK_PROMPT
from tests.support.refusals import Refusal, refused
from tests.support.waiting import DEADLINE_SECONDS, eventually

LATER_SECONDS = 60.0  # how long the poller waits if nothing wakes it
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass(frozen=True)
class Caller:
    """A caller of a service."""

    name: str
    service: Service

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.name}"),)

    async def create(
        self, params: dict[str, Any] | None = None, **fields: Any
    ) -> pb.GenerationTask:
        return await self.service.create(params, metadata=self.metadata, **fields)

    async def create_refused(self, **fields: Any) -> Refusal:
        return await refused(self.create(STUCK, **fields))

    async def query(self, task_id: str) -> pb.GenerationTask:
        request = pb.QueryTaskRequest(task_id=task_id)
        answer = await self.service.stub.QueryTask(request, metadata=self.metadata, timeout=5)
        return answer.task

    async def cancel(self, task_id: str) -> None:
        request = pb.CancelTaskRequest(task_id=task_id)
        await self.service.stub.CancelTask(request, metadata=self.metadata, timeout=5)

    async def list(self) -> pb.ListTasksResponse:
        request = pb.ListTasksRequest()
        return await self.service.stub.ListTasks(request, metadata=self.metadata, timeout=5)

    def watch(self, task_id: str) -> Any:
        request = pb.WatchTaskRequest(task_id=task_id)
        return self.service.stub.WatchTask(request, metadata=self.metadata)

    def upload(self, messages: Any) -> Any:
        return self.service.stub.UploadFile(messages, metadata=self.metadata)

    async def is_sent(self, task_id: str, seconds: float = DEADLINE_SECONDS) -> bool:
        """Whether the provider gets a task within a time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (await self.query(task_id)).provider_task_id:
                    pass
                return True
        return False


@dataclass(frozen=True)
class Files:
    """The files of tokens and of limits."""

    tokens: Path
    limits: Path

    def name(self, *names: str) -> None:
        lines = (f"{name} {sha256(name.encode()).hexdigest()}\n" for name in names)
        _replace(self.tokens, "".join(lines))

    def limit(self, text: str) -> None:
        _replace(self.limits, text)


def _replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Tokens of alice and bob, and no limits."""
    files = Files(tmp_path / "tokens", tmp_path / "limits.toml")
    files.name("alice", "bob")
    files.limit("")
    return files


def bounds(**limits: Any) -> Bounds:
    """Return bounds with which the poller does nothing before it is woken."""
    return replace(
        poller_bounds(
            agenda=AgendaTimes(idle_seconds=LATER_SECONDS),
            limits=LimitBounds(
                recheck_seconds=LATER_SECONDS, passed_over_seconds=LATER_SECONDS, **limits
            ),
        ),
        recheck_seconds=0,  # both files are checked at every call
    )


Serving = Callable[..., AbstractAsyncContextManager[tuple[Caller, Caller]]]


@pytest.fixture
def serve_both(
    tmp_path: Path,
    kie: Simulator,
    database_url: str,
    files: Files,
) -> Serving:
    """Serve alice and bob with the limits that are given.

    A task is sent only because something wakes the poller, however loaded the machine is.
    """

    @asynccontextmanager
    async def serve(limits: str = "", **settings: Any) -> AsyncIterator[tuple[Caller, Caller]]:
        files.limit(limits)
        given: dict[str, Any] = {
            "auth_tokens_file": files.tokens,
            "caller_limits_file": files.limits,
        }
        given |= {"create_wait_seconds": 0, "database_url": database_url, "bounds": bounds()}
        async with serving(tmp_path, kie, **given | settings) as service:
            yield Caller("alice", service), Caller("bob", service)

    return serve


async def all_waiting(caller: Caller, count: int) -> list[pb.GenerationTask]:
    """Create a task that runs, and others that wait for it to end: the caller may run one."""
    running = await caller.create(STUCK)
    assert await caller.is_sent(running.id)
    return [running, *[await caller.create(STUCK) for _ in range(count)]]


# --- queue ---

ONE_RUNS = "[callers.alice]\nrunning = 1\n"


async def test_a_caller_whose_queue_is_full_is_refused_and_others_are_not(
    serve_both: Serving,
) -> None:
    async with serve_both(ONE_RUNS + "queue = 3\n") as (alice, bob):
        await all_waiting(alice, 3)
        for _ in range(3):
            error = await alice.create_refused()
            assert (error.code, error.reason) == (EXHAUSTED, "RATE_LIMITED")
            assert error.metadata == {"limit": "queue", "max": "3", "scope": "caller"}
            assert error.retry_seconds
            assert "caller alice" in error.message
            assert "`queue`" in error.message
        assert await bob.is_sent((await bob.create(STUCK)).id)


async def test_a_place_in_the_queue_is_free_at_once_when_a_task_is_cancelled(
    serve_both: Serving,
) -> None:
    async with serve_both(ONE_RUNS + "queue = 2\n") as (alice, _):
        *_, last = await all_waiting(alice, 2)
        await alice.create_refused()
        await alice.cancel(last.id)
        await alice.create(STUCK)
        await alice.create_refused()


async def test_a_known_request_id_is_answered_whatever_the_limits_say(
    serve_both: Serving, files: Files
) -> None:
    async with serve_both(ONE_RUNS) as (alice, _):
        first = await alice.create(STUCK, request_id="r")
        assert await alice.is_sent(first.id)
        await alice.create(STUCK)
        files.limit(ONE_RUNS + 'queue = 1\ncreates_per_minute = 1\nmodels = ["veo3"]\n')
        assert (await alice.create_refused(request_id="new")).reason == "MODEL_NOT_ALLOWED"
        assert (await alice.create(STUCK, request_id="r")).id == first.id
        files.limit(ONE_RUNS + "queue = 1\ncreates_per_minute = 1\n")
        assert (await alice.create_refused(request_id="new")).reason == "RATE_LIMITED"
        assert (await alice.create(STUCK, request_id="r")).id == first.id
        assert (await alice.create_refused(request_id="r", prompt_id="q")).reason == (
            "REQUEST_ID_REUSED"
        )


async def test_the_whole_queue_is_limited_too(serve_both: Serving) -> None:
    async with serve_both("[default]\nrunning = 1\nqueue = 9\n", queue_max_tasks=2) as (alice, bob):
        await all_waiting(alice, 2)
        error = await bob.create_refused()
        assert error.metadata == {"limit": "queue", "max": "2", "scope": "service"}


async def test_the_queue_of_a_caller_is_that_of_all_replicas_together(
    tmp_path: Path, kie: Simulator, postgresql_url: str, files: Files, stack: AsyncExitStack
) -> None:
    files.limit(ONE_RUNS + "queue = 4\n")
    alices = [
        Caller("alice", service)
        for service in await replicas(tmp_path, kie, postgresql_url, files, stack)
    ]
    await all_waiting(alices[0], 3)
    await alices[1].create(STUCK)
    for alice in alices:
        assert (await alice.create_refused()).metadata["limit"] == "queue"


async def replicas(
    tmp_path: Path, kie: Simulator, database_url: str, files: Files, stack: AsyncExitStack
) -> list[Service]:
    settings: dict[str, Any] = {"database_url": database_url, "create_wait_seconds": 0}
    settings |= {"auth_tokens_file": files.tokens, "caller_limits_file": files.limits}
    return [await stack.enter_async_context(serving(tmp_path, kie, **settings)) for _ in range(2)]


# --- creates_per_minute ---


async def test_creates_in_a_minute_are_limited_for_one_caller_and_not_for_another(
    serve_both: Serving,
) -> None:
    async with serve_both("[callers.alice]\ncreates_per_minute = 3\n") as (alice, bob):
        for _ in range(3):
            await alice.create(STUCK)
        error = await alice.create_refused()
        assert error.metadata == {"limit": "creates_per_minute", "max": "3", "scope": "caller"}
        assert error.retry_seconds is not None
        assert 50 < error.retry_seconds <= 60, "the oldest has to be a minute old"
        for _ in range(5):
            await bob.create(STUCK)


async def test_tasks_that_cost_nothing_count_as_creates(serve_both: Serving) -> None:
    limits = "[callers.alice]\nrunning = 1\ncreates_per_minute = 3\n"
    async with serve_both(limits) as (alice, bob):
        _, waiting = await all_waiting(alice, 1)
        await alice.cancel(waiting.id)
        alice.service.kie.add_fault("create:code,code=422,msg=no,times=0")
        await alice.create()
        assert (await alice.create_refused()).metadata["limit"] == "creates_per_minute"
        await bob.create(STUCK)


async def test_a_create_fits_again_when_an_earlier_one_is_a_minute_old(
    serve_both: Serving,
) -> None:
    async with serve_both("[callers.alice]\ncreates_per_minute = 2\n") as (alice, _):
        first, _ = await alice.create(STUCK), await alice.create(STUCK)
        sql = "UPDATE tasks SET create_time = create_time - 60 WHERE id = ?"
        change(alice.service.database_url, sql, first.id)
        await alice.create(STUCK)
        await alice.create_refused()


async def test_creates_in_a_minute_are_those_of_all_replicas_together(
    tmp_path: Path, kie: Simulator, postgresql_url: str, files: Files, stack: AsyncExitStack
) -> None:
    files.limit("[callers.alice]\ncreates_per_minute = 4\n")
    services = await replicas(tmp_path, kie, postgresql_url, files, stack)
    for service in [*services, *services]:
        await Caller("alice", service).create(STUCK)
    for service in services:
        await Caller("alice", service).create_refused()
        await Caller("bob", service).create(STUCK)


# --- running ---


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the poller looked for tasks to send."""
    times: list[float] = []
    claim_in_turns = Store.claim_in_turns

    async def noted(store: Store, *args: Any, **kwargs: Any) -> Any:
        times.append(time.monotonic())
        return await claim_in_turns(store, *args, **kwargs)

    monkeypatch.setattr(Store, "claim_in_turns", noted)
    return times


async def test_a_caller_that_runs_all_it_may_waits_and_others_are_sent_at_once(
    serve_both: Serving, kie: Simulator
) -> None:
    async with serve_both(ONE_RUNS) as (alice, bob):
        first, second, third = await all_waiting(alice, 2)
        assert not await alice.is_sent(second.id, 0.2)
        for _ in range(3):
            assert await bob.is_sent((await bob.create(STUCK)).id)
        assert not await alice.is_sent(second.id, 0.2)
        kie.finish((await alice.query(first.id)).provider_task_id)
        assert await alice.is_sent(second.id), "in its order, as soon as there is room"
        assert not await alice.is_sent(third.id, 0.2)


async def test_a_caller_that_has_to_wait_does_not_keep_the_poller_busy(
    serve_both: Serving, claims: list[float]
) -> None:
    async with serve_both(ONE_RUNS, poll_interval_seconds=5) as (alice, bob):
        await all_waiting(alice, 20)
        await asyncio.sleep(0.3)
        claims.clear()
        started = time.monotonic()
        await eventually(lambda: time.monotonic() - started > 2)
        assert len(claims) <= 1
        assert await bob.is_sent((await bob.create(STUCK)).id)


async def test_a_hold_and_a_waiting_caller_do_not_delay_others(
    serve_both: Serving, kie: Simulator
) -> None:
    short = bounds(holds=HoldTimes(first_seconds=0.1))
    async with serve_both(ONE_RUNS, bounds=short) as (alice, bob):
        await all_waiting(alice, 3)
        kie.add_fault("create:code,code=455,times=2")
        assert await bob.is_sent((await bob.create(STUCK)).id)


async def test_half_of_what_may_run_is_left_to_others_when_there_are_several_callers(
    serve_both: Serving, files: Files
) -> None:
    async with serve_both(kie_running_max=4) as (alice, bob):
        tasks = [await alice.create(STUCK) for _ in range(5)]
        assert all([await alice.is_sent(task.id) for task in tasks[:2]])
        assert not await alice.is_sent(tasks[2].id, 0.2)
        for _ in range(2):
            assert await bob.is_sent((await bob.create(STUCK)).id)
    files.name("alice")


async def test_a_single_caller_may_use_all(serve_both: Serving, files: Files) -> None:
    files.name("alice")
    async with serve_both(kie_running_max=4, watch_max_streams=3) as (alice, _):
        tasks = [await alice.create(STUCK) for _ in range(4)]
        assert all([await alice.is_sent(task.id) for task in tasks])
        watches = [alice.watch(tasks[0].id) for _ in range(3)]
        for watch in watches:
            await watch.read()
        error = await refused(alice.watch(tasks[0].id).read())
        assert error.metadata == {"limit": "watches", "max": "3", "scope": "caller"}


async def test_what_a_caller_runs_is_counted_over_all_replicas(
    tmp_path: Path, kie: Simulator, postgresql_url: str, files: Files, stack: AsyncExitStack
) -> None:
    files.limit("[callers.alice]\nrunning = 2\n")
    services = await replicas(tmp_path, kie, postgresql_url, files, stack)
    alices = [Caller("alice", service) for service in services]
    tasks = [await alice.create(STUCK) for alice in alices * 3]
    await eventually(lambda: kie.stats["purchases"]["total"] == 2)
    assert await Caller("bob", services[1]).is_sent(
        (await Caller("bob", services[1]).create(STUCK)).id
    )
    assert kie.stats["purchases"]["total"] == 3
    for sent in (3, 4, 5, 6):
        in_progress = await two_in_progress(alices[sent % 2], [task.id for task in tasks])
        kie.finish(in_progress[0])
        await eventually(lambda n=sent: kie.stats["purchases"]["total"] == n + 1)  # type: ignore[misc]


async def two_in_progress(caller: Caller, task_ids: list[str]) -> list[str]:
    """Wait until the provider has two of the tasks, and never more; return its ids of them."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            snapshots = [await caller.query(task_id) for task_id in task_ids]
            running = [s for s in snapshots if s.status == pb.TASK_STATUS_PENDING]
            in_progress = [s.provider_task_id for s in running if s.provider_task_id]
            assert len(in_progress) <= 2
            if len(in_progress) == 2:
                return in_progress


# --- watches, uploads, lists ---


async def test_open_streams_of_one_caller_are_limited_until_one_ends(serve_both: Serving) -> None:
    async with serve_both("[callers.alice]\nwatches = 2\n") as (alice, bob):
        task, other = await alice.create(STUCK), await bob.create(STUCK)
        watches = [alice.watch(task.id) for _ in range(2)]
        for watch in watches:
            await watch.read()
        error = await refused(alice.watch(task.id).read())
        assert (error.code, error.reason) == (EXHAUSTED, "RATE_LIMITED")
        assert error.metadata == {"limit": "watches", "max": "2", "scope": "caller"}
        assert error.retry_seconds
        for _ in range(3):
            await bob.watch(other.id).read()
        watches[0].cancel()
        async with asyncio.timeout(5):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await alice.watch(task.id).read()
                    break


async def test_all_open_streams_are_limited_too(serve_both: Serving) -> None:
    async with serve_both("[default]\nwatches = 9\n", watch_max_streams=1) as (alice, bob):
        task, other = await alice.create(STUCK), await bob.create(STUCK)
        await (watch := alice.watch(task.id)).read()
        error = await refused(bob.watch(other.id).read())
        assert error.metadata == {"limit": "watches", "max": "1", "scope": "service"}
        watch.cancel()


@pytest.mark.parametrize(
    ("limits", "uploads_max", "metadata"),
    [
        ("[callers.alice]\nuploads = 1\n", 9, {"max": "1", "scope": "caller"}),
        ("[callers.alice]\nuploads = 9\n", 1, {"max": "1", "scope": "service"}),
        ("", 2, {"max": "1", "scope": "caller"}),
    ],
)
async def test_uploads_at_a_time_are_limited_until_one_ends(
    serve_both: Serving, limits: str, uploads_max: int, metadata: dict[str, str]
) -> None:
    async with serve_both(limits, uploads_max=uploads_max) as (alice, bob):
        first = alice.upload(None)
        head, *chunks = upload_messages(b"x" * 10)
        await first.write(head)

        async def second() -> None:
            await alice.upload(iter(upload_messages(b"y")))

        error = Refusal(grpc.StatusCode.OK, "", "", {}, [], None)
        async with asyncio.timeout(10):
            while not error.reason:  # until the first is in progress
                with suppress(pytest.fail.Exception):
                    error = await refused(second())
        assert (error.code, error.reason) == (EXHAUSTED, "RATE_LIMITED")
        assert error.metadata == {"limit": "uploads"} | metadata
        if metadata["scope"] == "caller":
            await bob.upload(iter(upload_messages(b"z")))
        for chunk in chunks:
            await first.write(chunk)
        await first.done_writing()
        await first
        await second()


async def test_lists_at_a_time_are_limited_and_others_may_list(
    serve_both: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = asyncio.Event()
    page = Store.page

    async def slow(store: Store, which: ListFilter, *args: Any) -> list[Task]:
        if which.caller == "alice":
            await opened.wait()
        return await page(store, which, *args)

    monkeypatch.setattr(Store, "page", slow)
    async with serve_both() as (alice, bob):
        lists = {asyncio.ensure_future(alice.list()) for _ in range(9)}
        done, lists = await asyncio.wait(lists, return_when=asyncio.FIRST_COMPLETED)
        [one_too_many] = done
        error = await refused(one_too_many)
        assert (error.code, error.reason) == (EXHAUSTED, "RATE_LIMITED")
        assert error.metadata == {"limit": "lists", "max": "8", "scope": "caller"}
        await bob.list()
        opened.set()
        await asyncio.gather(*lists)
        await alice.list()


# --- models ---


async def test_a_model_that_is_not_allowed_is_refused_for_that_caller_alone(
    serve_both: Serving,
) -> None:
    async with serve_both('[callers.alice]\nmodels = ["veo*", "sora2"]\n') as (alice, bob):
        error = await alice.create_refused()
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        assert error.reason == "MODEL_NOT_ALLOWED"
        assert "imagen4" in error.message
        await alice.create({"veo3": {"prompt": STUCK_PROMPT}})
        await alice.create({"sora2": {"prompt": STUCK_PROMPT}})
        await bob.create(STUCK)
        assert (
            await alice.service.stub.ListTasks(pb.ListTasksRequest(), metadata=alice.metadata)
            != await bob.list()
        )


async def test_the_client_calls_a_model_that_is_not_allowed_a_refusal(
    serve_both: Serving,
) -> None:
    async with (
        serve_both('[callers.alice]\nmodels = ["veo3"]\n') as (alice, _),
        GenerationClient(alice.service.address, token="alice") as client,
    ):
        with pytest.raises(RefusedError) as caught:
            await client.create(Imagen4Params(prompt="x"), prompt_id="p")
        assert caught.value.reason == "MODEL_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("models", "allowed"),
    [
        ([], False),
        (["*"], True),
        (["imagen4"], True),
        (["imagen"], False),
        (["imagen4x"], False),
        (["imagen*"], True),
        (["imagen4*"], True),
        (["veo3", "i*"], True),
        (["google/*"], False),
        (["IMAGEN4"], False),
    ],
)
async def test_a_star_at_the_end_of_a_name_matches_a_prefix(
    serve_both: Serving, models: list[str], allowed: bool
) -> None:
    async with serve_both(f"[callers.alice]\nmodels = {models!r}\n") as (alice, _):
        if allowed:
            await alice.create(STUCK)
        else:
            assert (await alice.create_refused()).reason == "MODEL_NOT_ALLOWED"


# --- the file ---

BAD_FILES = {
    "not toml": ("queue", "must be TOML"),
    "a key outside of a table": ("queue = 1", "[queue] is unknown"),
    "an unknown table": ("[caller.alice]\nqueue = 1", "[caller] is unknown"),
    "an unknown key": ("[default]\nqueues = 1", "[default] queues is unknown"),
    "another of a caller": ("[callers.alice]\nque = 1", "[callers.alice] que is unknown"),
    "zero": ("[default]\nqueue = 0", "[default] queue must be greater than or equal to 1"),
    "less": ("[default]\nlists = -1", "[default] lists must be greater than or equal to 1"),
    "too much": ("[default]\nlists = 9999999999", "[default] lists must be less than or equal to"),
    "a bool": ("[default]\nrunning = true", "[default] running must be a whole number"),
    "a float": ("[default]\nwatches = 1.0", "[default] watches must be a whole number"),
    "infinity": ("[default]\nwatches = inf", "[default] watches must be a whole number"),
    "a text": ('[default]\nuploads = "1"', "[default] uploads must be a whole number"),
    "a list": ("[default]\nuploads = [1]", "[default] uploads must be a whole number"),
    "a text of models": ('[default]\nmodels = "a"', "[default] models must be a list"),
    "a number as a model": ("[default]\nmodels = [1]", "[default] models[0] must be the name"),
    "a star within": ('[default]\nmodels = ["a", "a*b"]', "[default] models[1] must be the name"),
    "an empty model": ('[default]\nmodels = [""]', "[default] models[0] must be the name"),
    "a blank model": ('[default]\nmodels = ["a b"]', "[default] models[0] must be the name"),
    "two stars": ('[default]\nmodels = ["a**"]', "[default] models[0] must be the name"),
    "a slash first": ('[default]\nmodels = ["/a"]', "[default] models[0] must be the name"),
    "a long model": (f'[default]\nmodels = ["{"a" * 129}"]', "[default] models[0] must be"),
    "no table": ("default = 1", "[default] must be a table"),
    "no table of callers": ("callers = 1", "[callers] must be a table"),
    "no table of a caller": ("[callers]\nalice = 1", "[callers.alice] must be a table"),
    "tables": ("[[default]]\nqueue = 1", "[default] must be a table"),
    "no name": ('[callers.""]\nqueue = 1', "[callers.''] cannot be the name"),
    "a blank name": ('[callers."a b"]\nqueue = 1', "[callers.'a b'] cannot be the name"),
    "twice": ("[default]\nqueue = 1\nqueue = 2", "must be TOML"),
    "deep": ("a = " + "[" * 5_000, "must be TOML"),
}


@pytest.mark.parametrize(("text", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_limit_is_named_with_its_table_and_key(text: str, words: str) -> None:
    with pytest.raises(CallerLimitsError) as caught:
        read_limits(text.encode())
    assert words in str(caught.value)


def test_every_bad_limit_of_a_file_is_named() -> None:
    with pytest.raises(CallerLimitsError) as caught:
        read_limits(b"[default]\nqueue = 0\n[callers.alice]\nruning = 1\nlists = true\n")
    for words in ("[default] queue", "[callers.alice] runing", "[callers.alice] lists"):
        assert words in str(caught.value)


def test_a_file_that_is_not_text_is_refused() -> None:
    with pytest.raises(CallerLimitsError, match="UTF-8"):
        read_limits(b"\xff\xfe")


async def test_a_changed_file_counts_at_once_and_callers_inherit_the_default(
    serve_both: Serving, files: Files
) -> None:
    async with serve_both() as (alice, bob):
        await alice.create(STUCK)
        files.limit('[default]\nmodels = ["veo3"]\n[callers.alice]\ncreates_per_minute = 1\n')
        for caller in (alice, bob):
            assert (await caller.create_refused()).reason == "MODEL_NOT_ALLOWED"
        files.limit("[callers.alice]\ncreates_per_minute = 1\n")
        assert (await alice.create_refused()).metadata["limit"] == "creates_per_minute"
        await bob.create(STUCK)
        files.limit("")
        await alice.create(STUCK)


async def test_names_that_match_no_model_are_legal_and_logged_once_for_each_version_of_the_file(
    serve_both: Serving, files: Files
) -> None:
    models = (
        '[default]\nmodels = ["imagen4", "veo*"]\n[callers.alice]\nmodels = ["imagen", "zz*"]\n'
    )
    with capture_logs() as logs:
        async with serve_both(models) as (alice, bob):
            for _ in range(3):
                assert (await alice.create_refused()).reason == "MODEL_NOT_ALLOWED"
                await bob.create(STUCK)
            files.limit('[default]\nmodels = ["*", "sora3"]\n')
            await alice.create(STUCK)
    unknown = [line for line in logs if "unknown models" in line["event"]]
    assert [(line["log_level"], line["models"]) for line in unknown] == [
        ("warning", "imagen, zz*"),
        ("warning", "sora3"),
    ]


SPOILED: list[Callable[[Files], None]] = [
    lambda files: files.limit("[defualt]"),
    lambda files: files.limits.unlink(),
]


async def test_a_file_that_turns_bad_is_ignored_logged_once_and_shown(
    serve_both: Serving, files: Files
) -> None:
    limits = '[callers.alice]\nmodels = ["veo3"]\n'
    async with serve_both(limits, admin_address="127.0.0.1:0") as (alice, _):
        for spoil in SPOILED:
            with capture_logs() as logs:
                spoil(files)
                for _ in range(3):
                    assert (await alice.create_refused()).reason == "MODEL_NOT_ALLOWED"
            said = [line for line in logs if "caller limits file" in line["event"]]
            assert [line["log_level"] for line in said] == ["warning"]
            page = await scrape(alice.service)
            assert page["generation_config_problems", ("caller_limits",)] == 1
        files.limit("")
        await alice.create(STUCK)
        page = await scrape(alice.service)
        assert page["generation_config_problems", ("caller_limits",)] == 0


async def test_a_file_that_turns_bad_is_noticed_while_nobody_calls(
    serve_both: Serving, files: Files
) -> None:
    async with serve_both("", admin_address="127.0.0.1:0") as (alice, _):
        page = await scrape(alice.service)
        assert page["generation_config_problems", ("caller_limits",)] == 0
        files.limit("[[[")
        async with asyncio.timeout(10):
            while page["generation_config_problems", ("caller_limits",)] == 0:
                page = await scrape(alice.service)


async def test_a_second_caller_halves_the_defaults(serve_both: Serving, files: Files) -> None:
    files.name("alice")
    async with serve_both(kie_running_max=1, queue_max_tasks=3) as (alice, _):
        tasks = await all_waiting(alice, 3)
        assert (await alice.create_refused()).metadata["max"] == "3"
        files.name("alice", "bob")
        await alice.cancel(tasks[-1].id)
        error = await alice.create_refused()
        assert error.metadata == {"limit": "queue", "max": "2", "scope": "caller"}


# --- metrics by caller ---

Page = dict[tuple[str, tuple[str, ...]], float]


async def scrape(service: Service) -> Page:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{service.admin_address}/metrics") as response,
    ):
        families: Any = text_string_to_metric_families(await response.text())
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


async def test_creates_refusals_and_ends_are_counted_by_caller_if_the_operator_wants_it(
    serve_both: Serving, files: Files, kie: Simulator
) -> None:
    settings: dict[str, Any] = {"metrics_per_caller": True, "admin_address": "127.0.0.1:0"}
    limits = "[callers.alice]\nrunning = 1\nqueue = 1\n[callers.bob]\nmodels = ['imagen4']\n"
    async with serve_both(limits, **settings) as (alice, bob):
        _, waiting = await all_waiting(alice, 1)
        await alice.create_refused()
        await alice.cancel(waiting.id)
        await refused(bob.create({"veo3": {"prompt": "x"}}))
        running = await bob.create(STUCK)
        page = await scrape(alice.service)
        shown = {key: value for key, value in page.items() if key[0].startswith(CALLERS)}
        assert {key: value for key, value in shown.items() if not key[0].endswith("created")} == {
            (f"{CALLERS}creates_total", ("alice",)): 2,
            (f"{CALLERS}creates_total", ("bob",)): 1,
            (f"{CALLERS}refusals_total", ("alice", "queue")): 1,
            (f"{CALLERS}refusals_total", ("bob", "models")): 1,
            (f"{CALLERS}ends_total", ("alice", "FAILED")): 1,
        }
        assert await bob.is_sent(running.id)
        provider_task_id = (await bob.query(running.id)).provider_task_id
        files.name("alice")
        kie.finish(provider_task_id)
        await eventually(lambda: ends_of_bob(alice.service) == 1)
        assert shown.items() <= (await scrape(alice.service)).items()


CALLERS = "generation_caller_"


def ends_of_bob(service: Service) -> int:
    sql = "SELECT count(*) FROM tasks WHERE caller = 'bob' AND status <> 'PENDING'"
    return int(rows(service.database_url, sql)[0][0])


async def test_by_default_no_caller_is_shown(serve_both: Serving) -> None:
    async with serve_both(admin_address="127.0.0.1:0") as (alice, _):
        await alice.create(STUCK)
        page = await scrape(alice.service)
    assert not [labels for _, labels in page if "alice" in labels]


# --- alice takes all she can, and bob is not affected ---


async def test_a_caller_that_hammers_its_full_queue_does_not_slow_others_down(
    serve_both: Serving,
) -> None:
    async with serve_both("[callers.alice]\nrunning = 1\nqueue = 2000\n") as (alice, bob):
        for _ in range(40):
            await asyncio.gather(*(alice.create(STUCK) for _ in range(50)))

        async def hammer() -> None:
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await alice.create(STUCK, request_id="hammer" * 20)

        hammers = [asyncio.ensure_future(hammer()) for _ in range(8)]
        seconds = []
        for _ in range(40):
            started = time.monotonic()
            task = await bob.create(STUCK)
            seconds.append(time.monotonic() - started)
            assert await bob.is_sent(task.id)
        for each in hammers:
            each.cancel()
        await asyncio.gather(*hammers, return_exceptions=True)
    assert statistics.median(seconds) < 0.2, seconds
