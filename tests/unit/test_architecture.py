"""docs/architecture.md draws the moves that tasks really have."""

import inspect
import re
from collections.abc import Callable, Iterator
from itertools import product

from storage.task import Artifact, Failure, Stage, Status, Task
from tests.support.paths import ROOT

PAGE = (ROOT / "docs/architecture.md").read_text()
EDGE = re.compile(r"^ +(\w+) --> (\w+) : (\w+)$", re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)` \| .+ \|$", re.MULTILINE)
PENDING = tuple(Stage)
NOW = 2_000.0
# What every move is called with, by the names of its parameters.
ARGUMENTS: dict[str, tuple[object, ...]] = {
    "now": (NOW,),
    "due_time": (NOW + 30,),
    "complete_time": (NOW,),
    "generated_time": (NOW,),
    "provider_task_id": ("k-2",),
    "candidate_id": ("k-2",),
    "generating": (False, True),
    "percent": (50,),
    "credits_consumed": (1.5,),
    "artifacts": ((Artifact("https://x.example/1.png", "image/png"),),),
    "result_json": ("{}",),
    "failure": (Failure("GENERATION_FAILED", "no", "501"),),
    "late_poll_time": (None,),
    "setbacks": (1,),
}
Edge = tuple[str, str, str]


def state(task: Task) -> str:
    return task.stage or task.status


def tasks() -> Iterator[Task]:
    """Yield tasks in every state, with and without the provider's id."""
    new = Task("t", "c", "r", "p", "imagen4", b"", NOW - 10, NOW - 10, NOW)
    for provider_task_id in ("", "k"):
        known = new._replace(provider_task_id=provider_task_id)
        yield from (known._replace(stage=stage) for stage in PENDING)
        yield from (
            known._replace(stage=None, status=end) for end in (Status.SUCCESS, Status.FAILED)
        )


def moves() -> dict[str, Callable[..., Task]]:
    """Return the public methods of a task that return a task."""
    methods = inspect.getmembers(Task, inspect.isfunction)
    return {
        name: method
        for name, method in methods
        if name[0] != "_" and inspect.signature(method).return_annotation == "Task"
    }


def results(move: Callable[..., Task], task: Task) -> Iterator[Task]:
    """Yield what a move makes of a task; nothing if the move is not allowed in its state."""
    _, *names = inspect.signature(move).parameters
    for values in product(*(ARGUMENTS[name] for name in names)):
        try:
            yield move(task, **dict(zip(names, values, strict=True)))
        except AssertionError:
            return


def visible_edges() -> set[Edge]:
    return {
        (state(before), state(after), name)
        for before in tasks()
        for name, move in moves().items()
        for after in results(move, before)
        if after.revision > before.revision
    }


def test_the_diagram_of_states_shows_the_moves_of_tasks() -> None:
    [diagram] = re.findall(r"stateDiagram-v2\n(.*?)```", PAGE, re.DOTALL)
    assert set(EDGE.findall(diagram)) == visible_edges()


def test_the_page_explains_every_move_that_callers_can_see() -> None:
    section = PAGE.partition("## The states of a task")[2].partition("\n## ")[0]
    assert set(ROW.findall(section)) == {name for _, _, name in visible_edges()}


def test_the_page_names_every_move_that_callers_cannot_see() -> None:
    [listed] = re.findall(
        r"^Callers do not see these moves(.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE
    )
    assert set(re.findall(r"`(\w+)`", listed)) == moves().keys() - {
        name for _, _, name in visible_edges()
    }


def test_the_table_of_layers_names_every_module() -> None:
    table = PAGE.partition("## Layers")[2].partition("\n## ")[0]
    named = {name.rpartition("/")[2] for name in re.findall(r"`([\w/]+?)/?`", table)}
    modules = {
        path.stem if path.suffix else path.name
        for folder in ("service", "storage", "providers", "providers/kie")
        for path in (ROOT / folder).iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    assert modules - named == {"__init__", "__main__", "kie"}
