"""From the errors of the schema library to violations, in words that a person understands."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any, NamedTuple

from jsonschema_rs import ValidationError
from jsonschema_rs import ValidationErrorKind as Kind

from providers.base import Violation
from providers.kie.catalogue.keywords import shown
from providers.kie.structs import render
from providers.kie.values import field_name

VIOLATIONS_MAX = 100
CHOICES_MAX_CHARACTERS = 200  # an error may have 300 bytes for the words about a field
PATTERN_MAX_CHARACTERS = 100
# Comparing names takes long, so a check makes only so many comparisons, of names up to a length.
COMPARISONS_MAX = 400
NAME_MAX_CHARACTERS = 64

TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
BOUNDS: Mapping[type[Kind], str] = {
    Kind.Minimum: "at least",
    Kind.Maximum: "at most",
    Kind.ExclusiveMinimum: "more than",
    Kind.ExclusiveMaximum: "less than",
}
COUNTS: Mapping[type[Kind], tuple[str, str]] = {
    Kind.MinLength: ("have at least", "character"),
    Kind.MaxLength: ("have at most", "character"),
    Kind.MinItems: ("contain at least", "value"),
    Kind.MaxItems: ("contain at most", "value"),
    Kind.MinProperties: ("have at least", "field"),
    Kind.MaxProperties: ("have at most", "field"),
}
NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,15})(?:\.\d{1,15})?")
LIKE_JSON = re.compile(rf"{NUMBER.pattern}|true|false|null|\s*|\s.*|.*\s")

Path = tuple[str | int, ...]
# The rules that say most about a value come first; less telling ones about it are dropped.
CHOICES, TYPE, OTHER, UNKNOWN = range(4)


class Broken(NamedTuple):
    """A broken rule: the place of a value, what it must be, and what these words are worth."""

    where: Path
    words: str
    rank: int = OTHER


def violations(
    errors: Iterable[ValidationError], schema: Mapping[str, Any], value: Any, path: str
) -> list[Violation]:
    """Return every broken rule once, in the order of the paths; of a wrong type, only that.

    Args:
        errors: The errors that the schema library found.
        schema: The schema.
        value: The checked value.
        path: Its path in the request.
    """
    explainer = _Explainer(schema, value)
    broken = [rule for error in errors for rule in explainer.explain(error)]
    best = {where: rank for where, _, rank in sorted(broken, key=_worst_first)}
    found: dict[tuple[Path, str], Violation] = {}
    for where, words, rank in broken:
        if rank == best[where]:  # each branch of a combinator may not know a field
            key = (where, "" if rank == UNKNOWN else words)
            found.setdefault(key, Violation(path + _written(where), words))
    return sorted(found.values(), key=lambda violation: violation.field)[:VIOLATIONS_MAX]


def _worst_first(broken: Broken) -> int:
    return -broken.rank


def _written(where: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)


def _at(value: Any, path: Sequence[str | int]) -> Any:
    """Return what a path leads to; None if it leads nowhere."""
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


class _Explainer:
    """Finds the words for each error of one check."""

    def __init__(self, schema: Mapping[str, Any], value: Any) -> None:
        self._schema = schema
        self._value = value
        self._comparisons = COMPARISONS_MAX

    def explain(self, error: ValidationError) -> Iterator[Broken]:
        where = tuple(error.instance_path)
        value = _at(self._value, where)
        match error.kind:
            case Kind.Required(name):
                if not (isinstance(value, dict) and name in value):  # only a part was checked
                    yield Broken((*where, name), "is required")
            case Kind.AdditionalProperties(names):
                known = list(_at(self._schema, [*error.schema_path[:-1], "properties"]) or ())
                for name in islice(names, VIOLATIONS_MAX):
                    yield Broken((*where, name), self._unknown(name, known), UNKNOWN)
            case Kind.Type(types):
                yield Broken(where, type_words(types, value), TYPE)
            case Kind.Enum(options):
                yield Broken(where, choice_words(options, value), CHOICES)
            case Kind.AnyOf(context):
                yield from self._alternatives(error, context, "at least")
            case Kind.OneOfNotValid(context):
                yield from self._alternatives(error, context, "exactly")
            case Kind.OneOfMultipleValid():
                yield Broken(where, _ambiguous(_at(self._schema, error.schema_path), value))
            case _:
                yield Broken(where, rule_words(error))

    def _unknown(self, name: str, known: list[str]) -> str:
        if self._comparisons and len(name) <= NAME_MAX_CHARACTERS:
            short = (other for other in known if len(other) <= NAME_MAX_CHARACTERS)
            compared = list(islice(short, self._comparisons))
            self._comparisons -= len(compared)
            plain = {field_name(other): other for other in reversed(compared)}
            for near in get_close_matches(field_name(name), plain, n=1):
                return f"is unknown; did you mean {plain[near]}?"
        return f"is unknown; the fields are {_listed(known)}" if known else "is unknown"

    def _alternatives(
        self, error: ValidationError, context: list[list[ValidationError]], how_many: str
    ) -> Iterator[Broken]:
        """Explain why no branch of a combinator accepts a value, by the branch that is nearest."""
        where = tuple(error.instance_path)
        schemas = _at(self._schema, error.schema_path)
        value = _at(self._value, where)
        fits = [_fit(schema, value) for schema in schemas]
        branches = [
            [rule for error in errors for rule in self.explain(error)] for errors in context
        ]
        only_required = all(_is_required(e, where) for errors in context for e in errors)
        if only_required and len(set(fits)) == 1:
            yield from _missing(where, branches, how_many)
            return
        mismatches = [_mismatch(branch, where) for branch in branches]
        near = [
            (-fit, len(branch), at)
            for at, (fit, branch) in enumerate(zip(fits, branches, strict=True))
            if not mismatches[at]
        ]
        if near:
            nearest = [at for fit, _, at in near if fit == min(near)[0]]
            shared = list(_shared_choices(where, value, [context[at] for at in nearest]))
            yield from shared or branches[min(near)[-1]]
            return
        wanted = [rule.words.removeprefix("must be ") for rule in mismatches if rule]
        yield Broken(where, f"must be {' or '.join(dict.fromkeys(wanted))}", TYPE)


def _shared_choices(
    where: Path, value: Any, contexts: list[list[ValidationError]]
) -> Iterator[Broken]:
    """Explain a field whose value no branch accepts, such as one that tells the branches apart."""
    if len(contexts) <= 1 or not isinstance(value, dict):
        return
    for name, given in value.items():
        options = [
            [each for error in errors for each in _options(error, (*where, name))]
            for errors in contexts
        ]
        if all(options):
            merged = list(dict.fromkeys(option for each in options for option in each))
            yield Broken((*where, name), choice_words(merged, given), CHOICES)


def _options(error: ValidationError, place: Path) -> Sequence[Any]:
    """Return the choices at a place, if the error is about them."""
    if tuple(error.instance_path) != place or not isinstance(error.kind, Kind.Enum):
        return ()
    options: Sequence[Any] = error.kind.options
    return options


def _missing(where: Path, branches: list[list[Broken]], how_many: str) -> Iterator[Broken]:
    """Explain that a combinator needs more fields: those of all branches, and those of any one."""
    groups = [[str(rule.where[-1]) for rule in branch] for branch in branches]
    for name in _shared(groups):
        yield Broken((*where, name), "is required")
    if names := _groups(groups):
        yield Broken(where, f"must have {how_many} one of {names}")


def _ambiguous(branches: Any, value: Any) -> str:
    """Return what to do with an object that several branches of a oneOf accept."""
    groups = [branch.get("required") or [] for branch in branches or ()]
    given = [group for group in groups if isinstance(value, dict) and value.keys() >= set(group)]
    return f"must have only one of {_groups(given)}"


def _shared(groups: list[list[str]]) -> list[str]:
    return [name for name in groups[0] if all(name in group for group in groups)] if groups else []


def _groups(groups: list[list[str]]) -> str:
    """Return groups of names without the shared ones; "" if nothing is left of one of them."""
    shared = _shared(groups)
    own = [" and ".join(name for name in group if name not in shared) for group in groups]
    return _listed(own) if all(own) else ""


def _fit(schema: Mapping[str, Any], value: Any) -> int:
    """Return how many fields of an object a branch knows."""
    names = {*schema.get("properties", ()), *schema.get("required", ())}
    return len(names.intersection(value)) if isinstance(value, dict) else 0


def _mismatch(branch: list[Broken], where: Path) -> Broken | None:
    """Return the rule about the choices or the type of the whole value, if it is broken."""
    rules = [rule for rule in branch if rule.where == where and rule.rank != OTHER]
    return min(rules, key=lambda rule: rule.rank, default=None)


def _is_required(error: ValidationError, where: Path) -> bool:
    return isinstance(error.kind, Kind.Required) and tuple(error.instance_path) == where


# --- words ---


def type_words(types: Sequence[str], value: Any) -> str:
    """Return what a value of a wrong type must be; the same value as another type if possible."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if "string" in types and is_number:
        return f'must be the string "{render(value)}"'
    if isinstance(value, str):
        number = NUMBER.fullmatch(value)
        if number and ("number" in types or ("integer" in types and "." not in value)):
            return f"must be the number {value}"
        if "boolean" in types and value in {"true", "false"}:
            return f"must be the boolean {value}"
    names = sorted(types, key=lambda name: name == "null")
    return f"must be {' or '.join(TYPES[name] for name in names)}"


def choice_words(options: Sequence[Any], value: Any) -> str:
    """Return the choices for a value; only the same choice of another type if there is one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and render(value) in options:
        return f'must be the string "{render(value)}"'
    quoted = any(isinstance(option, str) and LIKE_JSON.fullmatch(option) for option in options)
    texts = [_choice(option, quoted=quoted) for option in options]
    if isinstance(value, str) and value in texts and value not in options:
        kind = "boolean" if value in {"true", "false"} else "number"
        return f"must be the {kind} {value}"
    return f"must be one of {_listed(texts)}" if len(texts) > 1 else f"must be {texts[0]}"


def _choice(option: Any, *, quoted: bool) -> str:
    match option:
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[option]
        case str():
            return f'"{option}"' if quoted else option
        case _:
            return render(option)


def _listed(texts: Sequence[str]) -> str:
    """Return texts with commas, as many as there is room for."""
    room = CHOICES_MAX_CHARACTERS
    shown_texts: list[str] = []
    for text in texts:
        room -= len(text) + 2
        if room < 0 and shown_texts:
            return f"{', '.join(shown_texts)} and {len(texts) - len(shown_texts)} more"
        shown_texts.append(text)
    return ", ".join(shown_texts)


def rule_words(error: ValidationError) -> str:
    """Return what a rule about the size or the form of a value wants."""
    match error.kind:
        case Kind.Pattern(pattern):
            return f"must match the pattern {shown(pattern)[:PATTERN_MAX_CHARACTERS]}"
        case Kind.Format():
            return "must be an absolute http or https URL that is reachable from the internet"
        case Kind.MultipleOf(step):
            return f"must be a multiple of {_number(step)}"
        case Kind.UniqueItems():
            return "must not contain a value twice"
        case kind:
            return _limit_words(kind) or shown(error.message)


def _limit_words(kind: Kind) -> str:
    limit = getattr(kind, "limit", None)
    if type(kind) in BOUNDS:
        return f"must be {BOUNDS[type(kind)]} {_number(limit)}"
    if type(kind) in COUNTS:
        start, thing = COUNTS[type(kind)]
        return f"must {start} {limit} {thing}{'' if limit == 1 else 's'}"
    return ""


def _number(number: Any) -> str:
    return render(float(number))
