"""The simulator's settings: one frozen value, validated and replaced as a whole."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from providers.kie.simulator.facts import all_facts
from providers.kie.simulator.models import FAMILIES, MODELS, Model

Range = tuple[float, float]

REALISTIC_LATENCY_SECONDS: Final = (0.2, 0.9)
"""Of recordInfo and createTask, as recorded."""

SECRETS: Final = ("api_key", "webhook_key")
FIXED_AT_START: Final = ("seed", "state_file", "tasks_max", "callback_concurrency", *SECRETS)

_RATES: Final = ("fail_rate", "direct_rate", "queuing_rate")
_AMOUNTS: Final = ("visible_after_seconds", "credits")
_MORE_THAN_ZERO: Final = ("speed", "create_window_seconds", "callback_timeout_seconds")
_COUNTS: Final = (
    *("creates_per_window", "records_per_second", "catalogue_per_second", "max_running"),
    "callback_duplicates",
)
_SIZES: Final = ("tasks_max", "callback_concurrency", "upload_max_bytes")
_FLAGS: Final = ("realistic", "http_429", "allow_url_upload")
_CHOICES: Final[Mapping[str, tuple[object, ...]]] = {
    "jobs_validation_code": (422, 500),
    "veo_times": ("text", "iso", "ms"),
}


@dataclass(frozen=True, kw_only=True)
class SimulatorSettings:
    """Everything that can be set; the defaults suit a first try.

    Attributes:
        api_key: The only bearer key accepted; None accepts any that is not empty.
        webhook_key: Signs callbacks, as Kie's webhookHmacKey does; None sends them unsigned.
        seed: Makes durations, failures and the odds of faults repeatable.
        speed: Divides every wait except those set by a prompt or a fault.
        realistic: Durations and latencies as recorded, instead of short ones.
        seconds: Shortest and longest duration by model or family, instead of the default ones.
        visible_after_seconds: How long after its creation a task is "recordInfo is null".
        latency_seconds: Shortest and longest extra wait of each API answer.
        direct_rate: The share of tasks that go from waiting straight to their end.
        queuing_rate: The share of the others that show `queuing` in between.
        fail_rate: The share of tasks that fail.
        credits: The balance at start. A task that fails is refunded.
        costs: Credits per task by model or family, instead of the default ones.
        creates_per_window: New tasks per key in any `create_window_seconds`; 0 = no limit.
        create_window_seconds: The length of that sliding window.
        records_per_second: Record queries per key in any second; 0 = no limit.
        catalogue_per_second: Catalogue requests per key in any second; 0 = no limit.
        withdrawn_models: Models that the catalogue does not list and that creates are refused for.
        max_running: Unfinished tasks at a time; 0 = no limit.
        http_429: Whether an exceeded limit is answered with HTTP 429 as well as code 429.
        jobs_validation_code: The code of a bad field in a jobs order: 500 and 422 were observed.
        veo_times: The format of times in Veo records: `ms`, `text` (YYYY-MM-DD hh:mm:ss) or `iso`.
        callback_timeout_seconds: How long a callback's receiver may take.
        callback_retry_seconds: The waits before each retry.
        callback_concurrency: Callbacks in flight at a time.
        callback_duplicates: How many extra times each callback is delivered.
        public_url: The base of result links; None uses the Host that the request came to.
        upload_max_bytes: The largest file accepted.
        allow_url_upload: Whether file-url-upload may fetch from beyond loopback.
        state_file: Keeps tasks, uploads and the port over a restart; None keeps nothing.
        tasks_max: How many tasks are kept, the oldest dropped first.
    """

    api_key: str | None = field(default=None, repr=False)
    webhook_key: str | None = field(default=None, repr=False)
    seed: int | None = None
    speed: float = 1.0
    realistic: bool = False
    seconds: Mapping[str, Range] = field(default_factory=dict)
    visible_after_seconds: float = 0.0
    latency_seconds: Range = (0.0, 0.0)
    direct_rate: float = 0.3
    queuing_rate: float = 0.3
    fail_rate: float = 0.0
    credits: float = 1_000_000.0
    costs: Mapping[str, float] = field(default_factory=dict)
    creates_per_window: int = 20
    create_window_seconds: float = 10.0
    records_per_second: int = 10
    catalogue_per_second: int = 1
    withdrawn_models: tuple[str, ...] = ()
    max_running: int = 0
    http_429: bool = False
    jobs_validation_code: int = 500
    veo_times: str = "ms"
    callback_timeout_seconds: float = 15.0
    callback_retry_seconds: tuple[float, ...] = (1.0, 2.0, 4.0)
    callback_concurrency: int = 16
    callback_duplicates: int = 0
    public_url: str | None = None
    upload_max_bytes: int = 2 * 1024**3
    allow_url_upload: bool = False
    state_file: Path | None = None
    tasks_max: int = 100_000

    def __post_init__(self) -> None:
        self._check("a number from 0 to 1", _RATES, lambda v: _is_number(v) and v <= 1)
        self._check("a number, 0 or more", _AMOUNTS, _is_number)
        self._check("a number above 0", _MORE_THAN_ZERO, lambda v: _is_number(v) and v > 0)
        self._check("a whole number, 0 or more", _COUNTS, _is_count)
        self._check("a whole number above 0", _SIZES, lambda v: _is_count(v) and v > 0)
        self._check("true or false", _FLAGS, lambda v: isinstance(v, bool))
        self._check("two numbers, the lower first", ("latency_seconds",), _is_range)
        self._check("a list of numbers", ("callback_retry_seconds",), _are_waits)
        self._check("a list of known models", ("withdrawn_models",), _are_models)
        self._check("an http(s) URL or nothing", ("public_url",), _is_base_url)
        for name, allowed in _CHOICES.items():
            meaning = "one of " + ", ".join(map(str, allowed))
            self._check(meaning, (name,), lambda v, allowed=allowed: v in allowed)
        self._check_table("seconds", "two numbers, the lower first", _is_range)
        self._check_table("costs", "a number, 0 or more", _is_number)

    def changed(self, changes: Mapping[str, Any]) -> "SimulatorSettings":
        """Return these settings with `changes`, which may be JSON values.

        Raises:
            ValueError: A name that is unknown or fixed at start, or an invalid value.
        """
        known = {item.name for item in fields(self)}
        for name in changes:
            if name not in known:
                raise ValueError(f"unknown setting {name}: one of {', '.join(sorted(known))}")
            if name in FIXED_AT_START:
                raise ValueError(f"{name} is fixed when the simulator starts")
        return replace(self, **{name: _from_json(value) for name, value in changes.items()})

    def seconds_of(self, model: Model) -> Range:
        """Return the shortest and longest time that a task of `model` takes, `speed` included."""
        default = model.realistic_seconds if self.realistic else model.seconds
        low, high = self.seconds.get(model.name) or self.seconds.get(model.family) or default
        return low / self.speed, high / self.speed

    @property
    def latency(self) -> Range:
        """The shortest and longest extra wait of an API answer, `speed` included."""
        recorded = self.realistic and self.latency_seconds == (0.0, 0.0)
        low, high = REALISTIC_LATENCY_SECONDS if recorded else self.latency_seconds
        return low / self.speed, high / self.speed

    @property
    def hidden_seconds(self) -> float:
        """How long a new task is not visible, `speed` included."""
        return self.visible_after_seconds / self.speed

    @property
    def callback_waits(self) -> tuple[float, ...]:
        """The waits before each retry of a callback, `speed` included."""
        return tuple(seconds / self.speed for seconds in self.callback_retry_seconds)

    @property
    def files_folder(self) -> Path | None:
        """Where uploads are kept over a restart, next to the state file; None if there is none."""
        return Path(f"{self.state_file}.files") if self.state_file else None

    def cost_of(self, model: Model) -> float:
        """Return the credits per task of `model`."""
        by_family = self.costs.get(model.family, model.credits)
        return self.costs.get(model.name, by_family)

    def shown(self) -> dict[str, Any]:
        """Return the settings as JSON values; for a secret, only whether it is set."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {name: values[name] is not None for name in SECRETS}
        values["state_file"] = str(self.state_file) if self.state_file else None
        return values

    def _check(self, meaning: str, names: tuple[str, ...], holds: Any) -> None:
        for name in names:
            if not holds(getattr(self, name)):
                raise ValueError(f"{name} must be {meaning}, not {getattr(self, name)!r}")

    def _check_table(self, name: str, meaning: str, holds: Any) -> None:
        table = getattr(self, name)
        if not isinstance(table, Mapping):
            raise ValueError(f"{name} must map a model or family to {meaning}")  # noqa: TRY004
        for key, value in table.items():
            if key not in MODELS and key not in FAMILIES:
                raise ValueError(f"{name}: {key!r} is neither a model nor a family")
            if not holds(value):
                raise ValueError(f"{name}: {key} must have {meaning}, not {value!r}")


def _from_json(value: Any) -> Any:
    """Return JSON lists as tuples, also inside objects."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping):
        return {key: _from_json(item) for key, item in value.items()}
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_range(value: object) -> bool:
    return _are_waits(value) and len(value) == 2 and value[0] <= value[1]  # type: ignore[arg-type,index]  # noqa: PLR2004


def _are_waits(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_number(item) for item in value)


def _are_models(value: object) -> bool:
    return isinstance(value, tuple) and all(name in MODELS or name in all_facts() for name in value)


def _is_base_url(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.startswith(("http://", "https://")))
