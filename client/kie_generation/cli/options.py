"""The command line's names for the fields of a request."""

import re

from google.protobuf.descriptor import Descriptor

from kie_generation.errors import Violation
from kie_generation.generated.generation.v1.generation_pb2 import KieParams

_OPTIONS = {
    "created_after": "--since",
    "file_urls": "--file-url",
    "image_urls": "--image-url",
    "metadata.content_type": "--content-type",
    "metadata.file_name": "--name",
    "metadata.sha256": "FILE",
    "metadata.size_bytes": "FILE",
    "metadata.upload_path": "--upload-path",
    "page_size": "--limit",
    "prompt": "PROMPT",
    "task_id": "ID",
}
_TOP_LEVEL = ("model", "prompt_id", "request_id", "status")
_MARKET = "provider_params.kie.market."
_MODEL_FIELD = re.compile(r"provider_params\.kie\.(\w+)\.(\w+)(?:\[(\d+)\])?")


def option_of(field: str) -> str:
    """Return the option for a field of a model's message."""
    return _OPTIONS.get(field) or "--" + field.replace("_", "-")


def value_name(enum_value: str) -> str:
    """Return the command line's form of an enum value's name: `FIRST_FRAME` is `first-frame`."""
    return enum_value.lower().replace("_", "-")


def in_words_of_options(violation: Violation) -> Violation:
    """Return a violation that names options and their values instead of fields and enums."""
    if violation.field.startswith(_MARKET):
        return Violation(
            _market_option(violation.field.removeprefix(_MARKET)), violation.description
        )
    if found := _MODEL_FIELD.fullmatch(violation.field):
        model, field, index = found.groups()
        number = f" (number {int(index) + 1})" if index else ""
        description = _translated(violation.description, _message(model))
        return Violation(option_of(field) + number, description)
    if violation.field in _OPTIONS or violation.field in _TOP_LEVEL:
        return Violation(option_of(violation.field), violation.description)
    return violation


def is_market_input(field: str) -> bool:
    """Return whether a path leads into the input of a market model."""
    return field.startswith(f"{_MARKET}input")


def _market_option(field: str) -> str:
    """Return what was given on the command line for a field of MarketParams."""
    if field == "model":
        return "MODEL"
    path = field.removeprefix("input").removeprefix(".")
    return f"-i {path}" if path else "-i"


def _message(model: str) -> Descriptor | None:
    member = KieParams.DESCRIPTOR.fields_by_name.get(model)
    return None if member is None else member.message_type


def _translated(text: str, message: Descriptor | None) -> str:
    """Return a text with the command line's names for fields and enum values."""
    if message is None:
        return text
    names: dict[str, str] = {}
    for enum in message.enum_types:
        prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
        names |= {name: value_name(name.removeprefix(prefix)) for name in enum.values_by_name}
    # Only names with an underscore: others, such as `size`, may be ordinary words of the text.
    names |= {field: option_of(field) for field in message.fields_by_name if "_" in field}
    return re.sub(r"\w+", lambda word: names.get(word.group(), word.group()), text)
