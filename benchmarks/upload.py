"""UploadFile against a bare pipe from grpc.aio into aiohttp."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks.bench import Bench, child, in_turns
from benchmarks.child import Child
from benchmarks.measure import MIB, Peak, cpu_seconds, ratios, settle, spread
from benchmarks.report import Line, Target, mib, milliseconds, versus
from benchmarks.servers import TOKEN, Service

GIB = 1 << 30
ROUND_BYTES = 128 * MIB
CHUNK_BYTES = 256 * 1024  # the Python client's
MAX_BYTES = 2 * GIB
SPEED_TARGET = 0.8
MEMORY_TARGET_BYTES = 20 * MIB


def measure(bench: Bench) -> Iterator[Line]:
    """Upload in turns for the ratio; then once a whole gibibyte for the memory."""
    kind = bench.databases[0]  # an upload touches no database
    with ExitStack() as stack:
        floor = stack.enter_context(child("benchmarks.floor"))
        settings = {"UPLOAD_MAX_BYTES": str(MAX_BYTES)}
        service = stack.enter_context(bench.service(kind.new_url(), **settings).running())
        floor.ask("use", provider_url=bench.provider_url)
        sides = {"ours": _side(bench, service), "floor": _side(bench, floor)}
        for side in sides.values():
            side()
        found = in_turns(bench.rounds, sides)
        seconds, growth = _upload_whole(bench, service)
        bare_seconds, bare_growth = _upload_whole(bench, floor)
    speeds = [1 / s for s, _ in found["ours"]], [1 / s for s, _ in found["floor"]]
    size = bench.count(ROUND_BYTES)
    yield versus(
        "UploadFile: speed",
        f"{mib(size * spread(speeds[0]).median)}/s",
        f"{mib(size * spread(speeds[1]).median)}/s",
        ratios(*speeds),
        Target(SPEED_TARGET, "≥ 0.8 x", at_least=True),
    )
    costs = [cpu for _, cpu in found["ours"]], [cpu for _, cpu in found["floor"]]
    yield versus(
        "UploadFile: server CPU a GiB",
        milliseconds(spread(costs[0]).median * GIB / size),
        milliseconds(spread(costs[1]).median * GIB / size),
        ratios(*costs),
    )
    yield Line("UploadFile: 1 GiB", f"{seconds:.1f} s", f"{bare_seconds:.1f} s")
    yield Line(
        "UploadFile: memory growth in 1 GiB",
        mib(growth),
        mib(bare_growth),
        value=growth,
        target=Target(MEMORY_TARGET_BYTES, "≤ 20 MiB"),
    )


def _side(bench: Bench, server: Service | Child) -> Callable[[], tuple[float, float]]:
    def once() -> tuple[float, float]:
        settle(server.pid)
        before = cpu_seconds(server.pid)
        seconds = _upload(bench, server, bench.count(ROUND_BYTES))
        return seconds, cpu_seconds(server.pid) - before

    return once


def _upload_whole(bench: Bench, server: Service | Child) -> tuple[float, int]:
    """Upload a gibibyte; return the seconds, and by how much the server's memory grew."""
    peak = Peak(server.pid)
    with peak.sampled():
        seconds = _upload(bench, server, bench.count(GIB))
    return seconds, peak.growth_bytes


def _upload(bench: Bench, server: Service | Child, size_bytes: int) -> float:
    seconds: float = bench.load.ask(
        "upload",
        address=server.address,
        token=TOKEN,
        size_bytes=size_bytes,
        chunk_bytes=CHUNK_BYTES,
    )
    return seconds
