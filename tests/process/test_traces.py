"""Traces as an operator has them: sent to a collector, named in the log, and never in the way."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from providers.kie.simulator import Simulator
from tests.support.collector import Collector, collecting
from tests.support.processes import Launch, Served, served, to
from tests.support.traces import CREATE, TRACE, WATCH, sent
from tests.support.waiting import START_SECONDS, eventually

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SENT_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}  # milliseconds
TIMINGS = {"SHUTDOWN_SECONDS": "3"}


@pytest.fixture
def launch(tmp_path: Path, kie: Simulator) -> Launch:
    """Start processes whose tasks end at once."""
    return lambda **variables: served(tmp_path, **to(kie.url), **variables)


async def run_a_task(process: Served) -> Any:
    task = await process.create(metadata=sent())
    return await process.end(task.id, metadata=sent())


def has(collector: Collector, *names: str) -> bool:
    return set(names) <= collector.spans.keys()


async def test_spans_are_sent_to_the_collector_with_the_name_of_the_service(
    launch: Launch,
) -> None:
    async with collecting() as collector:
        variables = {
            ENDPOINT: collector.url,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=of-the-collector",
            **SENT_SOON,
        }
        async with launch(**variables) as process:
            await run_a_task(process)
            names = CREATE, WATCH, "kie.create", "kie.poll"
            await eventually(lambda: has(collector, *names), START_SECONDS)
            assert process.process.log[0]["traces"] == f"sent to {collector.url}"
    assert {span.trace_id.hex() for span in collector.spans.values()} == {TRACE}
    assert collector.resource["service.name"] == "generation"
    assert collector.resource["deployment.environment"] == "test"
    assert collector.headers[-1]["x-api-key"] == "of-the-collector"


async def test_the_name_of_the_service_can_be_changed(launch: Launch) -> None:
    async with collecting() as collector:
        names = {"OTEL_SERVICE_NAME": "pictures", **SENT_SOON}
        async with launch(**{ENDPOINT: collector.url}, **names) as process:
            await run_a_task(process)
            await eventually(lambda: has(collector, CREATE), START_SECONDS)
    assert collector.resource["service.name"] == "pictures"


async def test_the_last_spans_are_sent_during_the_shutdown(launch: Launch) -> None:
    async with collecting() as collector, launch(**{ENDPOINT: collector.url}) as process:
        await run_a_task(process)
        await process.stop()
        assert has(collector, CREATE, "kie.create", "kie.poll")


async def test_the_log_lines_of_a_call_and_of_its_task_name_the_trace(launch: Launch) -> None:
    async with collecting() as collector, launch(**{ENDPOINT: collector.url}) as process:
        await run_a_task(process)
        for event in ("task created", "task accepted", "task ended"):
            line = await eventually(partial(process.process.logged, event))
            assert line["trace_id"] == TRACE
        assert "trace_id" not in process.process.log[0]


async def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded(launch: Launch) -> None:
    timed = {"PYTHONPROFILEIMPORTTIME": "1", "LOG_FORMAT": "text"}
    async with launch(**timed) as process:
        await run_a_task(process)
        await process.stop()
        assert "import time:" in process.process.text
        assert "grpc.aio" in process.process.text
        assert "opentelemetry" not in process.process.text
        assert "traces=off" in process.process.text


async def test_a_collector_that_is_not_there_is_named_at_the_start_and_once(
    launch: Launch, unused_tcp_port: int
) -> None:
    url = f"http://user:pass-word@127.0.0.1:{unused_tcp_port}"
    async with launch(**{ENDPOINT: url}, **SENT_SOON, **TIMINGS) as process:
        line = await eventually(partial(process.process.logged, "traces are lost"), START_SECONDS)
        assert line["level"] == "warning"
        assert line["endpoint"] == f"http://127.0.0.1:{unused_tcp_port}"
        assert "refused" in line["problem"]
        await run_a_task(process)
        started = time.monotonic()
        await process.stop()
        assert time.monotonic() - started < float(TIMINGS["SHUTDOWN_SECONDS"])
    assert len([e for e in process.process.log if e["event"] == "traces are lost"]) == 1
    assert "pass-word" not in process.process.text


async def test_a_collector_that_is_back_is_reported(launch: Launch, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with launch(**{ENDPOINT: url}, **SENT_SOON) as process:
        await eventually(partial(process.process.logged, "traces are lost"), START_SECONDS)
        async with collecting(unused_tcp_port) as collector:
            await run_a_task(process)
            await eventually(
                partial(process.process.logged, "traces are sent again"), START_SECONDS
            )
            await eventually(lambda: has(collector, CREATE), START_SECONDS)


async def test_a_collector_that_does_not_answer_delays_neither_calls_nor_the_end(
    launch: Launch,
) -> None:
    async with collecting(hangs=True) as collector:
        variables = {ENDPOINT: collector.url, **SENT_SOON, **TIMINGS}
        async with launch(**variables) as process:
            await eventually(lambda: collector.headers, START_SECONDS)
            async with asyncio.timeout(START_SECONDS):
                for _ in range(20):
                    await run_a_task(process)
            started = time.monotonic()
            await process.stop()
            assert time.monotonic() - started < float(TIMINGS["SHUTDOWN_SECONDS"])


async def test_a_proxy_is_never_asked_for_a_collector_on_loopback(launch: Launch) -> None:
    async with collecting() as collector:
        proxy = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
        async with launch(**{ENDPOINT: collector.url}, **proxy, **SENT_SOON):
            await eventually(lambda: collector.requests, START_SECONDS)
