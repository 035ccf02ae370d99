"""UploadFile against a bare pipe from grpc.aio into aiohttp: a gibibyte at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.bench import Bench, floor_server, in_turns
from benchmarks.child import Child
from benchmarks.measure import MIB, Peak, cpu_seconds, ratios, settle, spread
from benchmarks.results import Line, Target, mib, milliseconds, versus
from benchmarks.servers import TOKEN, Service

GIB = 1 << 30
CHUNK_BYTES = 256 * 1024  # the Python client's
MAX_BYTES = 2 * GIB
SPEED_TARGET = 0.8
MEMORY_TARGET_BYTES = 20 * MIB


@dataclass(frozen=True, slots=True)
class Sent:
    """What an upload came to on one side."""

    bytes_a_second: float
    cpu_a_gib: float
    growth_bytes: int


def measure(bench: Bench) -> Iterator[Line]:
    """Upload to both in turns."""
    found = in_turns(bench.rounds, {"ours": partial(ours, bench), "floor": partial(_floor, bench)})
    sent, floor = found["ours"], found["floor"]
    speeds = [s.bytes_a_second for s in sent], [s.bytes_a_second for s in floor]
    yield versus(
        "UploadFile: speed",
        f"{mib(spread(speeds[0]).median)}/s",
        f"{mib(spread(speeds[1]).median)}/s",
        ratios(*speeds),
        Target(SPEED_TARGET, "≥ 0.8 x", at_least=True),
    )
    costs = [s.cpu_a_gib for s in sent], [s.cpu_a_gib for s in floor]
    yield versus(
        "UploadFile: server CPU a GiB",
        milliseconds(spread(costs[0]).median),
        milliseconds(spread(costs[1]).median),
        ratios(*costs),
    )
    growth = max(s.growth_bytes for s in sent)
    yield Line(
        "UploadFile: memory growth in 1 GiB",
        mib(growth),
        mib(max(s.growth_bytes for s in floor)),
        value=growth,
        target=Target(MEMORY_TARGET_BYTES, "≤ 20 MiB"),
    )


def ours(bench: Bench) -> Sent:
    """Upload to a service."""
    url = bench.databases[0].new_url()  # an upload touches no database
    with bench.service(url, UPLOAD_MAX_BYTES=str(MAX_BYTES)).running() as service:
        return _upload(bench, service)


def _floor(bench: Bench) -> Sent:
    with floor_server() as floor:
        floor.ask("use", provider_url=bench.provider_url)
        return _upload(bench, floor)


def _upload(bench: Bench, server: Service | Child) -> Sent:
    """Upload a gibibyte to a process that has done nothing yet.

    To a new one each time: whether the allocator of one gives freed chunks back to the system, and
    so pays for their pages again and again, is chance and then stays for its life.
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
