"""A Kie that gives every request the same answer, and the real provider that asks it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from providers.kie.catalogue.known import KnownModels
from providers.kie.client import KieProvider


@dataclass
class ScriptedKie:
    """Gives every request the same answer, and keeps the last request."""

    status: int = 200
    text: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)

    def will_answer(self, golden: dict[str, Any]) -> None:
        self.status = golden["status"]
        text = golden["text"] if "text" in golden else json.dumps(golden["answer"])
        self.text = text.encode()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked = {
            "method": request.method,
            "path": request.path,
            "query": dict(request.query),
            "body": json.loads(body) if body else None,
        }
        return web.Response(status=self.status, body=self.text, headers=self.headers)


@dataclass(frozen=True)
class Wire:
    """The real provider, and the scripted Kie that it uses."""

    provider: KieProvider
    kie: ScriptedKie
    requests: list[tuple[str, str]]  # the endpoints and the codes that the provider reported


@asynccontextmanager
async def scripted_wire(known: KnownModels | None = None) -> AsyncIterator[Wire]:
    kie = ScriptedKie()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", kie.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    url = f"http://{host}:{port}"
    requests: list[tuple[str, str]] = []
    provider = KieProvider(
        url,
        url,
        "a key that is secret",
        lambda endpoint, code, _: requests.append((endpoint, code)),
        known=known,
    )
    yield Wire(provider, kie, requests)
    await provider.close()
    await runner.cleanup()
