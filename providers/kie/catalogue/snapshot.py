"""The entries of the bundled snapshot of Kie's catalogue.

`snapshot.json` has one model per line. Its `fields` have the bounds of JSON Schema under the same
names; `items` is the type of an array's items, and `format` applies to them. `one_of` lists groups
of fields of which exactly one is needed. `partial` models have fields that are missing here, and
the fields in `doubts` are described differently by different sources.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("snapshot.json")


@cache
def entries() -> tuple[Mapping[str, Any], ...]:
    """Return the entries; the file is read once."""
    return tuple(json.loads(FILE.read_text(encoding="utf-8"))["models"])
