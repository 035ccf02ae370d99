"""Start and stop a simulator, and the Python API to it."""

import asyncio
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from providers.kie.simulator.account import Account
from providers.kie.simulator.addresses import base_urls_by_port, url_of
from providers.kie.simulator.api import Api
from providers.kie.simulator.catalogue import Catalogue
from providers.kie.simulator.control import Control, answer_bad_input
from providers.kie.simulator.faults import FaultRule, parse_fault
from providers.kie.simulator.files import FileStore
from providers.kie.simulator.results import Results
from providers.kie.simulator.settings import SimulatorSettings
from providers.kie.simulator.tasks import FAILED_CODE, FAILED_MSG, SUCCESS
from providers.kie.simulator.uploads import Uploads
from providers.kie.simulator.wire import answer_in_gzip, api_answer, envelope

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 0.1
"""How long requests in progress may take to finish when the simulator stops."""


class Simulator:
    """A simulated Kie.ai in this process.

    async with Simulator(SimulatorSettings(speed=100)) as kie:
        provider = KieProvider(kie.url, kie.url, "any key")
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self._settings = settings or SimulatorSettings()
        self._account = Account(self._settings)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: FileStore | None = None
        self._runner: web.AppRunner | None = None
        self._url: str | None = None
        self._at_work: set[asyncio.Task[Any]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve on `host` and `port`; 0 picks a free port, which `url` then reports.

        With a state file, 0 picks the ports that links to kept results and uploads use, the newest
        first, and a new one only if none of them is free.

        Raises:
            OSError: The address cannot be served on.
        """
        assert self._runner is None, "a simulator starts once"
        files = self._files = FileStore(self._files_folder())
        self._runner = web.AppRunner(
            self._application(files), shutdown_timeout=STOP_SECONDS, access_log=None
        )
        try:
            await self._runner.setup()
            lost_urls = await self._listen(self._runner, host, port, files)
        except BaseException:
            await self.stop()
            raise
        self._url = url_of(self._runner.addresses[0])
        self._account.resume(lost_urls, self._url)

    def _files_folder(self) -> Path:
        if lasting := self._settings.files_folder:
            return lasting
        self._folder = tempfile.TemporaryDirectory(prefix="kie-simulator-")
        return Path(self._folder.name)

    async def _listen(
        self, runner: web.AppRunner, host: str, port: int, files: FileStore
    ) -> list[str]:
        """Open the ports; return the base URLs of earlier links that are no longer served."""
        links = [*(task.base_url for task in self._account.tasks), *files.base_urls]
        earlier = {} if port or self._settings.public_url else base_urls_by_port(links)
        lost_urls: list[str] = []
        for number, urls in earlier.items():
            site = web.TCPSite(runner, host, number)
            try:
                await site.start()
            except OSError:
                await site.stop()
                lost_urls += urls
                logger.warning(
                    "port %s is in use: links to earlier results and uploads with that port do not "
                    "work until a restart finds it free; records name the new port instead",
                    number,
                )
        if not runner.sites:
            await web.TCPSite(runner, host, port).start()
        return lost_urls

    async def stop(self) -> None:
        """Stop serving and sending; a request in progress is cut off.

        Uploads are dropped unless there is a state file.
        """
        await self._account.stop()
        if self._runner:
            await self._runner.cleanup()
        await self._cancel_abandoned()
        if self._folder:
            self._folder.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """The base URL of every host that is simulated, without a trailing slash."""
        assert self._url is not None, "the simulator has not started"
        return self._url

    @property
    def settings(self) -> SimulatorSettings:
        """The current settings."""
        return self._account.settings

    @property
    def stats(self) -> dict[str, Any]:
        """The counters, as GET /simulator/stats shows them."""
        return self._account.stats()

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """All tasks, oldest first, as GET /simulator/tasks shows them."""
        return [self._account.listed(task) for task in self._account.tasks]

    @property
    def faults(self) -> list[dict[str, Any]]:
        """The active faults, as GET /simulator/faults shows them."""
        return self._account.faults.listed()

    def add_fault(self, fault: FaultRule | str) -> int:
        """Add a fault: a rule, or a specification as on the command line.

        Returns:
            Its number, for `clear_faults`.

        Raises:
            ValueError: The specification is wrong.
        """
        rule = parse_fault(fault) if isinstance(fault, str) else fault
        return self._account.faults.add(rule)

    def clear_faults(self, number: int | None = None) -> None:
        """Forget one fault, or all of them."""
        self._account.faults.clear(number)

    def update(self, **changes: Any) -> None:
        """Change settings: fields of `SimulatorSettings`; `credits` becomes the balance.

        Raises:
            ValueError: A setting is unknown, fixed at start or invalid; the message names it.
        """
        self._account.update(changes)

    def finish(
        self,
        task_id: str,
        *,
        state: str = SUCCESS,
        code: str = FAILED_CODE,
        msg: str = FAILED_MSG,
        urls: list[str] | None = None,
        callback: bool = True,
    ) -> dict[str, Any]:
        """End a task now, or change how it ended, and send its callback.

        Args:
            task_id: The task.
            state: `success` or `fail`.
            code: The failure's code.
            msg: The failure's message.
            urls: Results instead of the sample ones; an empty list is a success without results.
            callback: Whether its callback is sent, if it has a URL for that.

        Returns:
            The task, as GET /simulator/tasks/{id} shows it.

        Raises:
            KeyError: There is no such task.
            ValueError: `state` is neither.
        """
        task = self._account.finish(
            task_id, state=state, code=code, msg=msg, urls=urls, callback=callback
        )
        return self._account.listed(task)

    def reset(self) -> None:
        """Forget tasks, faults, counts, uploads and changed settings."""
        self._account.reset(self._settings)
        if self._files:
            self._files.clear()

    async def callbacks_idle(self) -> None:
        """Wait until no callback is in progress; scheduled ones do not count."""
        await self._account.callbacks.idle()

    @web.middleware
    async def _track(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        """Keep track of every handler: one whose client has disconnected still runs."""
        work = asyncio.current_task()
        assert work is not None
        self._at_work.add(work)
        try:
            answer: web.StreamResponse = await handler(request)
        finally:
            self._at_work.discard(work)
        return answer

    async def _cancel_abandoned(self) -> None:
        """Cancel the handlers whose clients have disconnected: the runner no longer knows them."""
        for work in self._at_work:
            work.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)

    def _application(self, files: FileStore) -> web.Application:
        application = web.Application(
            middlewares=[self._track, answer_in_gzip, answer_bad_input, answer_unknown_paths]
        )
        api = Api(self._account)
        application.add_routes(api.routes())
        application.add_routes(Catalogue(self._account, api).routes())
        application.add_routes(Results(self._account, api).routes())
        application.add_routes(Uploads(self._account, api, files).routes())
        application.add_routes(Control(self._account, self.reset).routes())
        return application


@web.middleware
async def answer_unknown_paths(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    """Answer unknown paths and methods with an envelope whose code is also the HTTP status.

    Kie documents the codes 404 and 405; its API host reportedly sends them as the HTTP status, too.
    """
    try:
        answer: web.StreamResponse = await handler(request)
    except web.HTTPException as error:
        return api_answer(envelope(error.status, error.reason), error.status)
    return answer
