"""Traces over several replicas: one for each create, whichever process works on the task."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.harness import Service, serving
from tests.support.traces import (
    CREATE,
    Spans,
    attributes,
    linked_ids,
    parent_id,
    span_id,
    trace_id,
)
from tests.support.waiting import eventually, eventually_answered

CREATES = 20


async def test_a_create_is_one_trace_over_the_replica_that_took_it_and_the_one_that_sent_it(
    tmp_path: Path, kie: Simulator, postgresql_url: str, stack: AsyncExitStack
) -> None:
    first, second = Spans(), Spans()
    kie.add_fault("create:code,code=455,times=0")
    settings: dict[str, Any] = {"database_url": postgresql_url, "create_wait_seconds": 0}
    async with serving(tmp_path, kie, tracing=first.tracing, **settings) as service:
        tasks = await asyncio.gather(*(service.create() for _ in range(CREATES)))
        await eventually_answered(partial(one_put_back, service, tasks))
    kie.clear_faults()
    service = await stack.enter_async_context(
        serving(tmp_path, kie, tracing=second.tracing, **settings)
    )
    for task in tasks:
        assert (await service.end(task.id)).status == pb.TASK_STATUS_SUCCESS
    calls = {span_id(call): call for call in first.named(CREATE)}
    assert len({trace_id(call) for call in calls.values()}) == CREATES
    for task in tasks:
        work = await eventually(partial(ended_in, second, task.id))
        assert {span.name for span in work} == {"kie.create", "kie.poll"}
        of_task = [*first.of_task(task.id), *work]
        [call] = {parent_id(span) for span in of_task}
        assert call in calls
        assert {trace_id(span) for span in of_task} == {trace_id(calls[call])}
        assert all(linked_ids(span) == [call] for span in of_task)


async def one_put_back(service: Service, tasks: Sequence[pb.GenerationTask]) -> bool:
    """Return whether the provider has not accepted one of the tasks, which holds the others."""
    found = [await service.query(task.id) for task in tasks]
    return any(t.stage == pb.TASK_STAGE_ACCEPTED and t.revision > 1 for t in found)


def ended_in(spans: Spans, task_id: str) -> list[ReadableSpan]:
    """Return the spans of a task, once the last one has ended."""
    found = spans.of_task(task_id)
    ends = [span for span in found if attributes(span)["generation.outcome"] == "Succeeded"]
    return found if ends else []
