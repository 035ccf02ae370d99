"""Words on sample images: printable ASCII in five by seven dots, any other character as `?`."""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

Runs = dict[int, list[tuple[int, int]]]
"""By row, the pixels that are lit, each as its first one and the one after its last."""

COLUMNS, ROWS = 5, 7
CELL_DOTS, LINE_DOTS = 6, 9
MARGIN_PIXELS: Final = 16

# Five columns for each character, starting with the space; the lowest bit is the top dot.
GLYPHS: Final = bytes.fromhex(
    "0000000000 00005f0000 0007000700 147f147f14 242a7f2a12 2313086462 3649562050 0005030000"
    "001c224100 0041221c00 2a1c7f1c2a 08083e0808 0050300000 0808080808 0060600000 2010080402"
    "3e5149453e 00427f4000 4261514946 2141454b31 1814127f10 2745454539 3c4a494930 0171090503"
    "3649494936 064949291e 0036360000 0056360000 0814224100 1414141414 0041221408 0201510906"
    "324979413e 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e4149497a"
    "7f0808087f 00417f4100 2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e"
    "7f09090906 3e4151215e 7f09192946 4649494931 01017f0101 3f4040403f 1f2040201f 3f4038403f"
    "6314081463 0708700807 6151494543 007f414100 0204081020 0041417f00 0402010204 4040404040"
    "0001020400 2054545478 7f48444438 3844444420 384444487f 3854545418 087e090102 0c5252523e"
    "7f08040478 00447d4000 2040443d00 7f10284400 00417f4000 7c04180478 7c08040478 3844444438"
    "7c14141408 081414187c 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c 3c4030403c"
    "4428102844 0c5050503c 4464544c44 0008364100 00007f0000 0041360800 1008081008"
)
FIRST, LAST, UNKNOWN = " ", "~", "?"


def lit(texts: Sequence[tuple[str, int]], size: tuple[int, int]) -> Runs:
    """Return the dots of `texts`, each with its scale, one below the other as far as they fit."""
    width, height = size
    rows: Runs = {}
    top = MARGIN_PIXELS
    for line, scale in _lines(texts, width - 2 * MARGIN_PIXELS):
        if top + ROWS * scale > height - MARGIN_PIXELS:
            break
        for row in range(ROWS):
            runs = _runs(line, row, scale)
            rows |= {top + row * scale + again: runs for again in range(scale)}
        top += LINE_DOTS * scale
    return rows


def _lines(texts: Sequence[tuple[str, int]], width: int) -> Iterator[tuple[str, int]]:
    for text, scale in texts:
        for line in textwrap.wrap(text, max(1, width // (CELL_DOTS * scale))):
            yield line, scale


def _runs(line: str, row: int, scale: int) -> list[tuple[int, int]]:
    dots = [dot for character in line for dot in _dots(character, row)]
    runs, left = [], MARGIN_PIXELS
    for is_lit, group in groupby(dots):
        right = left + scale * len(list(group))
        if is_lit:
            runs.append((left, right))
        left = right
    return runs


def _dots(character: str, row: int) -> list[int]:
    shown = character if FIRST <= character <= LAST else UNKNOWN
    start = COLUMNS * (ord(shown) - ord(FIRST))
    return [*(column >> row & 1 for column in GLYPHS[start : start + COLUMNS]), 0]
