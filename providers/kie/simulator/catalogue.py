"""The catalogue API: which models there are, and the schema, price and success rate of each.

All four share one limit for each key. As everywhere on this host, an error is HTTP 200 with a code.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from providers.kie.simulator.account import Account
from providers.kie.simulator.api import Api, Handler
from providers.kie.simulator.facts import ModelFacts, all_facts
from providers.kie.simulator.faults import ARRIVAL, SENDING
from providers.kie.simulator.jobs import UNKNOWN_MODEL
from providers.kie.simulator.models import MODELS
from providers.kie.simulator.rules import RefusedError
from providers.kie.simulator.schemas import document_of
from providers.kie.simulator.tasks import Task
from providers.kie.simulator.wire import api_answer, envelope

POINT_MS: Final = 10 * 60 * 1000
POINTS: Final = 144
NORMAL_PERCENT: Final = 90.0
"""From which success rate on a model counts as normal: a guess."""


class Catalogue:
    """The handlers of the catalogue."""

    def __init__(self, account: Account, api: Api) -> None:
        self._account = account
        self._api = api

    def routes(self) -> list[web.RouteDef]:
        """Return every route of the catalogue; the slashes of a model's id are part of its path."""
        models = "/api/v1/models"
        one = f"{models}/{{model:.+}}"
        return [
            web.get(models, self._handler("catalogue", self._list)),
            web.get(f"{one}/schema", self._handler("schema", self._schema)),
            web.get(f"{one}/price", self._handler("schema", self._price)),
            web.get(f"{one}/success-rate", self._handler("schema", self._success_rate)),
        ]

    def _handler(self, endpoint: str, data_of: Callable[[web.Request], object]) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            await self._api.arrived(request)
            self._account.limits.note_catalogue()
            model = MODELS.get(request.match_info.get("model", ""))
            if spoiled := await self._api.spoiled(request, endpoint, ARRIVAL, model):
                return spoiled
            try:
                self._account.limits.admit_catalogue(self._api.authorised(request))
                data = data_of(request)
            except RefusedError as refused:
                return self._api.refusal(request, refused)
            return api_answer(envelope(200, "success", data))

        return answer

    def _list(self, request: web.Request) -> dict[str, Any]:
        """List the models that match `taskType` (any of a comma list), `provider` and `q`."""
        task_types = {text.strip() for text in request.query.get("taskType", "").split(",")} - {""}
        provider, text = request.query.get("provider", ""), request.query.get("q", "").casefold()
        rows = [
            _row(facts)
            for facts in all_facts().values()
            if self._lists(facts)
            and (not task_types or task_types & set(facts.task_types))
            and provider.casefold() in {"", facts.provider.casefold()}
            and text in f"{facts.id}\n{facts.title}\n{facts.provider}".casefold()
        ]
        if fault := self._account.faults.take("catalogue", SENDING, None):
            rows = _fewer_or_other(rows, fault.kind, fault.share)
        return {"total": len(rows), "models": rows}

    def _schema(self, request: web.Request) -> dict[str, Any]:
        facts = self._listed(request)
        fault = self._account.faults.take("schema", SENDING, MODELS.get(facts.id))
        return {"model": facts.id, "openapi": document_of(facts, fault.kind if fault else None)}

    def _price(self, request: web.Request) -> dict[str, Any]:
        facts = self._listed(request)
        return {"model": facts.id, "pricingDesc": facts.price_text}

    def _success_rate(self, request: web.Request) -> dict[str, Any]:
        name = self._listed(request).id
        tasks = [task for task in self._account.tasks if task.model == name]
        return {"model": name, "points": _points(tasks, self._account.now_ms())}

    def _lists(self, facts: ModelFacts) -> bool:
        return facts.is_listed and facts.id not in self._account.settings.withdrawn_models

    def _listed(self, request: web.Request) -> ModelFacts:
        """Return the facts of the model that a path names.

        Raises:
            RefusedError: 404 if the catalogue does not list it.
        """
        facts = all_facts().get(request.match_info["model"])
        if facts is None or not self._lists(facts) or "%2f" in request.rel_url.raw_path.lower():
            raise RefusedError(404, UNKNOWN_MODEL)
        return facts


def _row(facts: ModelFacts) -> dict[str, Any]:
    return {
        "model": facts.id,
        "slug": facts.id,
        "title": facts.title,
        "provider": facts.provider,
        "taskType": list(facts.task_types),
        "description": None,
        "pricingDesc": facts.price_text,
    }


def _fewer_or_other(rows: list[dict[str, Any]], kind: str, share: float) -> list[dict[str, Any]]:
    """Return what a fault leaves of the list."""
    match kind:
        case "fewer_models":
            return [row for at, row in enumerate(rows) if int((at + 1) * share) > int(at * share)]
        case "no_models":
            return []
        case "other_models":
            return [
                {**row, "model": f"other/{row['model']}", "slug": f"other/{row['slug']}"}
                for row in rows
            ]
        case _:
            raise AssertionError(f"{kind} does not alter a list")


def _points(tasks: Sequence[Task], now_ms: int) -> list[dict[str, Any]]:
    """Return the rates of the last 24 hours in points of ten minutes; none if no task ended."""
    first = now_ms // POINT_MS - POINTS + 1
    ended: dict[int, list[bool]] = {}
    for task in tasks:
        if task.ends_ms is not None and first * POINT_MS <= task.ends_ms <= now_ms:
            ended.setdefault(task.ends_ms // POINT_MS, []).append(task.succeeds)
    return [_point(at, ended.get(at, [])) for at in range(first, first + POINTS)] if ended else []


def _point(number: int, ends: Sequence[bool]) -> dict[str, Any]:
    rate = round(100 * sum(ends) / len(ends), 2) if ends else None
    return {
        "start": _iso(number * POINT_MS),
        "end": _iso((number + 1) * POINT_MS),
        "successRate": rate,
        "errorRate": None if rate is None else round(100 - rate, 2),
        "isNormal": rate is None or rate >= NORMAL_PERCENT,
    }


def _iso(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
