"""The HTTP servers against clients that are silent, slow, too many or not HTTP at all."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web

from providers.kie.simulator import Simulator
from service.http import HttpLimits, HttpServer, read_body
from tests.support.harness import Serve

SHORT = HttpLimits(
    request_seconds=0.4,
    answer_seconds=0.4,
    idle_seconds=3,
    linger_seconds=0.1,
)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
MANY = 100


async def echo(request: web.BaseRequest) -> web.Response:
    body = await read_body(request, 1_000)
    return web.Response(text=f"{request.path} {len(body)}")


@asynccontextmanager
async def serving(limits: HttpLimits, handler: Callable[..., object] = echo) -> AsyncIterator[int]:
    """Serve; yield the port."""
    runner = web.ServerRunner(HttpServer(handler, limits), shutdown_timeout=1)  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[..., Awaitable[Connection]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open raw connections, which are closed at the end."""
    writers = []

    async def open_one(port: int, first: bytes = b"") -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        writer.write(first)
        return reader, writer

    yield open_one
    for writer in writers:
        writer.close()
        writer.transport.abort()
    await asyncio.gather(*(w.wait_closed() for w in writers), return_exceptions=True)


async def all_of(reader: asyncio.StreamReader, seconds: float = 5) -> bytes:
    """Return what arrives until the connection is closed."""
    async with asyncio.timeout(seconds):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Return the status line of one answer, and read the rest of it."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    await reader.readexactly(int(length.split(b":")[1]))
    return head.split(b"\r\n")[0]


async def status_of(port: int) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/", timeout=aiohttp.ClientTimeout(2)) as response,
    ):
        return response.status


# --- silent and slow clients ---

DRIPPING = {
    "nothing": (b"", b""),
    "a request line": (b"GET / HT", b"T"),
    "headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n"),
    "a body": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n", b"x"),
    "a chunked body": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
    ),
}


@pytest.mark.parametrize(("first", "drip"), DRIPPING.values(), ids=DRIPPING.keys())
@pytest.mark.parametrize("earlier", [b"", GET], ids=["at first", "after a request"])
async def test_a_request_that_does_not_end_is_cut_off_and_a_client_that_works_stays(
    connect: Connect, first: bytes, drip: bytes, earlier: bytes
) -> None:
    if earlier and not first:
        return  # between two requests a client may be silent
    async with serving(SHORT) as port:
        kept_reader, kept_writer = await connect(port, GET)
        clients = [await connect(port, earlier + first) for _ in range(MANY)]

        async def drips(writer: asyncio.StreamWriter) -> None:
            while not writer.is_closing():
                writer.write(drip)
                await asyncio.sleep(0.1)  # it is the pace of the attack

        attack = [asyncio.create_task(drips(writer)) for _, writer in clients]
        closed = asyncio.gather(*(all_of(reader, 4) for reader, _ in clients))
        while not closed.done():
            assert await answer(kept_reader) == b"HTTP/1.1 200 OK"
            await asyncio.sleep(0.1)  # it is the pace of a client that works
            kept_writer.write(GET)
        await closed
        for task in attack:
            task.cancel()
        assert await answer(kept_reader) == b"HTTP/1.1 200 OK"


async def test_a_client_that_is_idle_between_requests_is_closed_later(connect: Connect) -> None:
    async with serving(replace(SHORT, idle_seconds=0.8)) as port:
        reader, _ = await connect(port, GET)
        started = asyncio.get_running_loop().time()
        assert await answer(reader) == b"HTTP/1.1 200 OK"
        assert await all_of(reader) == b""
        assert asyncio.get_running_loop().time() - started > 0.7


async def test_a_client_that_does_not_read_its_answer_is_cut_off(connect: Connect) -> None:
    async def much(_: web.BaseRequest) -> web.Response:
        return web.Response(body=bytes(32 << 20))

    async with serving(SHORT, much) as port:
        reader, _ = await connect(port, GET)
        reader._transport.pause_reading()  # type: ignore[attr-defined] # the client stops
        await asyncio.sleep(1.2)  # what must not last longer than 0.8 s
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await all_of(reader)) < 32 << 20


# --- bounds ---


async def test_the_maximum_number_of_clients_does_not_keep_another_one_out(
    connect: Connect,
) -> None:
    limits = replace(SHORT, connections=20, request_seconds=30)
    async with serving(limits) as port:
        silent = [await connect(port) for _ in range(20)]
        begun = [await connect(port, b"GET / HTTP/1.1\r\n") for _ in range(20)]
        for _ in range(5):
            assert await status_of(port) == 200
        assert await all_of(silent[0][0]) == b"", "the oldest makes room"
        assert len(begun) == 20


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
TOO_MUCH = {
    "a header of 9 KiB": HEAD + b"a: " + b"x" * 9_216 + b"\r\n\r\n",
    "headers of 17 KiB": HEAD + b"".join(b"a%d: " % i + b"x" * 1_000 + b"\r\n" for i in range(17)),
    "65 headers": HEAD + b"".join(b"a%d: b\r\n" % i for i in range(65)) + b"\r\n",
    "a path of 9 KiB": b"GET /" + b"x" * 9_216 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "headers without end": HEAD + b"a: b\r\n" * 100_000,
}


@pytest.mark.parametrize("request_bytes", TOO_MUCH.values(), ids=TOO_MUCH.keys())
async def test_headers_are_bounded(connect: Connect, request_bytes: bytes) -> None:
    async with serving(SHORT) as port:
        reader, writer = await connect(port)
        for start in range(0, len(request_bytes), 4_096):
            writer.write(request_bytes[start : start + 4_096])
            await asyncio.sleep(0)
        if not request_bytes.endswith(b"\r\n\r\n"):
            writer.write(b"\r\n")
        answer = await all_of(reader)
        assert answer == b"" or answer.split()[1] in {b"400", b"431"}
        assert await status_of(port) == 200


async def test_more_of_a_body_than_the_limit_is_not_read_but_answered(
    connect: Connect,
) -> None:
    async with serving(SHORT) as port:
        reader, writer = await connect(
            port, b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        )
        writer.write(bytes(100_000))
        assert (await all_of(reader)).endswith(b"/x 1000")


async def test_a_client_that_expects_100_continue_gets_it(
    connect: Connect,
) -> None:
    async with serving(SHORT) as port:
        reader, writer = await connect(
            port, b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert await answer(reader) == b"HTTP/1.1 200 OK"


# --- what is not HTTP/1 ---

NOT_HTTP = {
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200),
    "random bytes": os.urandom(500),
    "zeros": bytes(100),
    "escape sequences": b"\x1b[2J\x1b]0;owned\x07 / HTTP/1.1\r\n\r\n",
    "line feeds": b"\n\n\nINFO all is well\n\n",
    "a method that does not exist": b"HELLO / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad version": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "a bad URL": b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad port": b"GET http://x:99999999/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a URL of bytes": b"GET /\xff\xfe\x80%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "a bad length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a bad chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a bad header": b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    "a header with NUL": b"GET / HTTP/1.1\r\nHost: x\r\na: \0b\r\n\r\n",
    "an upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n\x80\x81",
    "garbage after a request": GET + b"\x00\x01\x02\r\n\r\n",
    "false compression": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "CONNECT": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("garbage", NOT_HTTP.values(), ids=NOT_HTTP.keys())
async def test_a_client_that_does_not_speak_http_1_causes_at_most_one_line(
    connect: Connect,
    garbage: bytes,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving(SHORT) as port:
        clients = [await connect(port, garbage) for _ in range(10)]
        for _, writer in clients:
            writer.write_eof()
        await asyncio.gather(*(all_of(reader) for reader, _ in clients))
        assert await status_of(port) == 200
    logged = capsys.readouterr().out
    assert logged.count("\n") <= 1, logged
    assert "\x1b" not in logged
    assert "Traceback" not in logged + caplog.text
    assert not caplog.records


async def test_a_bug_in_a_handler_is_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: web.BaseRequest) -> web.Response:
        raise ZeroDivisionError

    async with serving(SHORT, broken) as port:
        assert await status_of(port) == 500
    assert "ZeroDivisionError" in caplog.text


# --- the admin port ---


async def test_the_admin_port_has_a_page_of_links(serve: Serve, kie: Simulator) -> None:
    async with (
        serve(admin_address="127.0.0.1:0") as service,
        aiohttp.ClientSession(f"http://{service.admin_address}") as session,
    ):
        async with session.get("/") as response:
            page = await response.text()
            assert response.status == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            assert f'href="{path}"' in page
            async with session.get(path) as response:
                assert response.status == 200
            async with session.head(path) as response:
                assert response.status == 200
        async with session.get("/nothing") as response:
            assert response.status == 404
        async with session.post("/healthz", data=b"x") as response:
            assert response.status == 405
        odd = {"Accept": "text/plain;version=abc, application/openmetrics-text;version=x.y"}
        async with session.get("/metrics", headers=odd) as response:
            assert response.status in {200, 406}


async def test_silent_clients_do_not_keep_healthz_from_answering(
    connect: Connect, serve: Serve
) -> None:
    async with serve(admin_address="127.0.0.1:0") as service:
        port = int(service.admin_address.rpartition(":")[2])
        silent = [await connect(port) for _ in range(510)]
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                async with session.get(f"http://{service.admin_address}/healthz") as response:
                    assert response.status == 200
        assert len(silent) == 510
