"""Pages of ListTasks: which tasks, how many of them fit, and where the next page begins."""

import asyncio
import math
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from google.protobuf.timestamp_pb2 import Timestamp

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Violation
from service.callers import current_caller
from service.errors import invalid, invalid_params
from service.messages import Answers
from service.rules import PROMPT_ID_MAX_CHARACTERS, text_rules
from service.tokens import binding, decode_token, encode_token
from storage.pages import ListFilter
from storage.store import Store
from storage.task import Status, Task

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 200
PAGE_MAX_BYTES = 1 << 20
PAGE_TOKEN_MAX_CHARACTERS = 1_500  # more than the longest id takes
MODEL_MAX_CHARACTERS = 128
# The beginning of the year 1, and the end of the year 9999.
TIME_MIN_SECONDS, TIME_MAX_SECONDS = -62_135_596_800, 253_402_300_799
NANOS = 1_000_000_000
KEY = struct.Struct(">d8s")  # the time of creation, the binding; the id of the task follows
TURN_SECONDS = 1.0
BUILT_AT_ONCE = 16  # tasks, in some 0.5 ms of the event loop


class Pages:
    """Reads pages, as serialized responses that contain one task each.

    A page of long prompts occupies the database and the event loop for milliseconds. So only one
    page of each caller is read at a time, with a pause before its next one. And of all pages, only
    one at a time is put together, with pauses in which other calls run.
    """

    def __init__(self, store: Store, answers: Answers) -> None:
        self._store = store
        self._answers = answers
        self._building = asyncio.Lock()
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by caller

    async def read(
        self, which: ListFilter, before: tuple[float, str] | None, size: int
    ) -> tuple[list[bytes], Task | None]:
        """Return the tasks of a page, at least one, and the last one if more follow."""
        async with _turn(self._reading[which.caller]):
            found = await self._store.page(which, before, size + 1, PAGE_MAX_BYTES)
            page = await self._build(found[:size])
        return page, found[len(page) - 1] if len(page) < len(found) else None

    async def _build(self, tasks: Sequence[Task]) -> list[bytes]:
        page: list[bytes] = []
        size = 0
        async with self._building:
            for number, task in enumerate(tasks, start=1):
                answer = self._answers.listed(task)
                size += len(answer)
                if size > PAGE_MAX_BYTES and page:
                    break
                page.append(answer)
                if number % BUILT_AT_ONCE == 0:
                    await asyncio.sleep(0)
        return page


@asynccontextmanager
async def _turn(lock: asyncio.Lock) -> AsyncIterator[None]:
    """Hold a lock, and keep it as long again, so that its work takes at most half of the time.

    Wait for it, but only briefly: if the database hangs, waiting times would add up.
    """
    try:
        async with asyncio.timeout(TURN_SECONDS):
            await lock.acquire()
    except TimeoutError:
        yield
        return
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        yield
    finally:
        loop.call_later(loop.time() - began, lock.release)


def list_filter(request: pb.ListTasksRequest) -> ListFilter:
    """Return the filter of a request; raise INVALID_PARAMS with every broken rule."""
    violations = text_rules("prompt_id", request.prompt_id, PROMPT_ID_MAX_CHARACTERS)
    violations += text_rules("model", request.model, MODEL_MAX_CHARACTERS)
    for field in ("created_after", "created_before"):
        time = getattr(request, field)
        is_known = TIME_MIN_SECONDS <= time.seconds <= TIME_MAX_SECONDS
        if not (is_known and 0 <= time.nanos < NANOS):
            violations.append(Violation(field, "must be a valid time"))
    violations += page_size_rules(request.page_size)
    if request.status not in pb.TaskStatus.values():
        violations.append(Violation("status", "must be a value of TaskStatus"))
    if violations:
        raise invalid_params(violations)
    name = pb.TaskStatus.Name(request.status).removeprefix("TASK_STATUS_")
    status = None if name == "UNSPECIFIED" else Status(name)
    return ListFilter(
        current_caller.get(),
        request.prompt_id,
        status,
        request.model,
        _bound(request, "created_after"),
        _bound(request, "created_before"),
    )


def _bound(request: pb.ListTasksRequest, field: str) -> float | None:
    """Return a limit of create_time, in unix seconds.

    The limit lies half a microsecond below the given time, because messages round create_time to
    microseconds: a task is always on the side of the limit that its message shows.
    """
    if not request.HasField(field):  # type: ignore[arg-type] # a name of a field
        return None
    time: Timestamp = getattr(request, field)
    micros = time.seconds * 1_000_000 + math.ceil(time.nanos / 1_000)
    return (micros - 0.5) / 1_000_000


def page_size_rules(size: int) -> list[Violation]:
    """Return the broken rules of a requested page size."""
    return [Violation("page_size", "must not be negative")] if size < 0 else []


def page_size(requested: int) -> int:
    """Return how many entries a page has at most."""
    return min(requested or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def page_token(last: Task, which: ListFilter) -> str:
    """Return a token for the end of a page, bound to its filter and caller.

    It grants no access: every page is filtered by the caller.
    """
    return encode_token(KEY.pack(last.create_time, _binding(which)) + last.id.encode())


def read_page_token(token: str, which: ListFilter) -> tuple[float, str] | None:
    """Return the (create_time, id) after which a page begins; None for the first page.

    Raises:
        ServiceError: INVALID_PARAMS.
    """
    if not token:
        return None
    raw = decode_token(token, PAGE_TOKEN_MAX_CHARACTERS) or b""
    try:
        create_time, bound = KEY.unpack(raw[: KEY.size])
        task_id = raw[KEY.size :].decode()
    except (struct.error, ValueError):
        raise invalid("page_token", "must be a next_page_token") from None
    if "\0" in task_id or not math.isfinite(create_time):
        raise invalid("page_token", "must be a next_page_token")
    if bound != _binding(which):
        raise invalid("page_token", "must come from a page with the same filter")
    return create_time, task_id


def _binding(which: ListFilter) -> bytes:
    # Filters that older versions do not have are left out if they are unset: during an upgrade,
    # each version continues the lists of the other.
    text = (
        f"ListFilter(caller={which.caller!r}, prompt_id={which.prompt_id!r},"
        f" status={which.status!r})"
    )
    newer = (which.model, which.created_after, which.created_before)
    if any(value not in {"", None} for value in newer):
        text += repr(newer)
    return binding(text)
