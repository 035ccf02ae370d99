"""Sends traces to a collector by OTLP over HTTP, in a thread of OpenTelemetry.

The other variables of OpenTelemetry, such as OTEL_EXPORTER_OTLP_HEADERS, are read by its SDK.
"""

import logging
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from providers.proxies import is_loopback
from providers.urls import without_userinfo
from service.tracing import Tracing

PATH = "/v1/traces"
PROBLEM_MAX_CHARS = 500

logger = logging.getLogger(__name__)


def start_tracing(endpoint: str) -> Tracing:
    """Export traces to a collector, and log whether it takes them.

    Args:
        endpoint: The base URL of its OTLP receiver.
    """
    session = requests.Session()
    # Otherwise a proxy is asked for loopback, too.
    session.trust_env = not is_loopback(urlsplit(endpoint).hostname or "")
    exporter = ReportingExporter(OTLPSpanExporter(f"{endpoint}{PATH}", session=session), endpoint)
    # No spans, to learn at once whether the endpoint is right.
    threading.Thread(target=exporter.export, args=[()], name="traces-check", daemon=True).start()
    return Tracing(BatchSpanProcessor(exporter))


class ReportingExporter(SpanExporter):
    """Logs once that the collector takes no traces, and once that it takes them again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._problems = _Problems(without_userinfo(endpoint))

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans; called in a thread."""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._problems.solved()
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()


class _Problems(logging.Handler):
    """Takes the lines of OpenTelemetry's log, which repeat for as long as a problem lasts."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(logging.WARNING)
        self._endpoint = endpoint
        self._lasts = False
        theirs = logging.getLogger("opentelemetry")
        theirs.handlers = [self]
        theirs.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Log a problem, unless it was logged and is not over yet."""
        if self._lasts:
            return
        self._lasts = True
        problem = record.getMessage()[:PROBLEM_MAX_CHARS]
        logger.warning("traces are lost", extra={"endpoint": self._endpoint, "problem": problem})

    def solved(self) -> None:
        """Log that the problem is over, if there was one."""
        if self._lasts:
            self._lasts = False
            logger.info("traces are sent again", extra={"endpoint": self._endpoint})
