"""Injected faults: what goes wrong, where, how often, and how a fault is written.

A rule names an endpoint class, a kind, and the requests it applies to. Each kind has one moment: on
arrival of a request (nothing is bought), after it was accepted (bought, but the answer is lost),
while a record or a result is shown, or while a callback is sent. The simulator calls
`FaultBook.take` at each of these moments, and a rule counts only the requests it applies to.

`exact` and `accept_then_exact` send any message byte for byte: see `exact.Exact`.
"""

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, get_type_hints

from providers.kie.simulator.exact import Exact, exact_from_json
from providers.kie.simulator.models import FAMILIES, MODELS, Model

HTTP_ENDPOINTS: Final = frozenset(
    {"create", "record", "upload", "credit", "catalogue", "schema", "result"}
)
ENDPOINTS: Final = HTTP_ENDPOINTS | {"callback", "any"}
RULES_MAX: Final = 1_000

ARRIVAL: Final = "arrival"
ACCEPTED: Final = "accepted"
PENDING: Final = "pending"
FINISHED: Final = "finished"
SUCCEEDED: Final = "succeeded"
SENDING: Final = "sending"
CALLING: Final = "calling"

_EVERYWHERE: Final = HTTP_ENDPOINTS
_RECORD: Final = frozenset({"record"})
_CALLBACK: Final = frozenset({"callback"})
_PAID: Final = frozenset({"create", "upload"})
_LIST: Final = frozenset({"catalogue"})
_SCHEMA: Final = frozenset({"schema"})

KINDS: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    # kind: (the endpoint classes it suits, the moments it strikes)
    "code": (_EVERYWHERE, frozenset({ARRIVAL})),
    "http": (_EVERYWHERE, frozenset({ARRIVAL})),
    "reset": (_EVERYWHERE, frozenset({ARRIVAL})),
    "hang": (_EVERYWHERE, frozenset({ARRIVAL})),
    "slow": (_EVERYWHERE, frozenset({ARRIVAL})),
    "garbage": (_EVERYWHERE, frozenset({ARRIVAL})),
    "empty": (_EVERYWHERE, frozenset({ARRIVAL})),
    "null_data": (_EVERYWHERE, frozenset({ARRIVAL})),
    "wrong_types": (_EVERYWHERE, frozenset({ARRIVAL})),
    "not_visible": (_RECORD, frozenset({ARRIVAL})),
    "accept_then_reset": (_PAID, frozenset({ACCEPTED})),
    "accept_then_hang": (_PAID, frozenset({ACCEPTED})),
    "accept_then_http": (_PAID, frozenset({ACCEPTED})),
    "accept_then_garbage": (_PAID, frozenset({ACCEPTED})),
    "accept_then_empty": (_PAID, frozenset({ACCEPTED})),
    "accept_then_no_id": (_PAID, frozenset({ACCEPTED})),
    "unknown_state": (_RECORD, frozenset({PENDING, FINISHED, SUCCEEDED})),
    "late": (_RECORD, frozenset({FINISHED, SUCCEEDED})),
    "no_urls": (_RECORD, frozenset({SUCCEEDED})),
    "result_object": (_RECORD, frozenset({SUCCEEDED})),
    "truncate": (frozenset({"result"}), frozenset({SENDING})),
    "fewer_models": (_LIST, frozenset({SENDING})),
    "no_models": (_LIST, frozenset({SENDING})),
    "other_models": (_LIST, frozenset({SENDING})),
    "null_schema": (_SCHEMA, frozenset({SENDING})),
    "changed_schema": (_SCHEMA, frozenset({SENDING})),
    "large_schema": (_SCHEMA, frozenset({SENDING})),
    "recursive_schema": (_SCHEMA, frozenset({SENDING})),
    "slow_pattern": (_SCHEMA, frozenset({SENDING})),
    "drop": (_CALLBACK, frozenset({CALLING})),
    "duplicate": (_CALLBACK, frozenset({CALLING})),
    "wrong_signature": (_CALLBACK, frozenset({CALLING})),
    "delay": (_CALLBACK, frozenset({CALLING})),
}
EXACT_KINDS: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    # the same for faults that can produce any message
    "exact": (_EVERYWHERE | _CALLBACK, frozenset({ARRIVAL, CALLING})),
    "accept_then_exact": (_PAID, frozenset({ACCEPTED})),
}
ALL_KINDS: Final = {**KINDS, **EXACT_KINDS}


@dataclass(frozen=True, kw_only=True)
class FaultRule:
    """One injected fault.

    Attributes:
        endpoint: Create, record, upload, callback, credit, catalogue (the list of models), schema
            (also the price and the success rate of a model), result or any (each but callback).
        kind: One of `ALL_KINDS`.
        family: Only requests of this family: imagen4, midjourney, veo3, sora2 or market.
        model: Only requests of exactly this model, e.g. `google/imagen4-fast` or `mj_video`.
        times: How often it strikes; 0 = until cleared.
        probability: 0 to 1, drawn for each request it could strike.
        after: How many requests it lets pass first.
        code: The envelope's code, for kind `code`.
        msg: The envelope's message, for kind `code`.
        status: The HTTP status, for kinds `http` and `accept_then_http`.
        body: The body of those two: a page, or plain text such as `error code: 1010`.
        seconds: The wait of `slow` and `delay`.
        state: The state that `unknown_state` shows; Veo and Midjourney show successFlag 9.
        share: The share of the models that `fewer_models` leaves.
        exact: What `exact` and `accept_then_exact` send; by default an empty HTTP 200.
    """

    endpoint: str
    kind: str
    family: str | None = None
    model: str | None = None
    times: int = 1
    probability: float = 1.0
    after: int = 0
    code: int = 500
    msg: str = "Server exception, please try again later or contact customer service"
    status: int = 502
    body: str = (
        "<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>"
    )
    seconds: float = 5.0
    state: str = "archived"
    share: float = 0.4
    exact: Exact = field(default_factory=Exact)

    def __post_init__(self) -> None:
        if self.endpoint not in ENDPOINTS:
            raise ValueError(f"unknown endpoint {self.endpoint!r}: one of {_listed(ENDPOINTS)}")
        if self.kind not in ALL_KINDS:
            raise ValueError(f"unknown fault {self.kind!r}: one of {_listed(ALL_KINDS)}")
        if not self.endpoints & ALL_KINDS[self.kind][0]:
            suited = _listed(ALL_KINDS[self.kind][0])
            raise ValueError(f"fault {self.kind} does not suit {self.endpoint}, only {suited}")
        if self.family is not None and self.family not in FAMILIES:
            raise ValueError(f"unknown family {self.family!r}: one of {_listed(FAMILIES)}")
        if self.model is not None and self.model not in MODELS:
            raise ValueError(
                f"unknown model {self.model!r}: the catalogue and docs/simulator.md list them"
            )
        if min(self.times, self.after) < 0 or not 0 <= self.seconds < math.inf:
            raise ValueError("times, after and seconds must not be negative")
        if not (0 <= self.probability <= 1 and 0 <= self.share <= 1):
            raise ValueError("probability and share must be between 0 and 1")
        if not 200 <= self.status <= 599:  # noqa: PLR2004 - the final statuses of HTTP
            raise ValueError("status must be between 200 and 599")

    @property
    def endpoints(self) -> frozenset[str]:
        """The endpoint classes that the rule applies to."""
        return HTTP_ENDPOINTS if self.endpoint == "any" else frozenset({self.endpoint})

    def suits(self, endpoint: str, moment: str, model: Model | None) -> bool:
        """Return whether the rule applies to a request to `endpoint` about `model`, at `moment`."""
        where, moments = ALL_KINDS[self.kind]
        return (
            endpoint in self.endpoints & where
            and moment in moments
            and (self.family is None or (model is not None and model.family == self.family))
            and (self.model is None or (model is not None and model.name == self.model))
        )


def parse_fault(spec: str) -> FaultRule:
    """Return a rule from `ENDPOINT:KIND[,name=value...]`, or from a JSON object of its fields.

    Example: `create:code,code=429,times=3,family=veo3`. A value with a comma requires the JSON
    form, and so does `exact`.

    Raises:
        ValueError: The message says what is wrong and what is allowed.
    """
    if spec.lstrip().startswith("{"):
        return fault_from_json(_json_object(spec))
    head, *pairs = spec.split(",")
    endpoint, colon, kind = head.partition(":")
    if not colon:
        raise ValueError(f"fault {spec!r} is not of the form ENDPOINT:KIND[,name=value...]")
    values: dict[str, str] = dict(_named(pair) for pair in pairs)
    return fault_from_json({"endpoint": endpoint.strip(), "kind": kind.strip(), **values})


def fault_from_json(values: Mapping[str, Any]) -> FaultRule:
    """Return a rule from JSON values; numbers may be spelled as strings.

    Raises:
        ValueError: Naming the field.
    """
    hints = get_type_hints(FaultRule)
    known = {field.name for field in fields(FaultRule)}
    if unknown := set(values) - known:
        raise ValueError(f"unknown {_listed(unknown)}: a fault has {_listed(known)}")
    if missing := {"endpoint", "kind"} - set(values):
        raise ValueError(f"a fault needs {_listed(missing)}")
    converted: dict[str, Any] = {
        name: _converted(name, value, hints) for name, value in values.items()
    }
    return FaultRule(**converted)


class FaultBook:
    """The active rules, oldest first; the first one that applies strikes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ids = itertools.count(1)
        self._entries: dict[int, _Entry] = {}
        self.struck: Counter[str] = Counter()

    def add(self, rule: FaultRule) -> int:
        """Activate `rule`.

        Returns:
            Its number, for `clear`.

        Raises:
            ValueError: There are `RULES_MAX` already.
        """
        if len(self._entries) >= RULES_MAX:
            raise ValueError(f"at most {RULES_MAX} faults may be set; clear some")
        number = next(self._ids)
        self._entries[number] = _Entry(rule)
        return number

    def clear(self, number: int | None = None) -> bool:
        """Forget one rule, or all of them; false if there is no such rule."""
        if number is None:
            self._entries.clear()
            return True
        return self._entries.pop(number, None) is not None

    def take(self, endpoint: str, moment: str, model: Model | None) -> FaultRule | None:
        """Return the rule that strikes this request, counted as used; None if none does."""
        for number, entry in list(self._entries.items()):
            if entry.rule.suits(endpoint, moment, model) and entry.strikes(self._rng):
                if entry.spent:
                    del self._entries[number]
                self.struck[entry.rule.kind] += 1
                return entry.rule
        return None

    def listed(self) -> list[dict[str, Any]]:
        """Return the active rules as JSON values, with their numbers and counts."""
        return [
            {"id": number, **asdict(entry.rule), "matched": entry.matched, "struck": entry.struck}
            for number, entry in self._entries.items()
        ]


class _Entry:
    """An active rule, and how often it matched and struck."""

    def __init__(self, rule: FaultRule) -> None:
        self.rule = rule
        self.matched = 0
        self.struck = 0

    def strikes(self, rng: random.Random) -> bool:
        self.matched += 1
        if self.matched <= self.rule.after or rng.random() >= self.rule.probability:
            return False
        self.struck += 1
        return True

    @property
    def spent(self) -> bool:
        return 0 < self.rule.times <= self.struck


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _named(pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals:
        raise ValueError(f"{pair!r} is not of the form name=value")
    return name.strip(), value


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a fault in JSON must be an object")  # noqa: TRY004 - callers catch one
    return value


def _converted(name: str, value: object, hints: Mapping[str, Any]) -> object:
    """Return `value` as the declared type of the field."""
    if name == "exact":
        return exact_from_json(value)
    if hints[name] in {int, float} and isinstance(value, int | float | str) and value is not True:
        try:
            return hints[name](value)
        except (ValueError, OverflowError):
            raise ValueError(f"{name} must be a number, not {value!r}") from None
    if isinstance(value, str) or (value is None and name in {"family", "model"}):
        return value
    raise ValueError(
        f"{name} must be a {getattr(hints[name], '__name__', 'string')}, not {value!r}"
    )
