"""The simulator's command line: one option per setting, and where to listen."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from providers.kie.simulator.faults import ALL_KINDS, FaultRule, parse_fault
from providers.kie.simulator.settings import SimulatorSettings
from providers.kie.simulator.tasks import DIRECTIVES

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8099

EXAMPLES: Final = f"""\
examples:
  with the defaults       python -m providers.kie.simulator --port 8099
  as slow as the real Kie python -m providers.kie.simulator --realistic
  lose every third answer python -m providers.kie.simulator \\
                            --fault create:accept_then_reset,times=0,probability=0.33
  refuse Veo for a while  python -m providers.kie.simulator \\
                            --fault 'create:code,code=455,msg=Maintenance,family=veo3,times=5'
  send any answer         python -m providers.kie.simulator \\
                            --fault '{{"endpoint":"record","kind":"exact","exact":{{"body":""}}}}'

fault kinds: {", ".join(ALL_KINDS)}

directives in a prompt: {", ".join(f"[sim:{name}]" for name in DIRECTIVES)}

Point a client's API and upload base URLs at the printed URL; any non-empty key works. Inspect
and change it while it runs under /simulator/: stats, tasks, faults, settings, reset. See
docs/simulator.md.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line."""

    host: str
    port: int
    log_level: str
    faults: Sequence[FaultRule]
    settings: SimulatorSettings


def read_options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; an error ends the process with status 2 and the reason."""
    parser = argparse.ArgumentParser(
        prog="python -m providers.kie.simulator",
        description="A simulator of Kie.ai: API, uploads, results and callbacks.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _add_listening(parser)
    _add_course(parser.add_argument_group("the course of a task"))
    _add_account(parser.add_argument_group("the account"))
    _add_callbacks(parser.add_argument_group("callbacks"))
    _add_files(parser.add_argument_group("files"))
    values = vars(parser.parse_args(arguments))
    try:
        settings = SimulatorSettings(**_settings_in(values))
    except ValueError as error:
        parser.error(str(error))
    return Options(values["host"], values["port"], values["log_level"], values["fault"], settings)


def _settings_in(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were given; repeated NAME=VALUE options as tables."""
    names = {item.name for item in fields(SimulatorSettings)}
    given = {name: value for name, value in values.items() if name in names}
    return given | {name: dict(given[name]) for name in ("seconds", "costs") if name in given}


def _add_listening(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default=DEFAULT_HOST, help=f"address to listen on ({DEFAULT_HOST})")
    add("--port", type=int, default=DEFAULT_PORT, help=f"0 picks a free one ({DEFAULT_PORT})")
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    add("--log-level", choices=levels, default="INFO", help="what is logged to stderr (INFO)")
    add(
        "--fault",
        type=_argument(parse_fault),
        action="append",
        default=[],
        metavar="SPEC",
        help="ENDPOINT:KIND[,name=value...], may be repeated; endpoints: create, record, upload, "
        "callback, credit, catalogue, schema, result, any; names: family, model, times (1; 0 = "
        "until cleared), probability, after, code, msg, status, body, seconds, state, share",
    )


def _add_course(group: Any) -> None:
    add = group.add_argument
    add("--speed", type=float, metavar="FACTOR", help="all waits are divided by it (1)")
    add("--realistic", action="store_true", help="durations and latencies of the real Kie")
    add(
        "--seconds",
        type=_argument(_named_range),
        action="append",
        metavar="NAME=MIN-MAX",
        help="duration of a model or family, e.g. veo3=20-40; may be repeated",
    )
    add("--seed", type=int, help="makes durations, failures and probabilities repeatable")
    add("--fail-rate", type=float, metavar="SHARE", help="share of tasks that fail (0)")
    add("--direct-rate", type=float, metavar="SHARE", help="share that skips `generating` (0.3)")
    add(
        "--queuing-rate",
        type=float,
        metavar="SHARE",
        help="share of the others that shows `queuing` (0.3)",
    )
    add(
        "--visible-after-seconds",
        type=float,
        metavar="S",
        help='how long polls of a new task get "recordInfo is null" (0)',
    )
    add(
        "--latency-seconds",
        type=_argument(_range),
        metavar="MIN-MAX",
        help="extra latency of each API response (0-0)",
    )
    add("--veo-times", choices=("ms", "text", "iso"), help="format of times in Veo records (ms)")


def _add_account(group: Any) -> None:
    add = group.add_argument
    add("--api-key", metavar="KEY", help="accept only this key (any that is not empty)")
    add("--credits", type=float, help="the balance (1000000)")
    add(
        "--cost",
        dest="costs",
        type=_argument(_named_number),
        action="append",
        metavar="NAME=CREDITS",
        help="price of a model or family; may be repeated",
    )
    add(
        "--creates-per-window",
        type=int,
        metavar="N",
        help="new tasks per window (20; 0 = no limit)",
    )
    add("--create-window-seconds", type=float, metavar="S", help="the length of the window (10)")
    add("--records-per-second", type=int, metavar="N", help="polls per second (10; 0 = no limit)")
    add(
        "--catalogue-per-second",
        type=int,
        metavar="N",
        help="requests to the catalogue per second (1; 0 = no limit)",
    )
    add(
        "--withdrawn-models",
        type=_names,
        metavar="ID,ID,...",
        help="models that the catalogue no longer lists (none)",
    )
    add("--max-running", type=int, metavar="N", help="unfinished tasks at a time (0 = no limit)")
    add("--http-429", action="store_true", help="over a limit, the HTTP status is 429, too")
    add(
        "--jobs-validation-code",
        type=int,
        choices=(422, 500),
        help="the code for a bad field in a jobs create (500)",
    )


def _add_callbacks(group: Any) -> None:
    add = group.add_argument
    add("--webhook-key", metavar="KEY", help="sign callbacks with it (unsigned)")
    add(
        "--callback-timeout-seconds",
        type=float,
        metavar="S",
        help="how long a receiver may take (15)",
    )
    add(
        "--callback-retry-seconds",
        type=_argument(_waits),
        metavar="S,S,...",
        help="waits before retries (1,2,4)",
    )
    add("--callback-concurrency", type=int, metavar="N", help="callbacks in flight at a time (16)")
    add("--callback-duplicates", type=int, metavar="N", help="extra deliveries of each (0)")


def _add_files(group: Any) -> None:
    add = group.add_argument
    add("--public-url", metavar="URL", help="base URL of results (the Host of the request)")
    add(
        "--state-file",
        type=Path,
        metavar="FILE",
        help="keep tasks, uploads and the port over restarts",
    )
    add("--tasks-max", type=int, metavar="N", help="tasks kept, the oldest dropped (100000)")
    add("--upload-max-bytes", type=int, metavar="N", help="the largest upload (2 GiB)")
    add(
        "--allow-url-upload",
        action="store_true",
        help="file-url-upload may fetch from hosts other than this machine",
    )


def _argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return `read` for argparse, which then shows the message of its ValueError."""

    def argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return argument


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    return float(low), float(high or low)


def _waits(text: str) -> tuple[float, ...]:
    return tuple(float(wait) for wait in text.split(",") if wait)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _named_range(text: str) -> tuple[str, tuple[float, float]]:
    name, _, value = text.rpartition("=")
    return name, _range(value)


def _named_number(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    return name, float(value)
