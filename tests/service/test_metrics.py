"""Metrics: what the admin port reports about calls, the provider, callbacks and the queues."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import SecretStr

from generated.generation.v1 import generation_pb2 as pb
from providers.base import Unknown
from providers.kie.client import KieProvider
from providers.kie.http import Timeouts
from providers.kie.simulator import Simulator
from service.bounds import Bounds
from service.callbacks import CallbackUrls
from service.feed_metrics import FeedMetrics
from service.metrics import GENERATION_SERVICE, Metrics, Queue
from service.series import SERIES_MAX, MetricFactory
from service.vitals import ThreadsAlive, hints_missed
from storage.engine import DatabaseTimeouts
from storage.errors import StorageUnavailableError
from tests.support.harness import API_KEY, SERVICE, Serve, Service, serving, upload_messages
from tests.support.metrics_page import ADMIN, Page, page_when, scrape
from tests.support.paths import ROOT
from tests.support.prompts import STUCK
from tests.support.waiting import eventually

DOCUMENT = (ROOT / "docs/metrics.md").read_text()
JOBS = "/api/v1/jobs/"


def page_of(metrics: Metrics) -> Page:
    return Page(generate_latest(metrics.registry).decode())


async def failure_of(call: Awaitable[Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


@pytest.fixture
async def measured(serve: Serve) -> AsyncIterator[Service]:
    """The service with its admin port open."""
    async with serve(**ADMIN) as service:
        yield service


# --- calls ---


async def test_calls_are_counted_by_method_and_code_with_their_latency(measured: Service) -> None:
    created = await measured.create()
    for _ in range(3):
        await measured.query(created.id)
    assert await failure_of(measured.query("nobody")) == grpc.StatusCode.NOT_FOUND
    assert await failure_of(measured.query("")) == grpc.StatusCode.INVALID_ARGUMENT

    page = await scrape(measured)
    assert page.calls("CreateTask", "OK") == 1
    assert page.calls("QueryTask", "OK") == 3
    assert page.calls("QueryTask", "NOT_FOUND") == 1
    assert page.calls("QueryTask", "INVALID_ARGUMENT") == 1
    seconds = page.value("generation_call_seconds_sum", method="QueryTask", code="OK")
    assert seconds is not None
    assert 0 < seconds < 3


async def test_every_method_shows_its_bugs_before_the_first_call(measured: Service) -> None:
    page = await scrape(measured)
    for method in GENERATION_SERVICE.methods:
        assert page.calls(method.name, "INTERNAL") == 0


async def test_an_unparsable_request_counts_as_the_callers_error(measured: Service) -> None:
    call: Any = measured.channel.unary_unary(f"{SERVICE}QueryTask")
    await failure_of(call(b"\xff\xff"))
    assert (await scrape(measured)).calls("QueryTask", "INVALID_ARGUMENT") == 1


async def test_a_caller_without_a_token_is_counted(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "tokens").touch()
    async with serve(**ADMIN, auth_tokens_file=tmp_path / "tokens") as service:
        await failure_of(service.query("any"))
        assert (await scrape(service)).calls("QueryTask", "UNAUTHENTICATED") == 1


async def test_a_refusal_by_grpcs_own_health_service_is_counted_by_its_code(
    measured: Service,
) -> None:
    health = health_pb2_grpc.HealthStub(measured.channel)
    await health.Check(health_pb2.HealthCheckRequest())
    await failure_of(health.Check(health_pb2.HealthCheckRequest(service="another")))
    # grpc sends the status before the handler ends, and the call is counted after that.
    page = await page_when(measured, lambda page: page.calls("Check", "NOT_FOUND"))
    assert (page.calls("Check", "OK"), page.calls("Check", "NOT_FOUND")) == (1, 1)


async def test_a_watch_is_counted_once_by_its_end(measured: Service) -> None:
    await measured.end((await measured.create()).id)
    stuck = await measured.create(STUCK)
    watch: Any = measured.stub.WatchTask(pb.WatchTaskRequest(task_id=stuck.id))
    await watch.read()
    page = await scrape(measured)
    assert page.calls("WatchTask", "OK") == 1
    assert page.calls("WatchTask", "CANCELLED") is None

    watch.cancel()
    page = await page_when(measured, lambda page: page.calls("WatchTask", "CANCELLED"))
    assert page.calls("WatchTask", "CANCELLED") == 1
    assert page.calls("WatchTask", "OK") == 1


async def test_any_number_of_unknown_methods_is_one_series(measured: Service) -> None:
    for n in range(30):
        call: Any = measured.channel.unary_unary(f"/{n}.Made/Up{n}")
        assert await failure_of(call(b"")) == grpc.StatusCode.UNIMPLEMENTED
    page = await scrape(measured)
    assert page.calls("unknown", "UNIMPLEMENTED") == 30
    methods = {series["method"] for series in page.series("generation_call_seconds_count")}
    assert methods == {"unknown", *(method.name for method in GENERATION_SERVICE.methods)}


async def test_servers_of_one_process_count_for_themselves(
    measured: Service, tmp_path: Path
) -> None:
    await measured.create()
    (tmp_path / "another").mkdir()
    async with serving(tmp_path / "another", measured.kie, **ADMIN) as another:
        assert (await scrape(another)).calls("CreateTask", "OK") == 0
    assert (await scrape(measured)).calls("CreateTask", "OK") == 1


# --- the provider ---


async def test_calls_of_the_provider_are_counted_by_endpoint_and_code(measured: Service) -> None:
    await measured.end((await measured.create()).id)
    await measured.stub.UploadFile(iter(upload_messages(b"x")))
    measured.kie.add_fault("create:code,code=402,msg=no credits")
    await failure_of(measured.create({"veo3": {"prompt": "a cat"}}))

    page = await scrape(measured)
    assert page.provider_calls(f"{JOBS}createTask", "200") == 1
    assert page.provider_calls(f"{JOBS}recordInfo", "200")
    assert page.provider_calls("/api/file-stream-upload", "200") == 1
    assert page.provider_calls("/api/v1/veo/generate", "402") == 1


UNANSWERED = {
    "create:accept_then_reset": "no_answer",
    "create:accept_then_http,status=502": "unreadable",
    "create:garbage": "unreadable",
    "create:http,status=403,body=error code: 1010": "403",
    "create:code,code=7": "other",
    "create:code,code=123456": "other",
}


@pytest.mark.parametrize(("fault", "code"), UNANSWERED.items())
async def test_a_create_without_a_usable_answer_is_counted_by_what_came(
    measured: Service, fault: str, code: str
) -> None:
    measured.kie.add_fault(fault)
    with suppress(grpc.aio.AioRpcError):
        await measured.create()
    page = await scrape(measured)
    assert page.provider_calls(f"{JOBS}createTask", code) == 1


async def test_an_unreachable_provider_is_not_connected(serve: Serve, unused_tcp_port: int) -> None:
    away = f"http://127.0.0.1:{unused_tcp_port}"
    async with serve(**ADMIN, kie_upload_url=away) as service:
        await failure_of(service.stub.UploadFile(iter(upload_messages(b"x"))))
        page = await scrape(service)
    assert page.provider_calls("/api/file-stream-upload", "not_connected") == 1


async def test_an_upload_that_its_caller_aborts_counts_as_given_up_at_the_provider(
    measured: Service,
) -> None:
    messages = upload_messages(b"x" * 100_000, size_bytes=200_000)
    await failure_of(measured.stub.UploadFile(iter(messages)))
    page = await scrape(measured)
    assert page.series("generation_provider_call_seconds_count") == [
        {"endpoint": "/api/file-stream-upload", "code": "given_up"}
    ]


@dataclass
class Reported:
    """A provider, and the calls that it reported."""

    provider: KieProvider
    calls: list[tuple[str, str]]

    def submit(self) -> asyncio.Task[Any]:
        params = pb.ProviderParams(kie=pb.KieParams(imagen4=pb.Imagen4Params(prompt="a cat")))
        return asyncio.create_task(self.provider.submit(params, None))


@pytest.fixture
async def reported(kie: Simulator) -> AsyncIterator[Reported]:
    calls: list[tuple[str, str]] = []
    provider = KieProvider(
        kie.url,
        kie.url,
        API_KEY,
        lambda endpoint, code, _: calls.append((endpoint, code)),
        Timeouts(create_seconds=0.5, second_look_seconds=0),
    )
    yield Reported(provider, calls)
    await provider.close()


async def test_a_create_that_hangs_until_its_time_is_over_had_no_answer(
    reported: Reported, kie: Simulator
) -> None:
    kie.add_fault("create:hang")
    assert isinstance(await reported.submit(), Unknown)
    assert reported.calls == [(f"{JOBS}createTask", "no_answer")]


async def test_a_create_that_a_shutdown_cuts_off_was_given_up(
    reported: Reported, kie: Simulator
) -> None:
    kie.add_fault("create:hang")
    submitting = reported.submit()
    await eventually(lambda: bool(kie.stats["faults_struck"]))
    submitting.cancel()
    await asyncio.wait([submitting])
    assert reported.calls == [(f"{JOBS}createTask", "given_up")]


# --- callbacks ---


async def test_callbacks_are_counted_by_their_verdict(serve: Serve, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    urls = CallbackUrls(url, b"s")
    settings = {
        "http_address": url.removeprefix("http://"),
        "public_url": url,
        "callback_secret": SecretStr("s"),
        **ADMIN,
    }
    async with serve(**settings) as service, aiohttp.ClientSession() as session:
        created = await service.create(STUCK)
        for target in (urls.url(created.id), urls.url("nobody"), urls.url("x") + "0", f"{url}/y"):
            await session.post(target, json={})
        page = await scrape(service)
    for verdict in ("received", "unknown", "forged", "no callback"):
        assert page.value("generation_callbacks_total", verdict=verdict) == 1, verdict


# --- the queues ---


async def test_the_queues_are_read_from_the_database_at_each_scrape(serve: Serve) -> None:
    async with serve(**ADMIN, create_wait_seconds=0) as service:
        for lane in ("submit", "poll", "late"):
            assert (await scrape(service)).value("generation_queue_tasks", lane=lane) == 0
        service.kie.add_fault("create:code,code=455,times=0")
        created = await service.create()
        await service.until_put_back(created.id)
        page = await scrape(service)
        assert page.value("generation_queue_tasks", lane="submit") == 1
        assert page.value("generation_queue_overdue_seconds", lane="submit") == 0

        await service.stub.CancelTask(pb.CancelTaskRequest(task_id=created.id))
        assert (await scrape(service)).value("generation_queue_tasks", lane="submit") == 0


async def test_a_task_that_waits_for_a_free_place_is_shown_as_overdue(serve: Serve) -> None:
    async with serve(**ADMIN, create_wait_seconds=0, kie_running_max=1) as service:
        await service.create(STUCK)
        await service.create(STUCK)
        await page_when(
            service,
            lambda page: (page.value("generation_queue_overdue_seconds", lane="submit") or 0) > 0.1,
        )


async def test_while_the_database_is_unavailable_only_the_queues_are_missing(
    measured: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await measured.create()
    assert (await scrape(measured)).series("generation_queue_tasks")

    def away(*_: object) -> None:
        raise StorageUnavailableError("away")

    with monkeypatch.context() as patches:
        patches.setattr("storage.store.Store.queues", away)
        page = await scrape(measured)
    assert page.series("generation_queue_tasks") == []
    assert page.series("generation_queue_overdue_seconds") == []
    assert page.calls("CreateTask", "OK") == 1
    assert (await scrape(measured)).series("generation_queue_tasks")


async def test_a_database_that_does_not_respond_delays_no_scrape(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hanging(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("service.http_ports._queues", hanging)
    bounds = Bounds(database=DatabaseTimeouts(queues_seconds=0.01))
    async with serve(bounds=bounds, **ADMIN) as service:
        page = await scrape(service)
    assert page.series("generation_queue_tasks") == []
    assert page.value("generation_watches_open") == 0


# --- the process ---


async def test_the_lag_of_the_event_loop_is_measured_until_the_end(serve: Serve) -> None:
    def measuring() -> list[Any]:
        return [t for t in asyncio.all_tasks() if "measure_loop_lag" in repr(t.get_coro())]

    async with serve(**ADMIN) as service:
        await page_when(service, lambda page: page.value("generation_event_loop_lag_seconds_count"))
        assert len(measuring()) == 1
    assert measuring() == []


async def test_the_page_holds_no_secret_prompt_or_id(measured: Service) -> None:
    created = await measured.create({"imagen4": {"prompt": "a cat of nobody's business"}})
    await measured.end(created.id)
    page = await scrape(measured)
    for secret in (API_KEY, "nobody's business", created.id, created.provider_task_id):
        assert secret not in page.text


# --- what others tell it ---


def full_metrics() -> Metrics:
    """Metrics in which everything was recorded once."""
    metrics = Metrics(["veo3"])
    metrics.calls("QueryTask").succeeded(0.5)
    metrics.watches_open(1)
    metrics.fan_out(0.5)
    metrics.task_moved("veo3", "QUEUED")
    metrics.task_ended("veo3", "FAILED", "TASK_TIMEOUT", "alice")
    metrics.show_queues([Queue("submit", 3, 1.5)])
    metrics.show_config_problems("tokens", 1)
    metrics.show_missing_descriptors(0)
    metrics.limiter_waited("submit", 0.5)
    metrics.poll_started(0.5)
    metrics.provider_called("/path", "200", 0.5)
    metrics.called_back("received")
    metrics.database("get", 0.5)
    metrics.loop_lagged(0.5)
    metrics.catalogue_refreshed("applied")
    metrics.show_catalogue(["ACTIVE"], 1.0)
    ThreadsAlive(metrics.registry).show("writer", alive=True)
    hints_missed(metrics.registry)
    FeedMetrics(MetricFactory(metrics.registry))
    return metrics


def test_a_single_observation_is_shown_once() -> None:
    page = page_of(full_metrics())
    ended = {"model": "veo3", "status": "FAILED", "reason": "TASK_TIMEOUT"}
    assert page.value("generation_watches_open") == 1
    assert page.value("generation_task_moves_total", model="veo3", stage="QUEUED") == 1
    assert page.value("generation_task_ends_total", **ended) == 1
    assert page.value("generation_queue_tasks", lane="submit") == 3
    assert page.value("generation_queue_overdue_seconds", lane="submit") == 1.5
    for name, labels in {
        "generation_call_seconds": {"method": "QueryTask", "code": "OK"},
        "generation_fan_out_seconds": {},
        "generation_limiter_wait_seconds": {"lane": "submit"},
        "generation_poll_lag_seconds": {},
        "generation_provider_call_seconds": {"endpoint": "/path", "code": "200"},
        "generation_database_seconds": {"operation": "get"},
        "generation_event_loop_lag_seconds": {},
    }.items():
        assert page.value(f"{name}_count", **labels) == 1, name
        assert page.value(f"{name}_sum", **labels) == 0.5, name


def test_a_watch_that_closed_is_not_open() -> None:
    metrics = full_metrics()
    metrics.watches_open(0)
    assert page_of(metrics).value("generation_watches_open") == 0


def test_series_of_possible_ends_start_at_0() -> None:
    page = page_of(Metrics(["veo3"]))
    for reason in ("SUBMISSION_UNKNOWN", "CREDITS_EXHAUSTED", "PROVIDER_UNAUTHORIZED"):
        labels = {"model": "veo3", "status": "FAILED", "reason": reason}
        assert page.value("generation_task_ends_total", **labels) == 0
    assert page.value("generation_task_moves_total", model="veo3", stage="ACCEPTED") == 0


def test_series_of_verdicts_and_lanes_start_at_0() -> None:
    page = page_of(Metrics([]))
    [verdicts] = re.findall(r"^\| verdict \| (.+) \|$", DOCUMENT, re.MULTILINE)
    for verdict in re.findall(r"`([^`]+)`", verdicts):
        assert page.value("generation_callbacks_total", verdict=verdict) == 0, verdict
    for lane in ("submit", "poll", "late"):
        assert page.value("generation_limiter_wait_seconds_count", lane=lane) == 0


def test_values_beyond_the_bound_are_counted_as_other() -> None:
    metrics = Metrics([])
    for n in range(10_000):
        metrics.database(f"operation {n}", 0.1)
        metrics.provider_called(f"/{n}", str(n), 0.1)
    page = page_of(metrics)
    beyond = 10_000 - SERIES_MAX
    assert len(page.series("generation_database_seconds_count")) == SERIES_MAX + 1
    assert page.value("generation_database_seconds_count", operation="other") == beyond
    assert page.provider_calls("other", "other") == beyond


# --- the document ---

ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*?) ?\|", re.MULTILINE)


def shown(registry: CollectorRegistry) -> set[tuple[str, str, str]]:
    """What is exposed: name, type and the names of the labels, as the document writes them."""
    return {
        (
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            ", ".join(sorted({label for s in family.samples for label in s.labels} - {"le"})),
        )
        for family in registry.collect()
    }


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="process_ metrics are Linux's")
def test_the_documented_list_is_the_exposed_one() -> None:
    documented = {(name, kind, labels) for name, kind, labels in ROW.findall(DOCUMENT)}
    assert documented == shown(full_metrics().registry)


async def test_the_page_of_a_server_has_each_documented_metric(measured: Service) -> None:
    text = (await scrape(measured)).text
    exposed = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    assert exposed == {name for name, _, _ in ROW.findall(DOCUMENT)}
