"""The programs that the documentation shows."""

import re

from tests.support.paths import ROOT


def example_in(page: str, first_line: str = "import asyncio") -> str:
    """Return the first Python program of a page that begins with a line."""
    program = rf"```python\n({re.escape(first_line)}.*?)```"
    found = re.search(program, (ROOT / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]
