"""A look-alike of Kie.ai on a socket, for development, demonstrations and tests.

    python -m providers.kie.simulator --port 8099

One port serves the API host, the upload host and the media hosts, so a Kie client needs nothing
but its two base URLs changed. It answers in the shapes seen in recorded traffic, keeps Kie's
limits, and misbehaves on order: see docs/simulator.md.

    module                  what it holds
    simulator               starting, stopping, the Python API, the command line
    simulated.options       the command line's options
    simulated.settings      everything that can be set
    simulated.models        names, families, prices, durations
    simulated.rules         what is accepted as an order
    simulated.tasks         a task's course, and the book that remembers tasks
    simulated.records       records and callbacks as seen from outside
    simulated.faults        what may go wrong, where and how often
    simulated.exact         messages of any shape, byte for byte
    simulated.callbacks     sending callbacks
    simulated.world         the account: tasks, limits, counters
    simulated.ledger        its money
    simulated.windows       counting against limits
    simulated.wire          envelopes, bounded bodies, spoiled answers
    simulated.api           handlers of the API host
    simulated.results       handlers of the media host
    simulated.uploads       handlers of the upload host
    simulated.files         the uploaded files
    simulated.addresses     ports that earlier links name
    simulated.control       handlers under /simulator/
    simulated.media         sample results
    simulated.lettering     the words on them
"""

import asyncio
import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from aiohttp import web

from providers.kie.simulated.addresses import base_urls_by_port, url_of
from providers.kie.simulated.api import Api
from providers.kie.simulated.control import Control, answer_bad_input
from providers.kie.simulated.faults import FaultRule, parse_fault
from providers.kie.simulated.files import FileStore
from providers.kie.simulated.options import Given, read_options
from providers.kie.simulated.results import Results
from providers.kie.simulated.settings import SimulatorSettings
from providers.kie.simulated.tasks import FAILED_CODE, FAILED_MSG, SUCCESS
from providers.kie.simulated.uploads import Uploads
from providers.kie.simulated.wire import answer_in_gzip, api_answer, envelope
from providers.kie.simulated.world import World

__all__ = ["FaultRule", "Simulator", "SimulatorSettings", "main", "parse_fault"]

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 0.1
"""How long a request in progress may take to end when the simulator stops."""


class Simulator:
    """A simulated Kie.ai in this process.

    async with Simulator(SimulatorSettings(speed=100)) as kie:
        client = KieClient(api_url=kie.url, upload_url=kie.url, api_key="any")
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self._settings = settings or SimulatorSettings()
        self._world = World(self._settings)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: FileStore | None = None
        self._runner: web.AppRunner | None = None
        self._url: str | None = None
        self._at_work: set[asyncio.Task[Any]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Serve on `host` and `port`; 0 picks a free port, which `url` then names.

        With a state file, 0 picks the ports that the links of remembered results and uploads name,
        the newest first, and a new one only if none of them is free.

        Raises:
            OSError: the address cannot be served on.
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
        self._world.resume(lost_urls, self._url)

    def _files_folder(self) -> Path:
        if lasting := self._settings.files_folder:
            return lasting
        self._folder = tempfile.TemporaryDirectory(prefix="kie-simulator-")
        return Path(self._folder.name)

    async def _listen(
        self, runner: web.AppRunner, host: str, port: int, files: FileStore
    ) -> list[str]:
        """Open the ports; return the base URLs of earlier links that are served no more."""
        links = [*(task.base_url for task in self._world.tasks), *files.base_urls]
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
        await self._world.stop()
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
        """The settings in force."""
        return self._world.settings

    @property
    def stats(self) -> dict[str, Any]:
        """The counters, as GET /simulator/stats shows them."""
        return self._world.stats()

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """All tasks, oldest first, as GET /simulator/tasks shows them."""
        return [self._world.listed(task) for task in self._world.tasks]

    @property
    def faults(self) -> list[dict[str, Any]]:
        """The faults in force, as GET /simulator/faults shows them."""
        return self._world.faults.listed()

    def add_fault(self, fault: FaultRule | str) -> int:
        """Put a fault in force: a rule, or a specification as on the command line.

        Returns:
            Its number, for `clear_faults`.

        Raises:
            ValueError: the specification is wrong.
        """
        rule = parse_fault(fault) if isinstance(fault, str) else fault
        return self._world.faults.add(rule)

    def clear_faults(self, number: int | None = None) -> None:
        """Forget one fault, or all of them."""
        self._world.faults.clear(number)

    def update(self, **changes: Any) -> None:
        """Change settings: fields of `SimulatorSettings`; `credits` becomes the balance.

        Raises:
            ValueError: naming the setting that is unknown, fixed at start or does not fit.
        """
        self._world.update(changes)

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
        """End a task now, or end it anew, and send its callback.

        Args:
            task_id: the task.
            state: `success` or `fail`.
            code: the failure's code.
            msg: the failure's message.
            urls: results in place of the drawn ones; an empty list is a success without any.
            callback: whether its callback is sent, if it has a URL for that.

        Returns:
            The task, as GET /simulator/tasks/{id} shows it.

        Raises:
            KeyError: there is no such task.
            ValueError: `state` is neither.
        """
        task = self._world.finish(
            task_id, state=state, code=code, msg=msg, urls=urls, callback=callback
        )
        return self._world.listed(task)

    def reset(self) -> None:
        """Forget tasks, faults, counts, uploads and changed settings."""
        self._world.reset(self._settings)
        if self._files:
            self._files.clear()

    async def callbacks_idle(self) -> None:
        """Wait until no callback is under way; planned ones do not count."""
        await self._world.callbacks.idle()

    @web.middleware
    async def _track(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        """Know every request at work: one whose client has gone is worked off all the same."""
        work = asyncio.current_task()
        assert work is not None
        self._at_work.add(work)
        try:
            answer: web.StreamResponse = await handler(request)
        finally:
            self._at_work.discard(work)
        return answer

    async def _cancel_abandoned(self) -> None:
        """End the requests that the runner has forgotten, because their clients have gone."""
        for work in self._at_work:
            work.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)

    def _application(self, files: FileStore) -> web.Application:
        application = web.Application(
            middlewares=[self._track, answer_in_gzip, answer_bad_input, answer_unknown_paths]
        )
        api = Api(self._world)
        application.add_routes(api.routes())
        application.add_routes(Results(self._world, api).routes())
        application.add_routes(Uploads(self._world, api, files).routes())
        application.add_routes(Control(self._world, self.reset).routes())
        return application


@web.middleware
async def answer_unknown_paths(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    """Answer what no handler serves, or only for another method, with an envelope and its status.

    The documents give codes 404 and 405; that HTTP says so too is reported of the API host.
    """
    try:
        answer: web.StreamResponse = await handler(request)
    except web.HTTPException as error:
        return api_answer(envelope(error.status, error.reason), error.status)
    return answer


async def serve(given: Given) -> None:
    """Run a simulator until SIGINT or SIGTERM; its URL is printed when it is ready."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    simulator = Simulator(given.settings)
    for fault in given.faults:
        simulator.add_fault(fault)
    await simulator.start(given.host, given.port)
    print(f"Kie simulator ready on {simulator.url}", flush=True)  # noqa: T201 - for whom it waits
    await stopped.wait()
    await simulator.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        The exit status: 0 after a signal, 1 if the address or the state file is of no use.
    """
    given = read_options(arguments)
    logging.basicConfig(stream=sys.stderr, level=given.log_level, format="%(asctime)s %(message)s")
    try:
        asyncio.run(serve(given))
    except (OSError, ValueError) as error:
        print(f"cannot start: {error}", file=sys.stderr)  # noqa: T201 - the reason of exit 1
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
