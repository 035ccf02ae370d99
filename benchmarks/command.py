"""What the commands have in common: options, exit codes, and the processes of a run."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.bench import Bench, child
from benchmarks.databases import Kind

DATABASES = ("sqlite", "postgres")
ROUNDS = 15
ROUNDS_MIN = 2  # one in each order
QUICK_SCALE = 0.02
FAILED, MISUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143  # exit codes


def add_options(parser: argparse.ArgumentParser, measurements: Iterable[str]) -> None:
    """Add what to measure, how often, and on which databases."""
    add = parser.add_argument
    add("measurements", nargs="*", type=_one_of(measurements), help=", ".join(measurements))
    add("--rounds", type=_rounds, help=f"how often each side is measured ({ROUNDS})")
    add("--quick", action="store_true", help="only check that everything runs")
    add(
        "--databases",
        type=_databases,
        default=",".join(DATABASES),
        help="which ones: sqlite, postgres (both)",
    )


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    def chosen(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(names)}")
        return name

    return chosen


def _databases(text: str) -> list[str]:
    return [_one_of(DATABASES)(name) for name in text.split(",")]


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < ROUNDS_MIN:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {ROUNDS_MIN}")
    return int(text)


def new_bench(
    given: argparse.Namespace, folder: Path, databases: Sequence[Kind], stack: ExitStack
) -> Bench:
    """Start the load generator and the provider."""
    return Bench(
        folder=folder,
        databases=databases,
        rounds=given.rounds or (ROUNDS_MIN if given.quick else ROUNDS),
        scale=QUICK_SCALE if given.quick else 1.0,
        load=stack.enter_context(child("benchmarks.load")),
        provider=stack.enter_context(child("benchmarks.provider")),
    )


def terminate(number: int, frame: object) -> None:
    """Exit on SIGTERM as after an error: stop the processes, and remove the folder."""
    del number, frame
    sys.exit(TERMINATED)
