"""A collector that takes traces by OTLP over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass
class Collector:
    """A collector: what it was sent, and whether it answers."""

    url: str = ""
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hangs: bool = False

    @property
    def spans(self) -> dict[str, Any]:
        """The spans so far, by their names."""
        return {
            span.name: span
            for request in self.requests
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        }

    @property
    def resource(self) -> dict[str, str]:
        """What the spans say about the process."""
        [of_resource, *_] = [s for request in self.requests for s in request.resource_spans]
        return {a.key: a.value.string_value for a in of_resource.resource.attributes}

    async def answer(self, request: web.Request) -> web.Response:
        content = await request.read()
        self.headers.append(dict(request.headers))
        if self.hangs:
            await asyncio.sleep(3_600)
        self.requests.append(ExportTraceServiceRequest.FromString(content))
        return web.Response(body=ExportTraceServiceResponse().SerializeToString())


@asynccontextmanager
async def collecting(port: int = 0, *, hangs: bool = False) -> AsyncIterator[Collector]:
    """Run a collector on loopback."""
    collector = Collector(hangs=hangs)
    app = web.Application()
    app.router.add_post("/v1/traces", collector.answer)
    async with TestServer(app, port=port) as server:
        collector.url = str(server.make_url("")).rstrip("/")
        yield collector
