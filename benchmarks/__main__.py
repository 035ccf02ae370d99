"""`python -m benchmarks`: measure the service beside the floor, print a table, write results.md."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import create, curves, polls, query, start, upload, watches
from benchmarks.bench import Bench, child
from benchmarks.databases import NAMES, kinds
from benchmarks.report import CURVE_HEAD, Line, Results, curve_rows, print_table

MEASUREMENTS: Mapping[str, Callable[[Bench], Iterator[Line]]] = {
    "query": query.measure,
    "create": create.measure,
    "watches": watches.measure,
    "polls": polls.measure,
    "upload": upload.measure,
    "start": start.measure,
}
ROUNDS = 15
QUICK_ROUNDS = 2
QUICK_SCALE = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0, whether or not a target is missed."""
    given = _options(arguments)
    with ExitStack() as stack:
        bench = _bench(given, stack)
        measured = {kind.name for kind in bench.databases}
        results = Results([name for name in NAMES if name not in measured])
        if given.quick:
            print("quick: sizes are a fiftieth of what the table says")
        chosen = given.measurements or ([] if given.curves else MEASUREMENTS)
        for name in chosen:
            started = time.monotonic()
            lines = list(MEASUREMENTS[name](bench))
            print(f"\n{name} ({time.monotonic() - started:.0f} s)\n")
            print_table([line.cells() for line in lines])
            results.put_lines(name, lines)
            _write(results, given)
        if given.curves:
            found = list(curves.measure(bench))
            print_table(curve_rows(found), CURVE_HEAD)
            results.put_curves(found)
            _write(results, given)
    return 0


def _write(results: Results, given: argparse.Namespace) -> None:
    """Write after each measurement, so that what fails later takes nothing with it."""
    if not given.quick:
        results.write()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("measurements", nargs="*", choices=[*MEASUREMENTS, []], default=[])
    parser.add_argument("--rounds", type=int, help=f"how often each side is measured ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="only see that all of it runs")
    parser.add_argument("--curves", action="store_true", help="how cost grows; many minutes")
    parser.add_argument("--databases", default="sqlite,postgres", help="which kinds (both)")
    return parser.parse_args(arguments)


def _bench(given: argparse.Namespace, stack: ExitStack) -> Bench:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
    return Bench(
        folder=folder,
        databases=kinds(given.databases.split(","), folder, stack),
        rounds=given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS),
        scale=QUICK_SCALE if given.quick else 1.0,
        load=stack.enter_context(child("benchmarks.load")),
        provider=stack.enter_context(child("benchmarks.provider")),
    )


if __name__ == "__main__":
    sys.exit(main())
