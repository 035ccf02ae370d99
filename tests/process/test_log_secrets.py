"""A log full of failures contains no secret, and has one format."""

import asyncio
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from benchmarks.h2 import END_HEADERS, END_STREAM, HEADERS, SETTINGS, frame, request_headers
from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.databases import change
from tests.support.harness import API_KEY, INSTANT, create_request, upload_messages
from tests.support.processes import NAME, Launch, Served, read_to_end, to
from tests.support.refusals import refused
from tests.support.waiting import START_SECONDS

TOKEN = "token-of-alice"
WEBHOOK_KEY = "key-of-the-webhooks"
CALLBACK_SECRET = "secret-of-the-callbacks"
PROMPT = "prompt-that-is-nobody-elses-business"
ALICE: Any = {"metadata": [("authorization", f"Bearer {TOKEN}")]}
BAD_AUTHORIZATIONS = (TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN}, {TOKEN}")
REFUSED_CREATES = (
    f"create:code,code=401,msg=no access with {API_KEY}",
    "create:http,status=403,body=error 1010",
)
LOST_CREATES = ("create:accept_then_reset", "create:garbage", "create:wrong_types")
REFUSED_UPLOADS = ("upload:code,code=401,msg=no access", "upload:reset", "upload:garbage")


async def cause_failures(process: Served, kie: Simulator) -> None:
    """Cause every error that may contain the key or a token."""
    stub = process.stub
    for value in BAD_AUTHORIZATIONS:
        metadata = [("authorization", value)]
        error = await refused(stub.ListTasks(pb.ListTasksRequest(), metadata=metadata))
        assert error.reason == "UNAUTHENTICATED"
    await call_with_a_stray_byte(process.address)
    for fault in REFUSED_CREATES:
        kie.add_fault(fault)
        assert (await refused(process.create(PROMPT, **ALICE))).reason == "PROVIDER_UNAUTHORIZED"
    for fault in LOST_CREATES:
        kie.add_fault(fault)
        assert (await process.create(PROMPT, **ALICE)).failure.message
    for fault in REFUSED_UPLOADS:
        kie.add_fault(fault)
        await refused(stub.UploadFile(iter(upload_messages(b"x" * 99_999)), **ALICE))
    not_a_message: Any = process.channel.unary_unary(f"/{NAME}/QueryTask")
    assert (await refused(not_a_message(b"\xff\xff", **ALICE))).reason == "INVALID_PARAMS"


async def call_with_a_stray_byte(address: str) -> None:
    """Send the token with a byte that is not UTF-8, and wait until the call is refused."""
    value = f"Bearer {TOKEN}".encode() + b"\xa0"
    name = b"authorization"
    block = request_headers(f"/{NAME}/ListTasks")
    block += b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"")
    writer.write(preface + frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
    async with asyncio.timeout(START_SECONDS):
        await reader.readuntil(b"grpc-status")
    writer.close()


async def cause_a_traceback(process: Served, kie: Simulator, folder: Path) -> None:
    """End a task in spite of inconclusive polls, damage its row, and find it by its request_id."""
    kie.add_fault("record:reset,times=2")
    request = create_request({"imagen4": {"prompt": PROMPT}}, request_id="r")
    created = (await process.stub.CreateTask(request, **ALICE)).task
    await read_to_end(process.stub.WatchTask(pb.WatchTaskRequest(task_id=created.id), **ALICE))
    database_url = f"sqlite:///{folder}/generation.db"
    change(database_url, "UPDATE tasks SET artifacts = '7' WHERE id = ?", created.id)
    assert (await refused(process.stub.CreateTask(request, **ALICE))).reason == "INTERNAL"


async def spoil_the_tokens_file(process: Served, folder: Path) -> None:
    """Put the token where its hash belongs, and call until the service has seen it."""
    with (folder / "tokens").open("a") as file:
        file.write(f"{TOKEN} {TOKEN}\n")
    async with asyncio.timeout(START_SECONDS):
        while "sha256-of-token-in-hex" not in process.process.text:
            await process.stub.ListTasks(pb.ListTasksRequest(), **ALICE)


@pytest.mark.parametrize("form", ["json", "text"])
async def test_a_log_full_of_failures_contains_no_secret_and_has_one_format(
    launch: Launch, stack: AsyncExitStack, tmp_path: Path, form: str
) -> None:
    digest = sha256(TOKEN.encode()).hexdigest()
    (tmp_path / "tokens").write_text(f"alice {digest}\n")
    variables = {
        "AUTH_TOKENS_FILE": "tokens",
        "LOG_FORMAT": form,
        "LOG_LEVEL": "debug",
        "PUBLIC_URL": "https://here.example",
        "HTTP_ADDRESS": "127.0.0.1:0",
        "KIE_WEBHOOK_KEY": WEBHOOK_KEY,
        "CALLBACK_SECRET": CALLBACK_SECRET,
        "CREATE_WAIT_SECONDS": "1",
        "ACCOUNT_HOLD_SECONDS": "0",  # each refused create is reported
        "UNKNOWN_WAIT_SECONDS": "0",
    }
    async with Simulator(INSTANT) as kie:
        process = await stack.enter_async_context(launch(**variables, **to(kie.url)))
        await cause_failures(process, kie)
        await spoil_the_tokens_file(process, tmp_path)
        await cause_a_traceback(process, kie, tmp_path)
    assert (await process.create(PROMPT, **ALICE)).stage == pb.TASK_STAGE_ACCEPTED
    await process.stop()

    text = process.process.text
    for secret in (API_KEY, WEBHOOK_KEY, CALLBACK_SECRET, TOKEN, digest, PROMPT):
        assert secret not in text
    for event in (
        "unhandled exception",
        "TypeError",
        "the provider does not accept tasks now",
        "stopped",
    ):
        assert event in text
    if form == "json":
        assert text.endswith("\n")
        assert all({"event", "level", "timestamp"} <= line.keys() for line in process.process.log)
