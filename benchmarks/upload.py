"""UploadFile of 1 GiB against a bare pipe from grpc.aio into aiohttp."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.bench import Bench, baseline_server, in_turns
from benchmarks.child import Child
from benchmarks.measure import MIB, Peak, cpu_seconds, settle
from benchmarks.servers import TOKEN, Service
from benchmarks.table import Result, Target, mib, milliseconds, versus

GIB = 1 << 30
CHUNK_BYTES = 256 * 1024  # as in the Python client
MAX_BYTES = 2 * GIB
SPEED_TARGET = 0.8
MEMORY_TARGET_BYTES = 20 * MIB


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of one upload."""

    bytes_per_second: float
    cpu_per_gib: float
    growth_bytes: int


def measure(bench: Bench) -> Iterator[Result]:
    """Upload to both in turns."""
    uploads = {"service": partial(to_service, bench), "baseline": partial(_to_baseline, bench)}
    sides = in_turns(bench.rounds, uploads).values()
    yield versus(
        "UploadFile: speed",
        ([sent.bytes_per_second for sent in side] for side in sides),
        lambda size: f"{mib(size)}/s",
        Target(SPEED_TARGET, f"≥ {SPEED_TARGET} x", at_least=True),
    )
    costs = ([sent.cpu_per_gib for sent in side] for side in sides)
    yield versus("UploadFile: server CPU per GiB", costs, milliseconds)
    growth, baseline_growth = (max(sent.growth_bytes for sent in side) for side in sides)
    yield Result(
        "UploadFile: memory growth in 1 GiB",
        mib(growth),
        mib(baseline_growth),
        value=growth,
        target=Target(MEMORY_TARGET_BYTES, "≤ 20 MiB"),
    )


def to_service(bench: Bench) -> Sent:
    """Upload to a new service."""
    url = bench.databases[0].new_url()  # an upload does not use the database
    with bench.service(url, UPLOAD_MAX_BYTES=str(MAX_BYTES)).running() as service:
        return _upload(bench, service)


def _to_baseline(bench: Bench) -> Sent:
    with baseline_server() as baseline:
        baseline.ask("use", provider_url=bench.provider_url)
        return _upload(bench, baseline)


def _upload(bench: Bench, server: Service | Child) -> Sent:
    """Upload a file to a process that has done nothing else.

    Each upload gets a new process: whether its allocator returns freed memory to the system, and
    then pays for the same pages again and again, is decided by chance and never changes.
    """
    size = bench.count(GIB)
    settle(server.pid)
    before = cpu_seconds(server.pid)
    peak = Peak(server.pid)
    with peak.sampled():
        seconds = bench.load.ask(
            "upload",
            address=server.address,
            token=TOKEN,
            size_bytes=size,
            chunk_bytes=CHUNK_BYTES,
        )
    cpu = cpu_seconds(server.pid) - before
    return Sent(size / seconds, cpu * GIB / size, peak.growth_bytes)
