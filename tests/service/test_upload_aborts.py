"""Uploads that end early: clients that go away, and clients and providers that stall."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from aiohttp import web

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub
from providers.kie.http import Timeouts
from providers.kie.simulator import Simulator
from service.bounds import Bounds, Grace
from service.uploads import UploadPace
from tests.support.harness import DIRECT, Serve, Service, upload_messages
from tests.support.paths import ROOT
from tests.support.refusals import refused
from tests.support.uploading import (
    MIB,
    STREAM,
    UploadHost,
    at_the_end_no_file,
    begun,
    chunk,
    download,
    endless,
    metadata,
    nothing_left,
    on_sqlite,
    send,
    upload,
    warm,
)

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@on_sqlite
@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_a_client_that_cancels_midway_leaves_no_file_and_nothing_open(
    service: Service, size_bytes: int | None
) -> None:
    await warm(service)
    rounds, at_once = 10, 10
    async with nothing_left():
        for done in range(rounds):
            sent = [asyncio.Event() for _ in range(at_once)]
            calls = [service.stub.UploadFile(endless(event, size_bytes)) for event in sent]
            await begun(service, (done + 1) * at_once)
            await asyncio.gather(*(event.wait() for event in sent))
            for call in calls:
                call.cancel()
            for call in calls:
                with pytest.raises(asyncio.CancelledError):
                    await call
    await at_the_end_no_file(service)
    assert service.kie.stats["uploads"]["aborted"] == rounds * at_once


@on_sqlite
@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_a_client_whose_deadline_passes_midway_leaves_no_file_and_nothing_open(
    service: Service, size_bytes: int | None
) -> None:
    await warm(service)
    async with nothing_left():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await send(service, endless(asyncio.Event(), size_bytes), timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await at_the_end_no_file(service)


@on_sqlite
@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_a_client_that_closes_its_channel_midway_leaves_no_file_and_nothing_open(
    service: Service, size_bytes: int | None
) -> None:
    await warm(service)
    async with nothing_left():
        channel = grpc.aio.insecure_channel(service.address, options=DIRECT)
        stub: Any = GenerationServiceStub(channel)
        sent = asyncio.Event()
        call = stub.UploadFile(endless(sent, size_bytes))
        await begun(service)
        await sent.wait()
        await channel.close()
        with pytest.raises(asyncio.CancelledError):
            await call
    await at_the_end_no_file(service)


CLIENT = """
import sys, time, grpc
from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2_grpc import GenerationServiceStub

def messages(size_bytes):
    yield pb.UploadFileRequest(metadata=pb.UploadMetadata(file_name="a.png", size_bytes=size_bytes))
    yield pb.UploadFileRequest(chunk=b"x" * 30_000)
    print("sent", flush=True)
    time.sleep(60)

size_bytes = int(sys.argv[2]) or None
GenerationServiceStub(grpc.insecure_channel(sys.argv[1])).UploadFile(messages(size_bytes))
"""


@on_sqlite
@pytest.mark.parametrize("size_bytes", [0, 90_000])
async def test_a_client_that_is_killed_midway_leaves_no_file_and_nothing_open(
    service: Service, size_bytes: int
) -> None:
    await warm(service)
    async with nothing_left():
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CLIENT,
            service.address,
            str(size_bytes),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        assert client.stdout is not None
        async with asyncio.timeout(20):
            assert await client.stdout.readline() == b"sent\n"
        await begun(service)
        client.kill()
        await client.communicate()
    await at_the_end_no_file(service)


async def test_a_server_that_shuts_down_aborts_an_unfinished_upload(
    serve: Serve,
) -> None:
    sent = asyncio.Event()
    async with serve(bounds=Bounds(grace=Grace(calls_seconds=0.05))) as service:
        call = service.stub.UploadFile(endless(sent))
        await begun(service)
        await sent.wait()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
    await at_the_end_no_file(service)


def stalling(seconds: float) -> Bounds:
    """Return bounds that end an upload in which nothing moves for that long."""
    return Bounds(kie=Timeouts(upload_stall_seconds=seconds))


@on_sqlite
@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_an_upload_of_a_stalled_client_is_aborted(
    serve: Serve, size_bytes: int | None
) -> None:
    async with serve(bounds=stalling(0.5)) as service:
        await warm(service)
        async with nothing_left():
            error = await refused(send(service, endless(asyncio.Event(), size_bytes)))
            assert (error.code, error.reason) == (INVALID, "UPLOAD_MISMATCH")
            assert error.message == "the upload was aborted: no bytes arrived for 0.5 s"
        await at_the_end_no_file(service)


async def test_an_upload_without_metadata_is_aborted(serve: Serve) -> None:
    bounds = Bounds(uploads=UploadPace(metadata_seconds=0.1))

    async def nothing() -> AsyncIterator[pb.UploadFileRequest]:
        await asyncio.Event().wait()
        yield metadata()

    async with serve(bounds=bounds) as service:
        error = await refused(send(service, nothing()))
    assert (error.reason, error.message) == ("UPLOAD_MISMATCH", "no metadata arrived within 0.1 s")


async def test_a_slow_upload_continues_while_bytes_arrive(
    serve: Serve,
) -> None:
    async def slow() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata(size_bytes=6)
        for _ in range(6):
            await asyncio.sleep(0.2)  # it is the client's pace, and no wait for anything
            yield chunk(b"x")

    async with serve(bounds=stalling(1)) as service:
        assert (await send(service, slow())).size_bytes == 6


async def test_an_upload_is_aborted_if_the_provider_does_not_read(
    serve: Serve, host: UploadHost
) -> None:
    host.handle = host.hold
    taken = 0

    async def without_end() -> AsyncIterator[pb.UploadFileRequest]:
        nonlocal taken
        yield metadata()
        while True:
            yield chunk(bytes(MIB))
            taken += MIB

    async with serve(bounds=stalling(1), kie_upload_url=host.url) as service:
        error = await refused(send(service, without_end()))
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert error.message == "the provider cannot be reached: TimeoutError"
    assert taken < 32 * MIB, "what sockets and windows hold"


async def test_an_upload_is_aborted_if_the_provider_does_not_answer(
    serve: Serve, host: UploadHost
) -> None:
    host.handle = host.read_and_hold
    async with serve(bounds=stalling(0.5), kie_upload_url=host.url) as service:
        error = await refused(send(service, upload_messages(b"abc", size_bytes=3)))
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")


async def test_a_late_client_does_not_shorten_the_providers_time_to_answer(
    serve: Serve, host: UploadHost
) -> None:
    async def ends_late() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata(size_bytes=3)
        yield chunk(b"abc")
        await asyncio.sleep(0.7)  # it is the client's pace, and no wait for anything

    async def answers_late(request: web.Request) -> web.StreamResponse:
        await request.read()
        await asyncio.sleep(0.7)  # and this the provider's
        return host.stored()

    host.handle = answers_late
    async with serve(bounds=stalling(1), kie_upload_url=host.url) as service:
        assert (await send(service, ends_late())).size_bytes == 3


async def test_a_provider_that_refuses_early_is_reported_while_the_client_still_sends(
    hosted: Service, host: UploadHost
) -> None:
    host.handle = host.refuse

    async def without_end() -> AsyncIterator[pb.UploadFileRequest]:
        yield metadata()
        while True:
            yield chunk(bytes(65_536))

    error = await refused(send(hosted, without_end()))
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (error.reason, error.message) == ("PROVIDER_UNAUTHORIZED", "no key")


async def test_a_provider_that_refuses_early_is_reported_while_the_client_is_silent(
    hosted: Service, host: UploadHost
) -> None:
    host.handle = host.refuse
    error = await refused(send(hosted, endless(asyncio.Event(), chunks=1)))
    assert error.reason == "PROVIDER_UNAUTHORIZED"


@pytest.mark.parametrize("size_bytes", [None, 90_000])
async def test_a_success_before_the_end_of_the_file_is_not_believed(
    hosted: Service, host: UploadHost, size_bytes: int | None
) -> None:
    async def content_early(request: web.Request) -> web.StreamResponse:
        await request.content.readany()
        return host.stored()

    host.handle = content_early
    error = await refused(send(hosted, endless(asyncio.Event(), size_bytes)))
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")


async def test_an_upload_can_be_retried_if_the_provider_disconnects(
    hosted: Service, host: UploadHost
) -> None:
    async def hangs_up(request: web.Request) -> web.StreamResponse:
        await request.content.readany()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    host.handle = hangs_up
    error = await refused(send(hosted, endless(asyncio.Event())))
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert error.retry_seconds


async def test_an_upload_is_sent_once_whatever_the_provider_does(
    hosted: Service, host: UploadHost
) -> None:
    async def redirects(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=307, headers={"Location": host.url + STREAM})

    host.handle = redirects
    assert (await refused(send(hosted, upload_messages(b"abc")))).reason == "PROVIDER_UNAVAILABLE"
    assert host.connections == 1


async def test_an_unreachable_provider_is_unavailable(serve: Serve) -> None:
    async with AsyncExitStack() as gone:
        kie = await gone.enter_async_context(Simulator())
    async with serve(kie_upload_url=kie.url) as service:
        error = await refused(send(service, upload_messages(b"x" * 100_000)))
    assert (error.code, error.reason) == (UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert error.retry_seconds


async def test_uploads_do_not_disturb_each_other(service: Service) -> None:
    """Valid, wrong and abandoned uploads at the same time."""
    contents = [os.urandom(50_000 + i) for i in range(20)]
    sent = asyncio.Event()
    abandoned = [service.stub.UploadFile(endless(sent)) for _ in range(5)]
    results = await asyncio.gather(
        *(upload(service, content, chunk_bytes=7_001) for content in contents),
        *(upload(service, content, size_bytes=1) for content in contents[:5]),
        return_exceptions=True,
    )
    for call in abandoned:
        call.cancel()
    kinds = Counter(type(result).__name__ for result in results)
    assert kinds == {"UploadedFile": 20, "AioRpcError": 5}
    for file, content in zip(results[:20], contents, strict=True):
        assert isinstance(file, pb.UploadedFile)
        assert await download(file.download_url) == content
