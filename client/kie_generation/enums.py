"""The names of enum values as people read and type them."""

from typing import Protocol

from google.protobuf.descriptor import EnumDescriptor


class ProtoEnum(Protocol):
    """An enum of the generated code, which its type stubs and its run time type differently."""

    DESCRIPTOR: EnumDescriptor


def short_names(enum: ProtoEnum) -> dict[int, str]:
    """Returns each value's name without the enum's prefix, by its number; 0 is `UNSPECIFIED`."""
    prefix = enum.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix) for value in enum.DESCRIPTOR.values}


def short_name(enum: ProtoEnum, number: int) -> str:
    """Returns a value's name, or its number: a service newer than this client knows more values."""
    return short_names(enum).get(number, str(number))
