"""UploadFile against a bare pipe from grpc.aio into aiohttp."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.bench import Bench, child, in_turns
from benchmarks.child import Child
from benchmarks.measure import MIB, Peak, cpu_seconds, ratios, settle, spread
from benchmarks.report import Line, Target, mib, milliseconds, versus
from benchmarks.servers import TOKEN, Service

GIB = 1 << 30
PART_BYTES = 128 * MIB
CHUNK_BYTES = 256 * 1024  # the Python client's
MAX_BYTES = 2 * GIB
SPEED_TARGET = 0.8
MEMORY_TARGET_BYTES = 20 * MIB


@dataclass(frozen=True, slots=True)
class Sent:
    """What the uploads of a round came to on one side."""

    seconds: float
    cpu: float


def measure(bench: Bench) -> Iterator[Line]:
    """Upload in turns for the ratio; then once a whole gibibyte for the memory."""
    rounds = [_round(bench) for _ in range(bench.rounds)]
    ours, floor = [ours for ours, _ in rounds], [floor for _, floor in rounds]
    with _both(bench) as (service, bare):
        seconds, growth = _upload_whole(bench, service)
        bare_seconds, bare_growth = _upload_whole(bench, bare)
    speeds = [1 / sent.seconds for sent in ours], [1 / sent.seconds for sent in floor]
    size = 2 * bench.count(PART_BYTES)
    yield versus(
        "UploadFile: speed",
        f"{mib(size * spread(speeds[0]).median)}/s",
        f"{mib(size * spread(speeds[1]).median)}/s",
        ratios(*speeds),
        Target(SPEED_TARGET, "≥ 0.8 x", at_least=True),
    )
    costs = [sent.cpu for sent in ours], [sent.cpu for sent in floor]
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


@contextmanager
def _both(bench: Bench) -> Iterator[tuple[Service, Child]]:
    """Start the service and the floor, and let each have its first upload."""
    kind = bench.databases[0]  # an upload touches no database
    with ExitStack() as stack:
        floor = stack.enter_context(child("benchmarks.floor"))
        settings = {"UPLOAD_MAX_BYTES": str(MAX_BYTES)}
        service = stack.enter_context(bench.service(kind.new_url(), **settings).running())
        floor.ask("use", provider_url=bench.provider_url)
        for server in (service, floor):
            _upload(bench, server, bench.count(PART_BYTES))
        yield service, floor


def _round(bench: Bench) -> tuple[Sent, Sent]:
    """Upload to both, forwards and backwards.

    To new processes each time: whether the allocator of one gives freed chunks back to the system,
    and so pays for their pages again and again, is chance and then stays for its life.
    """
    with _both(bench) as (service, floor):
        parts = in_turns(2, {"ours": _side(bench, service), "floor": _side(bench, floor)})
    ours, bare = (
        Sent(sum(sent.seconds for sent in parts[name]), sum(sent.cpu for sent in parts[name]))
        for name in ("ours", "floor")
    )
    return ours, bare


def _side(bench: Bench, server: Service | Child) -> Callable[[], Sent]:
    def once() -> Sent:
        settle(server.pid)
        before = cpu_seconds(server.pid)
        seconds = _upload(bench, server, bench.count(PART_BYTES))
        return Sent(seconds, cpu_seconds(server.pid) - before)

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
