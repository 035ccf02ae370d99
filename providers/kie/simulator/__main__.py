"""Run a simulator from the command line until a signal stops it."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from providers.kie.simulator.options import Options, read_options
from providers.kie.simulator.simulator import Simulator


async def serve(options: Options) -> None:
    """Run a simulator until SIGINT or SIGTERM; print its URL when it is ready."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    simulator = Simulator(options.settings)
    for fault in options.faults:
        simulator.add_fault(fault)
    await simulator.start(options.host, options.port)
    print(f"Kie simulator ready on {simulator.url}", flush=True)  # noqa: T201 - scripts wait for it
    await stopped.wait()
    await simulator.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0 after a signal, 1 if the address or the state file cannot be used.
    """
    options = read_options(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=options.log_level, format="%(asctime)s %(message)s"
    )
    try:
        asyncio.run(serve(options))
    except (OSError, ValueError) as error:
        print(f"cannot start: {error}", file=sys.stderr)  # noqa: T201 - the reason of exit 1
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
