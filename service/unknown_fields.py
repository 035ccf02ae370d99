"""Fields of a request that this server does not know.

Protobuf keeps them, but nothing reads them: a parameter that the caller pays for would be ignored
silently. Protobuf's UnknownFieldSet takes 0.2 s for a mebibyte of them, on the event loop. So their
bytes are read here, and only as far as they are reported.
"""

from collections.abc import Iterator
from itertools import islice

from google.protobuf.message import Message

from providers.base import Violation
from service.errors import VIOLATIONS_MAX

TAGS_MAX = 1_000  # read in one message, including those in unknown groups
VARINT, FIXED64, LENGTH_DELIMITED, GROUP_START, GROUP_END, FIXED32 = range(6)
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


def unknown_fields(message: Message) -> list[Violation]:
    """Return the first unknown fields of a message and of the messages inside it."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() == message.ByteSize():
        return []
    return list(islice(_violations(message, ""), VIOLATIONS_MAX))


def _violations(message: Message, path: str) -> Iterator[Violation]:
    words = "this server is older than the caller's contract, or the number is wrong"
    for number in dict.fromkeys(_numbers(_unknown_bytes(message))):
        yield Violation(path or message.DESCRIPTOR.name, f"has the unknown field {number}: {words}")
    for field, value in message.ListFields():
        if field.message_type and not field.is_repeated:
            yield from _violations(value, f"{path}.{field.name}".removeprefix("."))
        elif field.message_type and _hides_unknown_fields(message):
            yield Violation(path, f"has unknown fields inside its values: {words}")


def _hides_unknown_fields(message: Message) -> bool:
    """Return whether the values of a Struct have unknown fields, not the message itself."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    return known.ByteSize() != message.ByteSize() - len(_unknown_bytes(message))


def _unknown_bytes(message: Message) -> bytes:
    """Return the bytes of a message without its known fields."""
    rest = type(message)()
    rest.CopyFrom(message)
    for field, _ in message.ListFields():
        rest.ClearField(field.name)
    return rest.SerializeToString()


def _numbers(data: bytes) -> Iterator[int]:
    """Yield the numbers of the first fields of valid wire bytes."""
    at = depth = 0
    for _ in range(TAGS_MAX):
        if at >= len(data):
            return
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if depth == 0:
            yield number
        depth += (wire_type == GROUP_START) - (wire_type == GROUP_END)
        if wire_type in {VARINT, LENGTH_DELIMITED}:
            value, at = _varint(data, at)
            at += value if wire_type == LENGTH_DELIMITED else 0
        at += FIXED_BYTES.get(wire_type, 0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends: seven bits a byte, the last without the eighth."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004 - the eighth bit
            return value, at
