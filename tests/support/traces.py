"""The spans that a traced service makes."""

from collections.abc import Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.tracing import Tracing
from tests.support.harness import SERVICE, Service
from tests.support.waiting import eventually

CREATE, QUERY, WATCH, UPLOAD, LIST = (
    f"{SERVICE[1:]}{method}"
    for method in ("CreateTask", "QueryTask", "WatchTask", "UploadFile", "ListTasks")
)
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def sent(trace: str = TRACE, *, sampled: bool = True) -> Any:
    """Return the metadata of a caller that traces its call."""
    return (("traceparent", f"00-{trace}-{SPAN}-{sampled:02x}"),)


class Spans(SimpleSpanProcessor):
    """The spans of one service: those that have ended, and how many have not."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        super().__init__(self._exporter)
        self.tracing = Tracing(self)
        self.open = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.open += 1
        super().on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        self.open -= 1
        super().on_end(span)

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    async def one(self, name: str) -> ReadableSpan:
        """Return the only span with a name, once it has ended."""
        [span] = await eventually(lambda: self.named(name))
        return span

    def of_task(self, task_id: str) -> list[ReadableSpan]:
        return [s for s in self.ended if attributes(s).get("generation.task_id") == task_id]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_id)


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def parent_id(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def linked_ids(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def events(span: ReadableSpan) -> list[str]:
    """Return the events of a span, those of the database by their operation."""
    return [str((e.attributes or {}).get("db.operation.name", e.name)) for e in span.events]


async def call_with(service: Service, method: str, request: bytes) -> None:
    """Call a method with the bytes of a request."""
    channel: Any = service.channel
    await channel.unary_unary(f"/{method}")(request)
