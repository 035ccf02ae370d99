"""Certificates that are replaced again and again while clients call and connect."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.simulator import Simulator
from tests.support.certificates import Authority, mounted_files, swap_links, write_in_place
from tests.support.harness import create_request, ended
from tests.support.processes import served, to
from tests.support.waiting import eventually

CONNECTING_CLIENTS = 6
CONNECTED_CLIENTS = 4
CALL_SECONDS = 60  # no call fails just because the machine is busy
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@dataclass
class Load:
    """Clients with certificates, which call until they are stopped. They retry nothing."""

    address: str
    credentials: grpc.ChannelCredentials
    stopped: bool = False
    calls: int = 0
    failures: list[str] = field(default_factory=list)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number in range(CONNECTING_CLIENTS):
                clients.create_task(self._connect_often(f"connecting-{number}"))
            for number in range(CONNECTED_CLIENTS):
                clients.create_task(self._stay_connected(f"connected-{number}"))

    async def _connect_often(self, name: str) -> None:
        for round_ in itertools.count():
            if self.stopped:
                return
            async with self._connected() as stub:
                await self._call(stub, f"{name}-{round_}")

    async def _stay_connected(self, name: str) -> None:
        async with self._connected() as stub:
            for round_ in itertools.count():
                if self.stopped:
                    return
                await self._call(stub, f"{name}-{round_}")

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        async with grpc.aio.secure_channel(
            self.address, self.credentials, OWN_CONNECTION
        ) as channel:
            yield GenerationServiceStub(channel)

    async def _call(self, stub: Any, request_id: str) -> None:
        """Create a task and watch it to its end."""
        try:
            request = create_request(request_id=request_id)
            created = (await stub.CreateTask(request, timeout=CALL_SECONDS)).task
            watch = stub.WatchTask(pb.WatchTaskRequest(task_id=created.id), timeout=CALL_SECONDS)
            last = [answer.task async for answer in watch][-1]
            assert ended(last)
        except grpc.aio.AioRpcError as error:
            self.failures.append(f"{request_id}: {error.code().name} {error.details()}")
        self.calls += 2


async def rotate(folder: Path, authorities: list[Authority], times: int, seconds: float) -> None:
    """Replace the certificate, and at times the authorities, both in place and at once."""
    ours, theirs = authorities
    both = folder.with_name("both.pem")
    both.write_bytes(ours.cert("ca").read_bytes() + theirs.cert("ca").read_bytes())
    for number in range(times):
        await asyncio.sleep(seconds)
        files = mounted_files(ours, f"server{number % 3}")
        if number % 4 > 1:
            files["ca.crt"] = both
        replace = swap_links if number % 2 else write_in_place
        await asyncio.to_thread(replace, folder, files)


async def rotate_under_load(
    tmp_path: Path, kie: Simulator, times: int, seconds: float
) -> tuple[int, int]:
    """Return the number of calls and of changes that the service has noticed."""
    ours = Authority.make(tmp_path / "ours", "server0", "server1", "server2", "client")
    theirs = Authority.make(tmp_path / "theirs")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    swap_links(mounted, mounted_files(ours, "server2"))
    variables = {
        "TLS_CERT_FILE": str(mounted / "tls.crt"),
        "TLS_KEY_FILE": str(mounted / "tls.key"),
        "TLS_CLIENT_CA_FILE": str(mounted / "ca.crt"),
        "KIE_CREATES_PER_10_SECONDS": "0",
        "KIE_STATUS_PER_SECOND": "0",
        "KIE_RUNNING_MAX": "0",
    }
    async with served(tmp_path, **variables, **to(kie.url)) as service:
        load = Load(service.address, ours.credentials((ours, "client")))
        running = asyncio.create_task(load.run())
        await eventually(lambda: load.calls > CONNECTING_CLIENTS + CONNECTED_CLIENTS)
        await rotate(mounted, [ours, theirs], times, seconds)
        load.stopped = True
        await running
        log = service.process.log
    assert load.failures == []
    return load.calls, sum(line["event"] == "certificates reloaded" for line in log)


async def test_no_call_fails_while_certificates_are_replaced(
    tmp_path: Path, kie: Simulator
) -> None:
    _, noticed = await rotate_under_load(tmp_path, kie, times=8, seconds=0.3)
    assert noticed


@pytest.mark.torture
async def test_no_call_fails_while_certificates_are_replaced_every_five_seconds(
    tmp_path: Path, kie: Simulator
) -> None:
    times = 24
    calls, noticed = await rotate_under_load(tmp_path, kie, times, seconds=5)
    print(f"{calls} calls, {noticed} changes noticed")  # noqa: T201
    assert noticed >= times
