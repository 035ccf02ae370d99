"""Tasks of the simulator, and how their course is drawn when they are created.

A task never changes by itself. Everything about its course is drawn at its creation, and its state
is a pure function of that and of the current time. So nothing has to run for it, and a restarted
simulator that reads its creation record continues exactly where it stopped.
"""

import random
import re
from dataclasses import dataclass, replace
from typing import Any, Final

from providers.kie.simulator.models import MODELS, Model
from providers.kie.simulator.orders import Order
from providers.kie.simulator.rules import INVALID, RefusedError
from providers.kie.simulator.settings import SimulatorSettings

DIRECTIVE: Final = re.compile(r"\[sim:([^\]=]*)(?:=([^\]]*))?\]")
DIRECTIVES: Final = ("create", "fail", "lost", "no-file", "no-urls", "seconds", "stuck")
FAILED_CODE: Final = "500"
FAILED_MSG: Final = "Internal Error, Please try again later."

SUCCESS: Final = "success"
FAIL: Final = "fail"
FINAL_STATES: Final = (SUCCESS, FAIL)
FRAMES: Final = ("first", "last")
"""The frames of a video that are images of their own, by the end of their file names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A creation record: a task's whole course, unless it is ended on request.

    Attributes:
        id: 32 lower-case hexadecimal digits.
        model: A name of `MODELS`.
        body: The create request as it came.
        base_url: Where its results are served.
        created_ms: Unix milliseconds, as all times here.
        visible_ms: Before this, a record query finds nothing.
        phases: The states before the end and when each begins.
        ends_ms: When it ends; None = never.
        succeeds: How it ends.
        fail_code: The failure's code, a string as documented.
        fail_msg: The failure's message.
        results: File names under `base_url`, or whole URLs.
        size: Width and height of an image in pixels.
        credits: What it costs unless it fails.
        callback_url: Where its end is reported, if anywhere.
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
        """Return the state at `now_ms`: waiting, queuing, generating, success or fail."""
        if self.ends_ms is not None and now_ms >= self.ends_ms:
            return SUCCESS if self.succeeds else FAIL
        reached = [state for state, since_ms in self.phases if now_ms >= since_ms]
        return reached[-1] if reached else self.phases[0][0]

    def credits_in(self, state: str) -> float:
        """Return its cost in `state`: charged when it is created, and 0 if it fails."""
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
        """The model that generates it."""
        return MODELS[self.model]

    @property
    def result_urls(self) -> list[str]:
        """The URLs of its results."""
        return [r if "://" in r else self.url_of(r) for r in self.results]

    def url_of(self, name: str) -> str:
        """Return the URL of one of its files."""
        return f"{self.base_url}/results/{name}"

    def finished(
        self,
        now_ms: int,
        *,
        succeeds: bool,
        code: str = FAILED_CODE,
        msg: str = FAILED_MSG,
        results: tuple[str, ...] | None = None,
    ) -> "Task":
        """Return the task, ended at `now_ms`."""
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
    """Return a task from its line in the state file."""
    phases = tuple((state, since_ms) for state, since_ms in values["phases"])
    width, height = values["size"]
    return Task(
        **{**values, "phases": phases, "results": tuple(values["results"]), "size": (width, height)}
    )


def wants_frames(task: Task) -> bool:
    """Return whether the first and the last frame of a video were ordered with it."""
    wanted = task.body.get("input")
    return isinstance(wanted, dict) and wanted.get("return_last_frame") is True


def prompt_of(task: Task) -> str:
    """Return the prompt that a task was created with."""
    return Order(model=task.kind, body=task.body).prompt


def directives_in(prompt: str) -> dict[str, str]:
    """Return the `[sim:name=value]` directives of a prompt.

    Raises:
        RefusedError: 422 for an unknown one, as it is most likely a typing error.
    """
    found = {name.strip(): value.strip() for name, value in DIRECTIVE.findall(prompt)}
    if unknown := set(found) - set(DIRECTIVES):
        known = ", ".join(DIRECTIVES)
        raise RefusedError(INVALID, f"unknown directive [sim:{min(unknown)}]: one of {known}")
    return found


def code_and_message(value: str, code: str, msg: str) -> tuple[str, str]:
    """Split `501 Too dark` into its two parts, each with a default."""
    head, _, rest = value.partition(" ")
    if re.fullmatch(r"[0-9]{3}", head):
        return head, rest.strip() or msg
    return code, value or msg


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """When and how an order is placed: what a task is drawn from, besides the order itself."""

    task_id: str
    now_ms: int
    base_url: str
    settings: SimulatorSettings
    rng: random.Random


def draw_task(order: Order, purchase: Purchase) -> Task:
    """Return a new task, its whole course drawn.

    Raises:
        RefusedError: 422 for a directive that cannot be followed.
    """
    settings, now_ms = purchase.settings, purchase.now_ms
    directives = directives_in(order.prompt)
    seconds = _seconds(directives, order, purchase)
    fail_code, fail_msg = code_and_message(directives.get("fail", ""), FAILED_CODE, FAILED_MSG)
    fails_by_chance = purchase.rng.random() < settings.fail_rate
    return Task(
        id=purchase.task_id,
        model=order.model.name,
        body=dict(order.body),
        base_url=purchase.base_url,
        created_ms=now_ms,
        visible_ms=now_ms + int(settings.hidden_seconds * 1000),
        phases=_phases(now_ms, seconds, purchase),
        ends_ms=None if "stuck" in directives else now_ms + int(seconds * 1000),
        succeeds="fail" not in directives and not fails_by_chance,
        fail_code=fail_code,
        fail_msg=fail_msg,
        results=_results(order, directives, purchase.task_id),
        size=order.size,
        credits=settings.cost_of(order.model),
        callback_url=order.callback_url,
    )


def _seconds(directives: dict[str, str], order: Order, purchase: Purchase) -> float:
    wanted = directives.get("seconds")
    if wanted is None:
        return purchase.rng.uniform(*purchase.settings.seconds_of(order.model))
    if not re.fullmatch(r"\d{1,7}(\.\d{1,3})?", wanted):
        raise RefusedError(INVALID, f"[sim:seconds={wanted}] must be a number of seconds")
    return float(wanted)


def _phases(now_ms: int, seconds: float, purchase: Purchase) -> tuple[tuple[str, int], ...]:
    """Waiting first; usually then queuing and generating; sometimes, as observed, neither."""
    rng, settings = purchase.rng, purchase.settings
    direct, queues = rng.random() < settings.direct_rate, rng.random() < settings.queuing_rate
    queuing_ms, generating_ms = (now_ms + int(seconds * share * 1000) for share in (0.1, 0.3))
    if direct:
        return (("waiting", now_ms),)
    if queues:
        return (("waiting", now_ms), ("queuing", queuing_ms), ("generating", generating_ms))
    return (("waiting", now_ms), ("generating", queuing_ms))


def _results(order: Order, directives: dict[str, str], task_id: str) -> tuple[str, ...]:
    if "no-urls" in directives:
        return ()
    stem = "missing" if "no-file" in directives else task_id
    return tuple(f"{stem}_{index}.{order.model.media}" for index in range(order.results))
