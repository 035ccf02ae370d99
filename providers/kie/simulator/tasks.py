"""Tasks of the simulator: what was drawn when they were created, and the book that keeps them.

A task never changes by itself. Everything about its course is drawn at its creation, and its state
is a pure function of that and of the time it is asked for. So nothing has to run for it, and a
restarted simulator that reads its creation record goes on exactly where it was.
"""

import json
import random
import re
from array import array
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TextIO

from providers.kie.simulated.models import MODELS, Model
from providers.kie.simulated.rules import INVALID, Order, RefusedError
from providers.kie.simulated.settings import SimulatorSettings

POLL_TIMES_KEPT: Final = 100
BODIES_MAX_CHARACTERS: Final = 256 * 1024 * 1024
"""How much the bodies of all kept tasks may hold together."""

DIRECTIVE: Final = re.compile(r"\[sim:([^\]=]*)(?:=([^\]]*))?\]")
DIRECTIVES: Final = ("create", "fail", "lost", "no-file", "no-urls", "seconds", "stuck")
FAILED_CODE: Final = "500"
FAILED_MSG: Final = "Internal Error, Please try again later."

SUCCESS: Final = "success"
FAIL: Final = "fail"
FINAL_STATES: Final = (SUCCESS, FAIL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A creation record: all that will ever be known of a task, unless it is finished by hand.

    Attributes:
        id: 32 lower-case hexadecimal digits.
        model: a name of `MODELS`.
        body: the create request as it came.
        base_url: where its results are served.
        created_ms: unix milliseconds, as all times here.
        visible_ms: until then a record query finds nothing.
        phases: the states before the end and when each begins.
        ends_ms: when it ends; None = never.
        succeeds: how it ends.
        fail_code: the failure's code, a string as documented.
        fail_msg: the failure's message.
        results: file names under `base_url`, or whole URLs.
        size: width and height of an image in pixels.
        credits: what it costs unless it fails.
        callback_url: where its end is told, if anywhere.
    """

    id: str
    model: str
    body: dict[str, Any]
    base_url: str
    created_ms: int
    visible_ms: int
    phases: tuple[tuple[str, int], ...]
    ends_ms: int | None
    succeeds: bool
    fail_code: str
    fail_msg: str
    results: tuple[str, ...]
    size: tuple[int, int]
    credits: float
    callback_url: str | None

    def state_at(self, now_ms: int) -> str:
        """The state at `now_ms`: waiting, queuing, generating, success or fail."""
        if self.ends_ms is not None and now_ms >= self.ends_ms:
            return SUCCESS if self.succeeds else FAIL
        reached = [state for state, since_ms in self.phases if now_ms >= since_ms]
        return reached[-1] if reached else self.phases[0][0]

    def credits_in(self, state: str) -> float:
        """What it costs in `state`: charged at the create, and nothing if it fails."""
        return 0.0 if state == FAIL else float(self.credits)

    def progress_at(self, now_ms: int) -> int:
        """Percent done; 99 at most before the end."""
        if self.state_at(now_ms) in FINAL_STATES:
            return 100
        if self.ends_ms is None:
            return 99
        share = (now_ms - self.created_ms) / max(1, self.ends_ms - self.created_ms)
        return max(0, min(99, int(100 * share)))

    @property
    def kind(self) -> Model:
        """What it makes."""
        return MODELS[self.model]

    @property
    def result_urls(self) -> list[str]:
        """The URLs of its results."""
        return [r if "://" in r else f"{self.base_url}/results/{r}" for r in self.results]

    def finished(
        self,
        now_ms: int,
        *,
        succeeds: bool,
        code: str = FAILED_CODE,
        msg: str = FAILED_MSG,
        results: tuple[str, ...] | None = None,
    ) -> "Task":
        """The task, ended at `now_ms`."""
        return replace(
            self,
            visible_ms=min(self.visible_ms, now_ms),
            ends_ms=now_ms,
            succeeds=succeeds,
            fail_code=code,
            fail_msg=msg,
            results=self.results if results is None else results,
        )


def task_from_json(values: dict[str, Any]) -> Task:
    """A task from the line that remembers it."""
    phases = tuple((state, since_ms) for state, since_ms in values["phases"])
    width, height = values["size"]
    return Task(
        **{**values, "phases": phases, "results": tuple(values["results"]), "size": (width, height)}
    )


def prompt_of(task: Task) -> str:
    """The prompt that a task was created with."""
    return Order(model=task.kind, body=task.body).prompt


def directives_in(prompt: str) -> dict[str, str]:
    """The `[sim:name=value]` directives of a prompt.

    Raises:
        RefusedError: 422 for an unknown one, which is sooner a typing error than a wish.
    """
    found = {name.strip(): value.strip() for name, value in DIRECTIVE.findall(prompt)}
    if unknown := set(found) - set(DIRECTIVES):
        known = ", ".join(DIRECTIVES)
        raise RefusedError(INVALID, f"unknown directive [sim:{min(unknown)}]: one of {known}")
    return found


def code_and_message(value: str, code: str, msg: str) -> tuple[str, str]:
    """`501 Too dark` as its two parts, each with its default."""
    head, _, rest = value.partition(" ")
    if re.fullmatch(r"[0-9]{3}", head):
        return head, rest.strip() or msg
    return code, value or msg


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """When and how an order is bought: what a task is drawn from, beside its order."""

    task_id: str
    now_ms: int
    base_url: str
    settings: SimulatorSettings
    rng: random.Random


def draw_task(order: Order, purchase: Purchase) -> Task:
    """The whole course of a new task.

    Raises:
        RefusedError: 422 for a directive that cannot be followed.
    """
    settings, now_ms = purchase.settings, purchase.now_ms
    wishes = directives_in(order.prompt)
    seconds = _seconds(wishes, order, purchase)
    fail_code, fail_msg = code_and_message(wishes.get("fail", ""), FAILED_CODE, FAILED_MSG)
    fails_by_chance = purchase.rng.random() < settings.fail_rate
    return Task(
        id=purchase.task_id,
        model=order.model.name,
        body=dict(order.body),
        base_url=purchase.base_url,
        created_ms=now_ms,
        visible_ms=now_ms + int(settings.hidden_seconds * 1000),
        phases=_phases(now_ms, seconds, purchase),
        ends_ms=None if "stuck" in wishes else now_ms + int(seconds * 1000),
        succeeds="fail" not in wishes and not fails_by_chance,
        fail_code=fail_code,
        fail_msg=fail_msg,
        results=_results(order, wishes, purchase.task_id),
        size=order.size,
        credits=settings.cost_of(order.model),
        callback_url=order.callback_url,
    )


def _seconds(wishes: dict[str, str], order: Order, purchase: Purchase) -> float:
    wanted = wishes.get("seconds")
    if wanted is None:
        return purchase.rng.uniform(*purchase.settings.seconds_of(order.model))
    if not re.fullmatch(r"\d{1,7}(\.\d{1,3})?", wanted):
        raise RefusedError(INVALID, f"[sim:seconds={wanted}] must be a number of seconds")
    return float(wanted)


def _phases(now_ms: int, seconds: float, purchase: Purchase) -> tuple[tuple[str, int], ...]:
    """Waiting at first; often queuing and generating; sometimes straight to the end, as seen."""
    rng, settings = purchase.rng, purchase.settings
    direct, queues = rng.random() < settings.direct_rate, rng.random() < settings.queuing_rate
    queuing_ms, generating_ms = (now_ms + int(seconds * share * 1000) for share in (0.1, 0.3))
    if direct:
        return (("waiting", now_ms),)
    if queues:
        return (("waiting", now_ms), ("queuing", queuing_ms), ("generating", generating_ms))
    return (("waiting", now_ms), ("generating", queuing_ms))


def _results(order: Order, wishes: dict[str, str], task_id: str) -> tuple[str, ...]:
    if "no-urls" in wishes:
        return ()
    stem = "missing" if "no-file" in wishes else task_id
    return tuple(f"{stem}_{index}.{order.model.media}" for index in range(order.results))


class TaskBook:
    """The tasks, oldest first, bounded in number and size, and remembered in a file if wanted.

    The file holds one JSON line per task, and one more for a task that was finished by hand: the
    last line of an id counts. A torn last line is what a crash leaves; it was never answered for,
    and is cut off.
    """

    def __init__(self, tasks_max: int, state_file: Path | None) -> None:
        self._tasks_max = tasks_max
        self._tasks: dict[str, Task] = {}
        self._running: dict[str, Task] = {}
        self._polls: dict[str, Polls] = {}
        self._characters = 0
        self._path = state_file
        self._file: TextIO | None = None
        if state_file and state_file.exists():
            _cut_torn_line(state_file)
            for task in _remembered(state_file):
                self._keep(task)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def get(self, task_id: str) -> Task | None:
        """The task of that id, if it is kept."""
        return self._tasks.get(task_id)

    def put(self, task: Task) -> None:
        """Keep a new task, or a finished one in place of itself; on disk before it returns."""
        if self._path:
            self._file = self._file or _opened(self._path)
            self._file.write(json.dumps(asdict(task)) + "\n")
            self._file.flush()
        self._keep(task)

    def move(self, old_urls: Collection[str], base_url: str) -> None:
        """Serve the results of tasks elsewhere; the file still says where they were ordered."""
        for task in [task for task in self if task.base_url in old_urls]:
            self._keep(replace(task, base_url=base_url))

    def count_running(self, now_ms: int) -> int:
        """How many tasks have not ended; each ended one is looked at once."""
        self._running = {
            task_id: task
            for task_id, task in self._running.items()
            if task.state_at(now_ms) not in FINAL_STATES
        }
        return len(self._running)

    def note_poll(self, task_id: str, now_ms: int) -> None:
        """Count one record query of a task."""
        self._polls.setdefault(task_id, Polls()).note(now_ms)

    def polls_of(self, task_id: str) -> "Polls":
        """The record queries of a task so far."""
        return self._polls.get(task_id) or Polls()

    def clear(self) -> None:
        """Forget all tasks, on disk too."""
        self._tasks.clear()
        self._running.clear()
        self._polls.clear()
        self._characters = 0
        if self._path:
            self._file = self._file or _opened(self._path)
            self._file.truncate(0)

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()

    def _keep(self, task: Task) -> None:
        if task.id not in self._tasks:
            self._characters += _characters_of(task)
        self._tasks[task.id] = self._running[task.id] = task
        while len(self._tasks) > self._tasks_max or self._is_too_large():
            self._drop_oldest()

    def _is_too_large(self) -> bool:
        return self._characters > BODIES_MAX_CHARACTERS and len(self._tasks) > 1

    def _drop_oldest(self) -> None:
        oldest = self._tasks.pop(next(iter(self._tasks)))
        self._running.pop(oldest.id, None)
        self._characters -= _characters_of(oldest)
        self._polls.pop(oldest.id, None)


class Polls:
    """How often a task was asked for, and when the last hundred times."""

    def __init__(self) -> None:
        self.count = 0
        self.times_ms = array("q")

    def note(self, now_ms: int) -> None:
        """Count one."""
        self.count += 1
        self.times_ms.append(now_ms)
        if len(self.times_ms) > POLL_TIMES_KEPT:
            del self.times_ms[0]


def _characters_of(task: Task) -> int:
    return len(json.dumps(task.body))


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", encoding="utf-8")


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        whole_bytes = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(whole_bytes)


def _remembered(path: Path) -> Iterator[Task]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            yield _task_of_line(line, f"{path}, line {number}")


def _task_of_line(line: str, place: str) -> Task:
    try:
        return task_from_json(json.loads(line))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{place} is not a task: {error}") from error
