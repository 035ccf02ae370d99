"""The simulated media host: result files, and the links to them from download-url."""

import re
import time
from typing import Final

from aiohttp import web

from providers.kie.simulator import media, sound
from providers.kie.simulator.account import Account
from providers.kie.simulator.api import Api
from providers.kie.simulator.faults import ARRIVAL, SENDING
from providers.kie.simulator.rules import INVALID, RefusedError
from providers.kie.simulator.tasks import FINAL_STATES, FRAMES, Task, prompt_of, wants_frames
from providers.kie.simulator.wire import api_answer, envelope, json_object, send_bytes

DOWNLOAD_URL_SECONDS: Final = 20 * 60
RESULT_NAME: Final = re.compile(r"([0-9a-f]{32})_(\w{1,20})\.(png|mp4|wav)", re.ASCII)


class Results:
    """The handlers of result files."""

    def __init__(self, account: Account, api: Api) -> None:
        self._account = account
        self._api = api

    def routes(self) -> list[web.RouteDef]:
        """Return every route of the media host but that of uploads."""
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
        """Return the path of a result's URL, by any of the names of this host.

        Raises:
            RefusedError: 422 for any other URL.
        """
        base, _, name = url.rpartition("/results/") if isinstance(url, str) else ("", "", "")
        named = RESULT_NAME.fullmatch(name)
        task = self._account.tasks.get(named[1]) if named else None
        if named is None or base not in {base_url, task and task.base_url}:
            raise RefusedError(INVALID, "url is wrong")
        return f"/results/{name}"

    async def _result(self, request: web.Request) -> web.StreamResponse:
        """Send a result file; it needs no key, as on the real media hosts."""
        self._api.count(request)
        named = RESULT_NAME.fullmatch(request.match_info["name"])
        task = self._account.tasks.get(named[1]) if named else None
        model = task.kind if task else None
        if answer := await self._api.spoiled(request, "result", ARRIVAL, model):
            return answer
        if named is None or task is None or not self._serves(task, named):
            return web.Response(status=404, text="404 Not Found")
        if _has_expired(request.query.get("expires", "")):
            return web.Response(status=403, text="403 Forbidden")
        truncated = self._account.faults.take("result", SENDING, model) is not None
        content_type = media.CONTENT_TYPES[named[3]]
        return await send_bytes(request, _content(task, named), content_type, truncated=truncated)

    def _serves(self, task: Task, named: re.Match[str]) -> bool:
        is_frame = wants_frames(task) and named[2] in FRAMES
        extension = "png" if is_frame else task.kind.media
        return extension == named[3] and task.state_at(self._account.now_ms()) in FINAL_STATES


def _content(task: Task, named: re.Match[str]) -> bytes:
    name = named[0]
    match named[3]:
        case "mp4":
            return media.mp4(name)
        case "wav":
            return sound.wav(name)
        case _:
            return media.png(name, task.size, [task.model, prompt_of(task)])


def _has_expired(expires: str) -> bool:
    unix_seconds = int(expires) if re.fullmatch(r"[0-9]{1,12}", expires) else 0
    return bool(expires) and unix_seconds <= time.time()
