"""Kie as a provider, with a span for each request that is worth one."""

import time
from collections.abc import AsyncIterator
from typing import Any

from cachetools import LRUCache
from opentelemetry.trace import Span, SpanKind, StatusCode

from generated.generation.v1.generation_pb2 import ProviderParams
from providers.base import (
    Accepted,
    Failed,
    Poll,
    Progress,
    StoredFile,
    Submission,
    Succeeded,
    Upload,
)
from providers.kie.catalogue.known import KnownModels
from providers.kie.client import KieProvider
from service.tracing import Operation, Tracing, current_operation

POLLED_TASKS_MAX = 10_000  # remembered, to know which poll is the first


class TracedProvider(KieProvider):
    """Kie, called by traced calls and jobs. A job ends the span of its request."""

    def __init__(self, tracing: Tracing, *arguments: Any, known: KnownModels | None = None) -> None:
        """Take a KieProvider's arguments after the first one."""
        super().__init__(*arguments, known=known)
        self._tracing = tracing
        self._polled: LRUCache[str, bool] = LRUCache(POLLED_TASKS_MAX)

    async def submit(self, params: ProviderParams, callback_url: str | None) -> Submission:
        """Send the paid request, in the span `kie.create`."""
        job = _current()
        job.begin(self._start("kie.create", job))
        outcome = await super().submit(params, callback_url)
        _answered(job, outcome, is_error=not isinstance(outcome, Accepted))
        return outcome

    async def poll(
        self, model: str, provider_task_id: str, params: ProviderParams | None = None
    ) -> Poll:
        """Ask for the record of a task, in a span `kie.poll` if it is worth one.

        That is the first poll of a task by this process, the last, and each that failed.
        """
        started = time.time_ns()
        outcome = await super().poll(model, provider_task_id, params)
        if self._is_first(provider_task_id) or not isinstance(outcome, Progress):
            job = _current()
            job.begin(self._start("kie.poll", job, started))
            is_error = not isinstance(outcome, Progress | Succeeded | Failed)
            _answered(job, outcome, is_error=is_error)
        return outcome

    async def upload(self, upload: Upload, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Stream a file to the upload host, in the span `kie.upload`."""
        span = self._start("kie.upload", _current())
        try:
            return await super().upload(upload, chunks)
        except BaseException as error:
            # The reason, not the message: that may contain what the caller or the provider sent.
            _fail(span, getattr(error, "reason", type(error).__name__))
            raise
        finally:
            span.end()

    def _is_first(self, provider_task_id: str) -> bool:
        is_first = provider_task_id not in self._polled
        self._polled[provider_task_id] = True
        return is_first

    def _start(self, name: str, operation: Operation, start_time_ns: int | None = None) -> Span:
        return self._tracing.start(
            name, SpanKind.CLIENT, operation, operation.task_attributes, start_time_ns
        )


def _current() -> Operation:
    operation = current_operation.get()
    assert operation is not None, "every request of a traced service belongs to a call or a job"
    return operation


def _answered(job: Operation, outcome: Submission | Poll, *, is_error: bool) -> None:
    """Record the response to a request; the span continues until the verdict is stored."""
    if (span := job.span) is None:
        return
    span.add_event("answered")
    span.set_attribute("generation.outcome", type(outcome).__name__)
    if is_error:
        _fail(span, getattr(outcome, "reason", type(outcome).__name__))


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
