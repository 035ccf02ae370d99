"""Record docs/demo.svg from a run of the demo: `make demo-picture`.

The picture shows the moment at which half of the tasks have ended, and the end.
"""

import asyncio
import io
import re
from pathlib import Path

from rich.console import Console

from examples.demo.show import RESULTS, TITLE, progress_on, run_tasks, service
from kie_generation import GenerationClient

PICTURE = Path(__file__).parent.parent.parent / "docs/demo.svg"
COLUMNS = 84
WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # a page like GitHub's does not load it


async def record() -> Console:
    """Run the demo; return the console that recorded it."""
    # Not a terminal, so that rich records the lines and not their updates.
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    async with service() as address, GenerationClient(address) as client:
        progress = progress_on(console)
        runs = run_tasks(client, progress)
        console.print(TITLE)
        for ended in asyncio.as_completed(runs[: len(runs) // 2]):
            await ended
        console.print(progress, "", sep="\n")
        await asyncio.gather(*runs)
        console.print(progress, f"The results are in {RESULTS}/.", sep="\n")
    return console


if __name__ == "__main__":
    picture = asyncio.run(record()).export_svg(title="make demo", unique_id="demo")
    PICTURE.write_text(WEB_FONT.sub("", picture))
