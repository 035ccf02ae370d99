"""Copies of results into an S3 server against a bare pipe, and what they cost other calls."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.bench import Bench, Slice, child, closed_loop, in_turns
from benchmarks.child import ROOT, Child
from benchmarks.databases import ended
from benchmarks.measure import MIB, Peak, settle
from benchmarks.media import NICE
from benchmarks.query import OUTSTANDING
from benchmarks.servers import TOKEN, Service, free_ports
from benchmarks.table import Result, Target, at_most, mib, milliseconds, versus

VERSITYGW = ROOT / ".tools/versitygw"
SIZE_MIB = 256
SPEED_TARGET = 0.8
PARALLEL = 4
SLICE_SECONDS = 2.0
BYTES_PER_SECOND = 10.0 * MIB  # of each of the parallel copies, 336 Mbit/s in all
LATENCY_TARGET = 2.0
MEMORY_TARGET_BYTES = 24 * MIB
TASKS = 1_000
WAIT_SECONDS = 300.0
KEYS = {
    "AWS_ACCESS_KEY_ID": "key-of-the-bench",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-bench",
    "AWS_REGION": "us-east-1",
}


def measure(bench: Bench) -> Iterator[Result]:
    """Measure copies with the first kind of database; nothing without an S3 server."""
    if not VERSITYGW.exists():
        print("copies are not measured: `make tools` builds their S3 server, versitygw")
        return
    with ExitStack() as stack:
        results_url = stack.enter_context(_bucket(bench))
        media = stack.enter_context(child("benchmarks.media"))
        pipe = stack.enter_context(child("benchmarks.pipe", results_url))
        media_url = media.hello["url"]
        service = bench.seeded(
            bench.databases[0],
            ended(range(TASKS), time.time()),
            RESULTS_URL=results_url,
            KIE_API_URL=media_url,
            KIE_UPLOAD_URL=media_url,
            PUBLIC_URL="",
            POLL_INTERVAL_SECONDS="0.1",
        )
        stack.enter_context(service.running())
        yield from _speed(bench, service, media, pipe)
        yield from _latency(bench, service, media, pipe)


def _speed(bench: Bench, service: Service, media: Child, pipe: Child) -> Iterator[Result]:
    size_mib = max(bench.count(SIZE_MIB), 8)
    media.ask("use", size_mib=size_mib)
    copies: dict[str, Callable[[], float]] = {
        "service": partial(_copy, bench, service, media),
        "baseline": lambda: float(pipe.ask("copy", url=f"{media.hello['url']}/bare/0.mp4")),
    }
    settle(service.pid)
    peak = Peak(service.pid)
    with peak.sampled():
        sides = in_turns(bench.rounds, copies).values()
    yield versus(
        "copy of a result: speed",
        ([size_mib * MIB / seconds for seconds in side] for side in sides),
        lambda size: f"{mib(size)}/s",
        Target(SPEED_TARGET, f"≥ {SPEED_TARGET} x", at_least=True),
    )
    yield Result(
        "copy of a result: memory growth",
        mib(peak.growth_bytes),
        value=peak.growth_bytes,
        target=Target(MEMORY_TARGET_BYTES, "≤ 24 MiB"),
    )


def _copy(bench: Bench, service: Service, media: Child) -> float:
    """Create a task; return the seconds from its download to SUCCESS, as a watcher sees it."""
    media.ask("downloads")
    _create_watched(bench, service)
    [(_, end)] = bench.load.ask("ends", group="copies", count=1, seconds=WAIT_SECONDS)
    bench.load.ask("close", group="copies")
    return float(end) - float(media.ask("downloads")[0])


def _create_watched(bench: Bench, service: Service) -> None:
    where = {"address": service.address, "token": TOKEN}
    [(task_id, _)] = bench.load.ask("create_tasks", **where, count=1, characters=20)
    bench.load.ask("open", group="copies", **where, task_ids=[task_id], streams=1)


def _latency(bench: Bench, service: Service, media: Child, pipe: Child) -> Iterator[Result]:
    """Measure QueryTask while results are copied by the service, by another process, by nobody.

    The S3 server and the provider share the cores with the load generator, which they would not in
    production. So the price of a copy is what changes if the service makes it, and not the pipe.
    """
    seconds = max(SLICE_SECONDS * bench.scale, 0.2)
    size_mib = int(3 * seconds * BYTES_PER_SECOND / MIB)
    media.ask("use", size_mib=size_mib, results=PARALLEL, bytes_per_second=BYTES_PER_SECOND)
    query = partial(_query, bench, service, seconds)
    query()  # warm up

    def copied_here() -> Slice:
        media.ask("downloads")
        _create_watched(bench, service)
        _wait_for_downloads(media)
        found = query()
        bench.load.ask("ends", group="copies", count=1, seconds=WAIT_SECONDS)
        bench.load.ask("close", group="copies")
        return found

    def copied_elsewhere() -> Slice:
        media.ask("downloads")
        urls = [f"{media.hello['url']}/bare/{number}.mp4" for number in range(PARALLEL)]
        pipe.ask("begin", urls=urls)
        _wait_for_downloads(media)
        found = query()
        pipe.ask("end")
        return found

    sides: dict[str, Callable[[], Slice]] = {
        "here": copied_here,
        "elsewhere": copied_elsewhere,
        "without": query,
    }
    found = in_turns(bench.rounds, sides)
    here, elsewhere, without = ([each.p99 for each in found[side]] for side in sides)
    what = f"QueryTask while {PARALLEL} results are copied: latency p99, 32 callers"
    yield versus(what, (here, elsewhere), milliseconds, at_most(LATENCY_TARGET))
    yield versus("the same, against no copies", (here, without), milliseconds)


def _wait_for_downloads(media: Child) -> None:
    begun = 0
    while begun < PARALLEL:
        time.sleep(0.05)
        begun += len(media.ask("downloads"))


def _query(bench: Bench, service: Service, seconds: float) -> Slice:
    return closed_loop(
        bench.load,
        "query",
        service.pid,
        address=service.address,
        token=TOKEN,
        outstanding=OUTSTANDING,
        seconds=seconds,
        pattern="uniform",
        first=0,
        count=TASKS,
    )


@contextmanager
def _bucket(bench: Bench) -> Iterator[str]:
    """Run an S3 server; yield the URL of a bucket, which the environment has the keys of."""
    [port] = free_ports(1)
    root = bench.folder / "s3"
    for name in ("buckets/results", "metadata"):
        (root / name).mkdir(parents=True)
    process = subprocess.Popen(
        [
            *("nice", "-n", str(NICE), VERSITYGW),
            *("--port", f"127.0.0.1:{port}", "--quiet"),
            *("--access", KEYS["AWS_ACCESS_KEY_ID"], "--secret", KEYS["AWS_SECRET_ACCESS_KEY"]),
            *("posix", "--sidecar", root / "metadata", root / "buckets"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ |= KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    try:
        while not _listens(port):
            time.sleep(0.05)
        yield "s3://results/bench"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
