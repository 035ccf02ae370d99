"""The names of enum values without their prefixes."""

from typing import Protocol

from google.protobuf.descriptor import EnumDescriptor


class ProtoEnum(Protocol):
    """An enum of the generated code; its type at run time differs from the one in its stubs."""

    DESCRIPTOR: EnumDescriptor


def short_names(enum: ProtoEnum) -> dict[int, str]:
    """Return the name of each value without the enum's prefix, by number; 0 is `UNSPECIFIED`."""
    prefix = enum.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix) for value in enum.DESCRIPTOR.values}


def short_name(enum: ProtoEnum, number: int) -> str:
    """Return the name of a value, or its number if only a newer version of the proto defines it."""
    return short_names(enum).get(number, str(number))
