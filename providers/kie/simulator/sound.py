"""Sample sounds: two notes, which differ by name, as a WAV file that any player opens."""

import math
import struct
import zlib
from array import array
from functools import cache
from typing import Final

SAMPLES_PER_SECOND: Final = 16_000
NOTE_SECONDS: Final = 0.4
SECONDS: Final = 2 * NOTE_SECONDS
LOWEST_HERTZ: Final = 262
"""The first note is this one, or one of the eleven half-tones above it."""
HALF_TONES, FIFTH = 12, 7
LOUDNESS: Final = 12_000
"""The amplitude of a note at its start, of 32767."""


def wav(name: str) -> bytes:
    """Return a short sound as 16-bit mono WAV, different for every `name`.

    The name is also its title, in a chunk that players show or skip: two names may share notes.
    """
    title = name.encode() + b"\0" * (2 - len(name.encode()) % 2)
    info = b"INFO" + _chunk(b"INAM", title)
    samples = _notes(zlib.crc32(name.encode()) % HALF_TONES)
    encoding = struct.pack("<HHIIHH", 1, 1, SAMPLES_PER_SECOND, 2 * SAMPLES_PER_SECOND, 2, 16)
    content = b"WAVE" + _chunk(b"fmt ", encoding) + _chunk(b"LIST", info) + _chunk(b"data", samples)
    return _chunk(b"RIFF", content)


@cache
def _notes(half_tone: int) -> bytes:
    """Return the samples of a note and of its fifth, each fading like a plucked string."""
    count = int(SAMPLES_PER_SECOND * NOTE_SECONDS)
    samples = array("h")
    for step in (half_tone, half_tone + FIFTH):
        per_sample = 2 * math.pi * LOWEST_HERTZ * 2 ** (step / HALF_TONES) / SAMPLES_PER_SECOND
        samples.extend(
            int(LOUDNESS * (1 - at / count) ** 2 * math.sin(per_sample * at)) for at in range(count)
        )
    return struct.pack(f"<{len(samples)}h", *samples)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content
