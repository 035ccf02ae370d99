"""Sample results of the simulator: generated images, and one short video that is a file here.

Every result differs, so that a mixed-up download is noticed: the colours of an image depend on its
name, and it shows the model and the prompt; a video carries its name in a trailing `free` box,
which players skip.

The video was made with:

    ffmpeg -f lavfi -i "gradients=size=320x180:rate=24:duration=2:speed=0.02:n=4:seed=7:\
c0=0x1b2a49:c1=0x2a9d8f:c2=0xe9c46a:c3=0xe76f51" -c:v libx264 -profile:v main \
-pix_fmt yuv420p -crf 30 -preset veryslow -movflags +faststart -an providers/kie/simulator/media.mp4
"""

import random
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from providers.kie.simulator.lettering import lit

CONTENT_TYPES: Final = {"png": "image/png", "mp4": "video/mp4", "wav": "audio/wav"}

LONG_SIDE_PIXELS: Final = 512
SPAN: Final = 110
"""The largest change of a colour channel along one side of an image, of 255."""
MARGIN: Final = 15
"""The distance that a colour channel keeps from black and from white."""

SAMPLE: Final = "SAMPLE"
SAMPLE_SCALE, WORDS_SCALE = 6, 2
WHITE, BLACK = b"\xff" * 3, b"\x00" * 3

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
ROW_RAW: Final = b"\x00"
ROW_ADDED_TO_THE_ONE_ABOVE: Final = b"\x02"


def size_of(aspect_ratio: str) -> tuple[int, int]:
    """Return width and height in pixels for an aspect ratio; square unless it is `w:h`."""
    width, _, height = aspect_ratio.partition(":")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        return LONG_SIDE_PIXELS, LONG_SIDE_PIXELS
    longest = max(int(width), int(height))
    return LONG_SIDE_PIXELS * int(width) // longest, LONG_SIDE_PIXELS * int(height) // longest


def png(seed: str, size: tuple[int, int], words: Sequence[str] = ()) -> bytes:
    """Return an RGB image that shows SAMPLE and `words` on a gradient that depends on `seed`.

    The gradient is a sum of one along x and one along y, so after the first row each row is the
    one above plus a constant, which a PNG filter expresses. Only rows with dots are written out.
    """
    width, height = size
    channels = [_Channel(random.Random(f"{seed}/{c}")) for c in "rgb"]
    first = [bytes(channel.along_x(x, width) for x in range(width)) for channel in channels]
    dots = lit([(SAMPLE, SAMPLE_SCALE), *((text, WORDS_SCALE) for text in words)], size)
    rows = []
    for y in range(height):
        if y in dots or y - 1 in dots or y == 0:
            rows.append(ROW_RAW + _whole_row(channels, first, y, height, dots.get(y, [])))
        else:
            step = bytes(channel.step_along_y(y, height) for channel in channels)
            rows.append(ROW_ADDED_TO_THE_ONE_ABOVE + step * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        PNG_SIGNATURE
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + _chunk(b"IEND", b"")
    )


def _whole_row(
    channels: Sequence["_Channel"],
    first: Sequence[bytes],
    y: int,
    height: int,
    runs: Sequence[tuple[int, int]],
) -> bytes:
    """Return row `y` pixel by pixel, each run white between two black pixels."""
    row = bytearray(len(channels) * len(first[0]))
    for number, (channel, values) in enumerate(zip(channels, first, strict=True)):
        shift = channel.added_along_y(y, height)
        row[number :: len(channels)] = bytes(value + shift for value in values)
    for start, stop in runs:
        row[3 * (start - 1) : 3 * (stop + 1)] = BLACK + WHITE * (stop - start) + BLACK
    return bytes(row)


def mp4(name: str) -> bytes:
    """Return two seconds of H.264 video that any viewer opens, different for every `name`."""
    label = name.encode()
    return _video() + struct.pack(">I4s", 8 + len(label), b"free") + label


class _Channel:
    """One colour channel: a start value and its change along either side."""

    def __init__(self, rng: random.Random) -> None:
        self.span_x = rng.randint(-SPAN, SPAN)
        self.span_y = rng.randint(-SPAN, SPAN)
        lowest = MARGIN - min(0, self.span_x) - min(0, self.span_y)
        highest = 255 - MARGIN - max(0, self.span_x) - max(0, self.span_y)
        self.start = rng.randint(lowest, highest)

    def along_x(self, x: int, width: int) -> int:
        return self.start + self.span_x * x // width

    def added_along_y(self, y: int, height: int) -> int:
        return self.span_y * y // height

    def step_along_y(self, y: int, height: int) -> int:
        return (self.added_along_y(y, height) - self.added_along_y(y - 1, height)) % 256


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


@cache
def _video() -> bytes:
    return Path(__file__).with_suffix(".mp4").read_bytes()
