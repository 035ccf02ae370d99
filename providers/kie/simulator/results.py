"""The simulated media host: result files, and the links of download-url to them."""

import re
import time
from typing import Final

from aiohttp import web

from providers.kie.simulated import media
from providers.kie.simulated.api import Api
from providers.kie.simulated.faults import ARRIVAL, SENDING
from providers.kie.simulated.rules import INVALID, RefusedError
from providers.kie.simulated.tasks import FINAL_STATES, Task, prompt_of
from providers.kie.simulated.wire import api_answer, envelope, json_object, send_bytes
from providers.kie.simulated.world import World

DOWNLOAD_URL_SECONDS: Final = 20 * 60
RESULT_NAME: Final = re.compile(r"([0-9a-f]{32})_\w{1,20}\.(png|mp4)", re.ASCII)


class Results:
    """The handlers of result files."""

    def __init__(self, world: World, api: Api) -> None:
        self._world = world
        self._api = api

    def routes(self) -> list[web.RouteDef]:
        """Every route of the media host but that of uploads."""
        return [
            web.post("/api/v1/common/download-url", self._download_url),
            web.get("/results/{name}", self._result),
        ]

    async def _download_url(self, request: web.Request) -> web.StreamResponse:
        await self._api.arrived(request)
        try:
            self._api.authorised(request)
            body = await json_object(request)
            path = self._own_path(body.get("url"), self._api.base_url(request))
        except RefusedError as refused:
            return self._api.refusal(request, refused)
        except ValueError as error:
            return self._api.refusal(request, RefusedError(INVALID, str(error)))
        expires = int(time.time()) + DOWNLOAD_URL_SECONDS
        link = f"{self._api.base_url(request)}{path}?expires={expires}"
        return api_answer(envelope(200, "success", link))

    def _own_path(self, url: object, base_url: str) -> str:
        """The path of a result's URL, under whichever of its names this host was asked.

        Raises:
            RefusedError: 422 for any other URL.
        """
        base, _, name = url.rpartition("/results/") if isinstance(url, str) else ("", "", "")
        named = RESULT_NAME.fullmatch(name)
        task = self._world.tasks.get(named[1]) if named else None
        if named is None or base not in {base_url, task and task.base_url}:
            raise RefusedError(INVALID, "url is wrong")
        return f"/results/{name}"

    async def _result(self, request: web.Request) -> web.StreamResponse:
        """A result file; it needs no key, as on the real media hosts."""
        self._api.count(request)
        named = RESULT_NAME.fullmatch(request.match_info["name"])
        task = self._world.tasks.get(named[1]) if named else None
        model = task.kind if task else None
        if answer := await self._api.spoiled(request, "result", ARRIVAL, model):
            return answer
        if named is None or task is None or not self._serves(task, named[2]):
            return web.Response(status=404, text="404 Not Found")
        if _has_expired(request.query.get("expires", "")):
            return web.Response(status=403, text="403 Forbidden")
        truncated = self._world.faults.take("result", SENDING, model) is not None
        content_type = media.CONTENT_TYPES[named[2]]
        return await send_bytes(
            request, _content(task, named[0]), content_type, truncated=truncated
        )

    def _serves(self, task: Task, extension: str) -> bool:
        return task.kind.media == extension and task.state_at(self._world.now_ms()) in FINAL_STATES


def _content(task: Task, name: str) -> bytes:
    if task.kind.media == "mp4":
        return media.mp4(name)
    return media.png(name, task.size, [task.model, prompt_of(task)])


def _has_expired(expires: str) -> bool:
    unix_seconds = int(expires) if re.fullmatch(r"[0-9]{1,12}", expires) else 0
    return bool(expires) and unix_seconds <= time.time()
