"""From a model's message to its rules and the body of its request: what the typed models share.

Each model is one pydantic class with the proto's field names: its constraints are the rules, and
its serialization aliases are Kie's names. Rules that span fields are in `cross_rules`: pydantic
skips its own model validators once any field is wrong, but callers should see all errors at once.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Self
from urllib.parse import SplitResult

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
)

from providers.base import ParamsError, Violation
from providers.public_address import is_public_host
from providers.urls import is_visible, split_http_url

URL_MAX_CHARACTERS = 2_048
URLS_MAX = 10  # the most that any model takes

# The fields that a message sets, by the proto's names; enums by short names (`FAST`).
Given = Mapping[str, Any]


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return _no_nul(text)


def _http_url(url: str, info: ValidationInfo) -> str:
    if not is_visible(url):
        raise ValueError("must not contain white space or control characters")
    parts = split_http_url(url)
    if parts is None:
        raise ValueError("must be an absolute http or https URL")
    if info.context:
        _require_public(parts)
    return url


def _require_public(parts: SplitResult) -> None:
    host = parts.hostname or ""
    if "@" in parts.netloc:
        raise ValueError("must not contain a user name or password")
    if not is_public_host(host):
        raise ValueError(f"must be reachable from the internet: {host} is not")


# The length is checked first: the functions read the whole text.
TEXT = AfterValidator(_no_nul)
PROMPT = AfterValidator(_not_blank)
Url = Annotated[str, Field(max_length=URL_MAX_CHARACTERS), AfterValidator(_http_url)]
Urls = Annotated[list[Url], Field(max_length=URLS_MAX)] | None
Watermark = Annotated[str, Field(max_length=100), TEXT] | None


def choice(wire_values: Mapping[str, str]) -> PlainSerializer:
    """Serialise the short name of an enum value as Kie's name for it."""
    return PlainSerializer(lambda name: wire_values[name], return_type=str, when_used="unless-none")


class Params(BaseModel):
    """Base of the models' parameters: an unset field is None, and is not sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    message_path: ClassVar[str]

    @classmethod
    def from_message(cls, message: Message, *, public_urls: bool = False) -> Self:
        """Check every rule of a model's message.

        Args:
            message: The model's message.
            public_urls: Whether each URL must have a public host.

        Raises:
            ParamsError: It contains every broken rule, each with its path in the request.
        """
        given = read_message(message)
        violations = [Violation(f"{cls.message_path}.{f}", d) for f, d in cls.cross_rules(given)]
        try:
            params = cls.model_validate(given, context=public_urls)
        except ValidationError as error:
            raise ParamsError(violations + cls._broken(error, violations)) from None
        if violations:
            raise ParamsError(violations)
        return params

    @classmethod
    def _broken(cls, error: ValidationError, violations: list[Violation]) -> list[Violation]:
        counted = {violation.field for violation in violations}
        found = (
            (_path(cls.message_path, e["loc"]), e)
            for e in error.errors(include_url=False, include_input=False)
        )
        return [
            Violation(path, _words(e))
            for path, e in found
            # The rule of the model already says how many values are allowed.
            if not (e["type"] == "too_long" and path in counted)
        ]

    @classmethod
    def cross_rules(cls, given: Given) -> Iterator[tuple[str, str]]:
        """Yield (field, requirement) for each broken rule that spans fields."""
        del given
        yield from ()

    def wire(self) -> dict[str, Any]:
        """Return the set fields by the provider's names."""
        fields = self.model_dump(by_alias=True)
        return {name: value for name, value in fields.items() if value is not None}


def count_rule(
    field: str, given: Given, least: int, most: int, where: str
) -> Iterator[tuple[str, str]]:
    """Yield the rule for the number of values of a repeated field, if it is broken."""
    if least <= len(given.get(field, ())) <= most:
        return
    allowed = "must be empty" if most == 0 else f"must contain exactly {most}"
    yield field, f"{allowed if least == most else f'must contain {least} to {most}'} with {where}"


def read_message(message: Message) -> dict[str, Any]:
    """Return the set fields of a message.

    Enum values are short names, or numbers if they are unknown. A list that is too long is cut just
    beyond the limit: reading a million values takes seconds.
    """
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return _short_names(field.enum_type).get(value, value)
    return value[: URLS_MAX + 1] if field.is_repeated else value


@cache
def _short_names(enum: EnumDescriptor) -> dict[int, str]:
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix) for value in enum.values}


def _path(message_path: str, loc: tuple[int | str, ...]) -> str:
    return message_path + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc
    )


def _words(error: Any) -> str:
    match error["type"]:
        case "missing":
            return "is required"
        case "literal_error":
            return f"must be one of {error['ctx']['expected']}"
        case "string_too_long":
            return f"must have at most {error['ctx']['max_length']} characters"
        case "too_long":
            return f"must contain at most {error['ctx']['max_length']} values"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            return (
                str(error["msg"]).replace("Input should", "must").replace("String should", "must")
            )
