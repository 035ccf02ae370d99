"""The tasks that the simulator keeps, in memory and in the state file."""

import json
from array import array
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, TextIO

from providers.kie.simulator.tasks import FINAL_STATES, Task, task_from_json

POLL_TIMES_KEPT: Final = 100
BODIES_MAX_CHARACTERS: Final = 256 * 1024 * 1024
"""The size of the bodies of all kept tasks together."""


class TaskBook:
    """The tasks, oldest first, bounded in number and size, and kept in a file if there is one.

    The file contains one JSON line per task, and one more for a task that was ended on request: the
    last line of an id counts. A crash may leave a torn last line. Its request was never answered,
    so the line is cut off.
    """

    def __init__(
        self,
        tasks_max: int,
        state_file: Path | None,
        bodies_max_characters: int = BODIES_MAX_CHARACTERS,
    ) -> None:
        self._tasks_max = tasks_max
        self._bodies_max_characters = bodies_max_characters
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
        """Return the task of that id, if it is kept."""
        return self._tasks.get(task_id)

    def put(self, task: Task) -> None:
        """Keep a new task, or replace it by its finished version; write it to the file first."""
        if self._path:
            self._file = self._file or _opened(self._path)
            self._file.write(json.dumps(asdict(task)) + "\n")
            self._file.flush()
        self._keep(task)

    def move(self, old_urls: Collection[str], base_url: str) -> None:
        """Serve the results of tasks at another URL; the file keeps the original one."""
        for task in [task for task in self if task.base_url in old_urls]:
            self._keep(replace(task, base_url=base_url))

    def count_running(self, now_ms: int) -> int:
        """Return how many tasks have not ended; each ended one is checked once."""
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
        """Return the record queries of a task so far."""
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
        return self._characters > self._bodies_max_characters and len(self._tasks) > 1

    def _drop_oldest(self) -> None:
        oldest = self._tasks.pop(next(iter(self._tasks)))
        self._running.pop(oldest.id, None)
        self._characters -= _characters_of(oldest)
        self._polls.pop(oldest.id, None)


class Polls:
    """How often a task was polled, and the times of the last hundred polls."""

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
