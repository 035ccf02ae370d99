"""The simulated API host: creates, records and credits.

The HTTP status is 200 even for errors, as in recorded traffic. Every request goes through the same
steps: count it, let a fault spoil it, check the key, check the limits, answer.
"""

import asyncio
import hashlib
import hmac
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from providers.kie.simulator import wire
from providers.kie.simulator.account import Account
from providers.kie.simulator.faults import ACCEPTED, ARRIVAL, FINISHED, PENDING, SUCCEEDED
from providers.kie.simulator.jobs import jobs_order
from providers.kie.simulator.models import MODELS, Model
from providers.kie.simulator.orders import (
    VEO_4K,
    Order,
    mj_extend_order,
    mj_order,
    mj_upscale_order,
    mj_vary_order,
    model_named_in,
    veo_extend_order,
    veo_order,
)
from providers.kie.simulator.records import Record, record_of
from providers.kie.simulator.rules import INVALID, BadFieldError, Body, RefusedError, check
from providers.kie.simulator.tasks import (
    FAIL,
    SUCCESS,
    Task,
    code_and_message,
    directives_in,
    prompt_of,
)
from providers.kie.simulator.wire import api_answer, bearer_of, cut, envelope, json_object

logger = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HD_SECONDS: Final = (2.0, 90.0)
"""How long a 1080P version takes after its video, by default and with `realistic`."""
NOT_VISIBLE: Final = {
    "jobs": envelope(INVALID, "recordInfo is null"),
    "veo": envelope(INVALID, "record is null"),
    "mj": envelope(INVALID, "record is null"),  # a guess: not documented
}
NO_SOURCE: Final = {"veo": "record is null", "mj": "Record does not exist"}
WITHDRAWN_MSG: Final = "The page does not exist or is not published"
DIRECTED_MSG: Final = "Refused by a directive of the prompt"


class Api:
    """The handlers of the API host and of its result files."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def routes(self) -> list[web.RouteDef]:
        """Return every route of the API host."""
        v1 = "/api/v1"
        return [
            web.post(f"{v1}/jobs/createTask", self._creator(jobs_order)),
            web.get(f"{v1}/jobs/recordInfo", self._recorder("jobs")),
            web.post(f"{v1}/veo/generate", self._creator(veo_order)),
            web.get(f"{v1}/veo/record-info", self._recorder("veo")),
            web.post(f"{v1}/veo/extend", self._creator(veo_extend_order)),
            web.get(f"{v1}/veo/get-1080p-video", self._veo_1080p),
            web.post(f"{v1}/veo/get-4k-video", self._creator(self._veo_4k_order)),
            web.post(f"{v1}/mj/generate", self._creator(mj_order)),
            web.get(f"{v1}/mj/record-info", self._recorder("mj")),
            web.post(f"{v1}/mj/generateUpscale", self._creator(mj_upscale_order)),
            web.post(f"{v1}/mj/generateVary", self._creator(mj_vary_order)),
            web.post(f"{v1}/mj/generateVideoExtend", self._creator(mj_extend_order)),
            web.get(f"{v1}/chat/credit", self._credit),
        ]

    def _creator(self, read: Callable[[Body], Order]) -> Handler:
        """Return a handler that places the order that `read` finds in the request's body."""

        async def create(request: web.Request) -> web.StreamResponse:
            await self.arrived(request)
            self._account.limits.note_create()
            try:
                body = await json_object(request)
            except ValueError as error:
                return self.refusal(request, RefusedError(INVALID, str(error)))
            model = model_named_in(request.path, body)
            if answer := await self.spoiled(request, "create", ARRIVAL, model):
                return answer
            try:
                task = self._bought(request, read, body, model)
            except RefusedError as refused:
                return self.refusal(request, refused)
            if "lost" in directives_in(prompt_of(task)):
                return cut(request)
            if answer := await self.spoiled(request, "create", ACCEPTED, model, taskId=task.id):
                return answer
            return api_answer(envelope(200, "success", _created(task)))

        return create

    def _bought(
        self,
        request: web.Request,
        read: Callable[[Body], Order],
        body: Body,
        model: Model | None,
    ) -> Task:
        self._account.limits.admit_create(self.authorised(request))
        if model and model.name in self._account.settings.withdrawn_models:
            raise RefusedError(INVALID, WITHDRAWN_MSG)
        order = read(body)
        if wish := directives_in(order.prompt).get("create"):
            code, msg = code_and_message(wish, "500", DIRECTED_MSG)
            raise RefusedError(int(code), msg)
        if order.source_id:
            self._finished_task(order.source_id, order.model.api)
        if order.model.name == "veo_extend" and self._account.is_upscaled(order.source_id or ""):
            raise RefusedError(INVALID, "A video that went through 1080P cannot be extended")
        return self._account.buy(order, self.base_url(request))

    def refusal(self, request: web.Request, refused: RefusedError) -> web.Response:
        """Return the answer to a request for which nothing is bought."""
        settings, code = self._account.settings, refused.code
        if isinstance(refused, BadFieldError) and request.path.endswith("/jobs/createTask"):
            code = settings.jobs_validation_code
        if request.method == "POST":
            self._account.counts.refused[code] += 1
            logger.info("simulator: %s refused: %s %r", request.path, code, refused.msg)
        status = 429 if settings.http_429 and code == 429 else 200  # noqa: PLR2004
        return api_answer(envelope(code, refused.msg, refused.data), status)

    def _recorder(self, api: str) -> Handler:
        """Return a handler that shows the records of one API."""

        async def record(request: web.Request) -> web.StreamResponse:
            await self.arrived(request)
            self._account.limits.note_record()
            task = self._account.tasks.get(request.query.get("taskId", ""))
            if task:
                self._account.tasks.note_poll(task.id, self._account.now_ms())
            if answer := await self._spoiled_record(request, task, api):
                return answer
            try:
                self._account.limits.admit_record(self.authorised(request))
            except RefusedError as refused:
                return self.refusal(request, refused)
            shown = self._shown(task, api)
            return api_answer(envelope(200, "success", shown) if shown else NOT_VISIBLE[api])

        return record

    async def _spoiled_record(
        self, request: web.Request, task: Task | None, api: str
    ) -> web.StreamResponse | None:
        model, task_id = task.kind if task else None, request.query.get("taskId", "")
        return await self.spoiled(
            request, "record", ARRIVAL, model, NOT_VISIBLE[api], taskId=task_id
        )

    def _shown(self, task: Task | None, api: str) -> Record | None:
        """Return the record of a task; None while it is not visible."""
        now_ms = self._account.now_ms()
        if task is None or task.kind.api != api or now_ms < task.visible_ms:
            return None
        moment = {SUCCESS: SUCCEEDED, FAIL: FINISHED}.get(task.state_at(now_ms), PENDING)
        fault = self._account.faults.take("record", moment, task.kind)
        return record_of(task, now_ms, self._account.settings, fault)

    async def _veo_1080p(self, request: web.Request) -> web.StreamResponse:
        await self.arrived(request)
        task = self._account.tasks.get(request.query.get("taskId", ""))
        if answer := await self._spoiled_record(request, task, "veo"):
            return answer
        try:
            self.authorised(request)
            url = self._url_in_1080p(request)
        except RefusedError as refused:
            return self.refusal(request, refused)
        return api_answer(envelope(200, "success", {"resultUrl": url}))

    def _url_in_1080p(self, request: web.Request) -> str:
        task = self._finished_task(request.query.get("taskId", ""), "veo")
        assert task.ends_ms is not None
        self._account.note_upscaled(task.id)
        settings = self._account.settings
        seconds = HD_SECONDS[settings.realistic] / settings.speed
        if self._account.now_ms() < task.ends_ms + seconds * 1000:
            msg = (
                "1080P is processing. It should be ready in 1-2 minutes. Please check back shortly."
            )
            raise RefusedError(400, msg)
        index = request.query.get("index") or "0"
        if index not in {"0", "1", "2", "3"}:
            raise RefusedError(INVALID, "index must be a whole number from 0 to 3")
        return f"{task.base_url}/results/{task.id}_{index}_1080p.mp4"

    def _veo_4k_order(self, body: Body) -> Order:
        """Return the order of a 4K version; a repeated request is an error with data."""
        check(body, VEO_4K, required=("taskId",))
        place = f"4k/{body['taskId']}/{body.get('index') or 0}"
        only_id = hashlib.sha256(place.encode()).hexdigest()[:32]
        earlier = self._account.tasks.get(only_id)
        state = earlier.state_at(self._account.now_ms()) if earlier else FAIL
        if earlier and state == SUCCESS:
            msg = "The video has been generated successfully"
            raise RefusedError(INVALID, msg, _in_4k(earlier, earlier.result_urls))
        if earlier and state != FAIL:
            msg = "4k is processing. It should be ready in 5-10 minutes. Please check back shortly."
            raise RefusedError(INVALID, msg, _in_4k(earlier, None))
        model, source_id = MODELS["veo_4k"], body["taskId"]
        return Order(model=model, body=body, source_id=source_id, only_id=only_id)

    def _finished_task(self, task_id: str, api: str) -> Task:
        """Return a task that another order builds on.

        Raises:
            RefusedError: 422 if there is none, or it has not succeeded.
        """
        task = self._account.tasks.get(task_id)
        if task is None or task.kind.api != api:
            raise RefusedError(INVALID, NO_SOURCE[api])
        if task.state_at(self._account.now_ms()) != SUCCESS:
            raise RefusedError(INVALID, "record status is not success")
        return task

    async def _credit(self, request: web.Request) -> web.StreamResponse:
        await self.arrived(request)
        if answer := await self.spoiled(request, "credit", ARRIVAL, None):
            return answer
        try:
            self.authorised(request)
        except RefusedError as refused:
            return self.refusal(request, refused)
        return api_answer(envelope(200, "success", self._account.balance))

    def authorised(self, request: web.Request) -> str:
        """Return the request's bearer key.

        Raises:
            RefusedError: 401.
        """
        key, only_key = bearer_of(request), self._account.settings.api_key
        if key is None or (only_key is not None and not _same(key, only_key)):
            raise RefusedError(401, "You do not have access permissions")
        return key

    def base_url(self, request: web.Request) -> str:
        """Return the base URL of this simulator's files as the client of `request` sees it."""
        here = self._account.settings.public_url or f"{request.scheme}://{request.host}"
        return here.rstrip("/")

    async def arrived(self, request: web.Request) -> None:
        """Count a request, and delay it as the API would."""
        self.count(request)
        low, high = self._account.settings.latency
        if high:
            await asyncio.sleep(random.uniform(low, high))

    def count(self, request: web.Request) -> None:
        """Count a request by its path."""
        resource = request.match_info.route.resource
        assert resource is not None
        self._account.counts.requests[resource.canonical] += 1

    async def spoiled(
        self,
        request: web.Request,
        endpoint: str,
        moment: str,
        model: Model | None,
        not_found: Mapping[str, Any] | None = None,
        **values: str,
    ) -> web.StreamResponse | None:
        """Return the answer that a fault gives instead of the right one, or None."""
        rule = self._account.faults.take(endpoint, moment, model)
        if rule is None:
            return None
        logger.info("simulator: fault on %s: %s", request.path, rule.kind)
        return await wire.spoiled(rule, request, not_found, **values)


def _created(task: Task) -> dict[str, Any]:
    """Return the `data` of a create's answer."""
    if task.kind.api == "jobs":
        return {"taskId": task.id, "recordId": task.id}
    return _in_4k(task, None) if task.model == "veo_4k" else {"taskId": task.id}


def _in_4k(task: Task, urls: list[str] | None) -> dict[str, Any]:
    return {"taskId": task.id, "resultUrls": urls, "imageUrls": None if urls is None else []}


def _same(key: str, other: str) -> bool:
    """Return whether two keys are equal, compared in constant time."""
    return hmac.compare_digest(key.encode(), other.encode())
