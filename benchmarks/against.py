"""`python -m benchmarks.against --base COMMIT`: measure an old commit against this checkout.

Both services run at the same time, with the same interpreter and settings. Each has a database that
its own code created. The load generator and the provider are those of this checkout.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

from benchmarks import create, polls, query, upload, watches
from benchmarks.bench import Bench, Slice, in_turns, slices_in_turns
from benchmarks.command import FAILED, INTERRUPTED, MISUSED, add_options, new_bench, terminate
from benchmarks.databases import Kind, UnreachableError, kinds
from benchmarks.measure import cpu_seconds
from benchmarks.servers import ROOT, Service
from benchmarks.table import Result, at_most, microseconds, milliseconds, print_table, versus
from benchmarks.tasks import provider_id

OLD, NEW = "old", "new"
TARGET = at_most(1.05)
DEFAULT = ("query", "create")
WITHOUT_DATABASE = frozenset({"watches", "upload"})  # measured only with the first kind
LONG_SECONDS = 0.01
POLLED_TASKS = 1_000
POLLING_MAX_SECONDS = 60.0
COUNT_SECONDS = 0.05
SEED = Path(__file__).parent / "seed.py"
HEAD = ("server CPU per call", "new", "old", "new / old (quartiles)", "target", "")

Sides = Mapping[str, Bench]  # OLD and NEW
Costs = Mapping[str, Sequence[float]]  # the server's CPU seconds per call, of each round


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 1 if a target is missed."""
    given = _options(arguments)
    signal.signal(signal.SIGTERM, terminate)
    try:
        results = _measure(given)
    except UnreachableError as error:
        print(error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    if not results:
        print("nothing was measured: none of these databases is available", file=sys.stderr)
        return MISUSED
    return FAILED if any(result.verdict == "MISSED" for result in results) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("--base", required=True, type=_commit, help="the old commit")
    add_options(parser, MEASUREMENTS)
    return parser.parse_args(arguments)


def _commit(name: str) -> str:
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found.returncode:
        raise argparse.ArgumentTypeError(f"{name!r} is not a commit of this repository")
    return found.stdout.strip()


def _measure(given: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="against-")))
        databases = kinds(given.databases, folder, stack)
        if not databases:
            return results
        new = new_bench(given, folder, databases, stack)
        old = replace(new, root=stack.enter_context(_checked_out(given.base, folder / "base")))
        for name in given.measurements or DEFAULT:
            measured = [
                versus(what, (costs[NEW], costs[OLD]), _time, TARGET)
                for kind in (databases[:1] if name in WITHOUT_DATABASE else databases)
                for what, costs in MEASUREMENTS[name]({OLD: old, NEW: new}, kind)
            ]
            print_table([result.cells() for result in measured], HEAD)
            results += measured
    return results


@contextmanager
def _checked_out(commit: str, folder: Path) -> Iterator[Path]:
    _git("worktree", "add", "--quiet", "--detach", str(folder), commit).check_returncode()
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["git", *arguments],  # noqa: S607 - the system's git
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip


def _time(seconds: float) -> str:
    return milliseconds(seconds) if seconds >= LONG_SECONDS else microseconds(seconds)


# --- the measurements ---


def _query(sides: Sides, kind: Kind) -> Iterator[tuple[str, Costs]]:
    with ExitStack() as stack:
        states = {
            name: query.sides(bench, kind.name, stack.enter_context(_seeded(bench, kind).running()))
            for name, bench in sides.items()
        }
        for state in ("ended", "pending"):
            key = f"{kind.name} {state}"
            costs = _by_slices(sides, {name: states[name][key] for name in sides})
            yield f"QueryTask {state}, {kind.name}", costs


def _seeded(bench: Bench, kind: Kind) -> Service:
    sizes = (bench.count(query.PENDING), bench.count(query.TASKS))
    return _filled(bench, bench.service(kind.new_url()), *sizes)


def _filled(bench: Bench, service: Service, pending: int, tasks: int) -> Service:
    with service.running():
        pass  # it creates its tables
    subprocess.run(
        [sys.executable, "-P", SEED, service.database_url, str(pending), str(tasks)],
        env={"PYTHONPATH": str(bench.root)},
        check=True,
    )
    return service


def _create(sides: Sides, kind: Kind) -> Iterator[tuple[str, Costs]]:
    with ExitStack() as stack:
        found = {
            name: create.side(bench, stack.enter_context(bench.service(kind.new_url()).running()))
            for name, bench in sides.items()
        }
        yield from _with_database(f"CreateTask, {kind.name}", sides, kind, found)


def _polls(sides: Sides, kind: Kind) -> Iterator[tuple[str, Costs]]:
    """Let one side poll while the other is stopped: first nothing changes, then every task."""
    with ExitStack() as stack:
        services = {}
        for name, bench in sides.items():
            service = bench.service(kind.new_url(), **polls.DEFAULT_INTERVAL, PUBLIC_URL="")
            count = bench.count(POLLED_TASKS)
            services[name] = _filled(bench, service, count, count)
            stack.enter_context(services[name].running())
            time.sleep(polls.WARM_SECONDS * bench.scale)  # the first polls come all at once
            stack.callback(os.kill, services[name].pid, signal.SIGCONT)
            os.kill(services[name].pid, signal.SIGSTOP)
        for what, progress in (("without a change", None), ("with a change", cycle(range(1, 100)))):
            found = {
                name: partial(_polling, bench, services[name], progress)
                for name, bench in sides.items()
            }
            yield from _with_database(f"a poll {what}, {kind.name}", sides, kind, found)


def _polling(bench: Bench, service: Service, progress: Iterator[int] | None) -> Slice:
    """Let a stopped service make a poll of each task; with `progress` the task has advanced."""
    tasks = bench.count(POLLED_TASKS)
    if progress:
        ids = list(map(provider_id, range(tasks)))
        bench.provider.ask("advance", ids=ids, percent=next(progress))
    before, count = cpu_seconds(service.pid), 0
    deadline = time.monotonic() + POLLING_MAX_SECONDS
    os.kill(service.pid, signal.SIGCONT)
    while count < tasks and time.monotonic() < deadline:
        time.sleep(COUNT_SECONDS)
        count += len(bench.provider.ask("polls"))
    os.kill(service.pid, signal.SIGSTOP)
    return Slice(cpu_seconds(service.pid) - before, count)


def _with_database(
    what: str, sides: Sides, kind: Kind, found: Mapping[str, Callable[[], Slice]]
) -> Iterator[tuple[str, Costs]]:
    """Measure the CPU time of the service, and that of the service and its database."""

    def measure(side: Callable[[], Slice]) -> Slice:
        before = kind.cpu_seconds()
        measured = side()
        return replace(measured, database_cpu=kind.cpu_seconds() - before)

    measures = {name: partial(measure, side) for name, side in found.items()}
    slices = slices_in_turns(sides[NEW].rounds, measures)
    yield what, {name: [s.cpu_per_call for s in slices[name]] for name in sides}
    if kind.cpu_seconds():
        total = {name: [s.total_cpu_per_call for s in slices[name]] for name in sides}
        yield f"{what}: service and database", total


def _by_slices(sides: Sides, found: Mapping[str, Callable[[], Slice]]) -> Costs:
    slices = slices_in_turns(sides[NEW].rounds, found)
    return {name: [s.cpu_per_call for s in slices[name]] for name in sides}


def _watches(sides: Sides, kind: Kind) -> Iterator[tuple[str, Costs]]:
    """Open 10,000 streams on each side once, and push to them in turns."""
    with ExitStack() as stack:
        pushes = {
            name: _pushing(
                bench, stack.enter_context(bench.service(kind.new_url()).running()), name
            )
            for name, bench in sides.items()
        }
        yield "a pushed snapshot", _in_pairs(sides, pushes)
        for name, bench in sides.items():
            bench.load.ask("close", group=name)


def _pushing(bench: Bench, service: Service, group: str) -> Callable[[], float]:
    watched = watches.Watched(bench, service)
    opened = bench.load.ask(
        "open",
        group=group,
        address=service.address,
        token=service.token,
        task_ids=watched.task_ids,
        streams=bench.count(watches.STREAMS),
    )
    return partial(watches.cpu_per_push, bench, watched, opened["opened"], group)


def _upload(sides: Sides, kind: Kind) -> Iterator[tuple[str, Costs]]:
    del kind  # an upload does not use the database
    found = {name: partial(_upload_cost, bench) for name, bench in sides.items()}
    yield "UploadFile, 1 GiB", _in_pairs(sides, found)


def _upload_cost(bench: Bench) -> float:
    return upload.to_service(bench).cpu_per_gib


def _in_pairs(sides: Sides, found: Mapping[str, Callable[[], float]]) -> Costs:
    """Measure each side twice per round, A B B A, and return the means."""
    for measure in found.values():
        measure()  # warm up
    halves = in_turns(2 * sides[NEW].rounds, found)
    return {
        name: [(a + b) / 2 for a, b in zip(costs[::2], costs[1::2], strict=True)]
        for name, costs in halves.items()
    }


MEASUREMENTS: Mapping[str, Callable[[Sides, Kind], Iterator[tuple[str, Costs]]]] = {
    "query": _query,
    "create": _create,
    "polls": _polls,
    "watches": _watches,
    "upload": _upload,
}

if __name__ == "__main__":
    sys.exit(main())
