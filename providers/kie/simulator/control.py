"""The simulator's own endpoints under /simulator/: inspect it, change it, and inject faults.

They need no key. Bad input is answered with HTTP 400 and `{"error": "..."}`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web

from providers.kie.simulator.account import Account
from providers.kie.simulator.faults import FaultRule, fault_from_json, parse_fault
from providers.kie.simulator.tasks import FAILED_CODE, FAILED_MSG, SUCCESS
from providers.kie.simulator.wire import json_object, read_json

TASKS_SHOWN_DEFAULT: Final = 1_000
FINISH_FIELDS: Final = {"state", "failCode", "failMsg", "urls", "callback"}


class Control:
    """The handlers under /simulator/."""

    def __init__(self, account: Account, reset: Callable[[], None]) -> None:
        self._account = account
        self._reset = reset

    def routes(self) -> list[web.RouteDef]:
        """Return every route under /simulator/."""
        return [
            web.get("/simulator/stats", self._stats),
            web.get("/simulator/tasks", self._tasks),
            web.get("/simulator/tasks/{id}", self._task),
            web.post("/simulator/tasks/{id}/finish", self._finish),
            web.get("/simulator/faults", self._faults),
            web.post("/simulator/faults", self._add_faults),
            web.put("/simulator/faults", self._replace_faults),
            web.delete("/simulator/faults", self._clear_faults),
            web.delete("/simulator/faults/{id:[0-9]+}", self._clear_fault),
            web.get("/simulator/settings", self._settings),
            web.patch("/simulator/settings", self._change_settings),
            web.post("/simulator/reset", self._reset_all),
        ]

    async def _stats(self, _: web.Request) -> web.Response:
        return web.json_response(self._account.stats())

    async def _tasks(self, request: web.Request) -> web.Response:
        """List the newest tasks, oldest first: `?model=`, `?limit=` (0 = all), `?offset=`."""
        limit = _count_in(request.query, "limit", TASKS_SHOWN_DEFAULT)
        offset = _count_in(request.query, "offset", 0)
        model = request.query.get("model")
        chosen = [task for task in self._account.tasks if model in {None, task.model}]
        newest = chosen[: len(chosen) - offset] if offset else chosen
        shown = newest[-limit:] if limit else newest
        rows = [self._account.listed(task) for task in shown]
        return web.json_response({"total": len(chosen), "tasks": rows})

    async def _task(self, request: web.Request) -> web.Response:
        task = self._account.tasks.get(request.match_info["id"])
        if task is None:
            return no_such_task(request.match_info["id"])
        return web.json_response(self._account.listed(task))

    async def _finish(self, request: web.Request) -> web.Response:
        """End a task now: `{"state", "failCode", "failMsg", "urls", "callback"}`, all optional."""
        given = await json_object(request) if request.can_read_body else {}
        task_id = request.match_info["id"]
        try:
            task = self._account.finish(task_id, **_finish_arguments(given))
        except KeyError:
            return no_such_task(task_id)
        return web.json_response(self._account.listed(task))

    async def _faults(self, _: web.Request) -> web.Response:
        return web.json_response({"faults": self._account.faults.listed()})

    async def _add_faults(self, request: web.Request) -> web.Response:
        rules = _rules_in(await read_json(request))
        for rule in rules:
            self._account.faults.add(rule)
        return await self._faults(request)

    async def _replace_faults(self, request: web.Request) -> web.Response:
        rules = _rules_in(await read_json(request))
        self._account.faults.clear()
        for rule in rules:
            self._account.faults.add(rule)
        return await self._faults(request)

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._account.faults.clear()
        return await self._faults(request)

    async def _clear_fault(self, request: web.Request) -> web.Response:
        if not self._account.faults.clear(int(request.match_info["id"])):
            return failure(404, "no such fault; it may be used up")
        return await self._faults(request)

    async def _settings(self, _: web.Request) -> web.Response:
        shown = self._account.settings.shown()
        return web.json_response({**shown, "balance": self._account.balance})

    async def _change_settings(self, request: web.Request) -> web.Response:
        self._account.update(await json_object(request))
        return await self._settings(request)

    async def _reset_all(self, request: web.Request) -> web.Response:
        self._reset()
        return await self._stats(request)


@web.middleware
async def answer_bad_input(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    """Answer an invalid request to these endpoints with HTTP 400 and the reason."""
    if not request.path.startswith("/simulator/"):
        answer: web.StreamResponse = await handler(request)
        return answer
    try:
        answer = await handler(request)
    except ValueError as error:
        return failure(400, str(error))
    return answer


def failure(status: int, message: str) -> web.Response:
    """Return an answer that says what is wrong."""
    return web.json_response({"error": message}, status=status)


def no_such_task(task_id: str) -> web.Response:
    """Return the answer for an unknown task."""
    return failure(404, f"no task {task_id!r}")


def _rules_in(value: object) -> list[FaultRule]:
    """Read one fault or a list, each an object or a specification as on the command line."""
    items = value if isinstance(value, list) else [value]
    return [_rule_in(item) for item in items]


def _rule_in(item: object) -> FaultRule:
    if isinstance(item, str):
        return parse_fault(item)
    if isinstance(item, dict):
        return fault_from_json(item)
    raise ValueError("a fault must be an object or a string ENDPOINT:KIND[,name=value...]")


def _finish_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := set(given) - FINISH_FIELDS:
        raise ValueError(f"unknown {min(unknown)}: one of {', '.join(sorted(FINISH_FIELDS))}")
    urls = given.get("urls")
    if urls is not None and not (isinstance(urls, list) and all(isinstance(u, str) for u in urls)):
        raise ValueError("urls must be a list of strings")
    return {
        "state": given.get("state", SUCCESS),
        "code": str(given.get("failCode", FAILED_CODE)),
        "msg": str(given.get("failMsg", FAILED_MSG)),
        "urls": urls,
        "callback": bool(given.get("callback", True)),
    }


def _count_in(query: Mapping[str, str], name: str, default: int) -> int:
    value = query.get(name, str(default))
    if not value.isdecimal():
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return int(value)
