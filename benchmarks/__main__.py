"""`python -m benchmarks`: measure the service and the baseline, and keep it in results.json."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks import changes, copies, create, curves, polls, query, start, upload, watches
from benchmarks.bench import Bench
from benchmarks.command import FAILED, INTERRUPTED, MISUSED, add_options, new_bench, terminate
from benchmarks.databases import NAMES, UnreachableError, kinds
from benchmarks.results import Results
from benchmarks.table import CURVE_HEAD, HEAD, Curve, Result, print_table

MEASUREMENTS: Mapping[str, Callable[[Bench], Iterator[Result]]] = {
    "query": query.measure,
    "create": create.measure,
    "watches": watches.measure,
    "changes": changes.measure,
    "polls": polls.measure,
    "upload": upload.measure,
    "copies": copies.measure,
    "start": start.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0, whether or not a target is missed."""
    given = _options(arguments)
    signal.signal(signal.SIGTERM, terminate)
    try:
        return _run(given)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(given: argparse.Namespace) -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        try:
            databases = kinds(given.databases, folder, stack)
        except UnreachableError as error:
            print(error, file=sys.stderr)
            return FAILED
        if not databases:
            print("nothing was measured: none of these databases is available", file=sys.stderr)
            return MISUSED
        _measure(given, new_bench(given, folder, databases, stack))
    return 0


def _measure(given: argparse.Namespace, bench: Bench) -> None:
    if given.quick:
        print("quick: sizes are a fiftieth of those in the table, and nothing is written")
    measured = {kind.name for kind in bench.databases}
    results = Results(
        ", ".join(kind.server for kind in bench.databases),
        [name for name in NAMES if name not in measured],
    )

    def show(name: str, measure: Callable[[Bench], Iterator[Result | Curve]]) -> None:
        started = time.monotonic()
        found = list(measure(bench))
        print(f"\n{name} ({time.monotonic() - started:.0f} s)\n")
        print_table([each.cells() for each in found], CURVE_HEAD if name == "curves" else HEAD)
        if not given.quick:  # written after each measurement, in case a later one fails
            results.put(name, found)

    for name in given.measurements or ([] if given.curves else MEASUREMENTS):
        show(name, MEASUREMENTS[name])
    if given.curves:
        show("curves", curves.measure)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_options(parser, MEASUREMENTS)
    parser.add_argument("--curves", action="store_true", help="how cost grows; takes many minutes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
