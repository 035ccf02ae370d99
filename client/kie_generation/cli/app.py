"""The command line: the global options and the commands.

`main` is the one place where an error becomes words and an exit code.
"""

import io
import shlex
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, NoReturn, cast

import typer

from client import create
from client.addresses import is_local
from client.commands import Invocation
from client.create import choice
from client.help import Command, Group
from client.output import JsonOutput, Output, TextOutput
from client.problems import ExitCode, problem_of
from client.session import Session, Settings, run
from client.tls import Tls
from generated.generation.v1.generation_pb2 import TaskStatus

MAX_PAGE_SIZE = 200

app = typer.Typer(
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(create.app, name="create")

TaskId = Annotated[str, typer.Argument(metavar="ID", help="The task's id.")]
Save = Annotated[
    Path | None, typer.Option(metavar="DIR", file_okay=False, help="Save the results here.")
]


@app.callback()
def settings(
    context: typer.Context,
    *,
    address: Annotated[
        str,
        typer.Option(
            envvar="GENERATION_ADDRESS",
            metavar="HOST:PORT",
            help="Where the service is. Except for loopback, proxy variables apply (https_proxy).",
        ),
    ] = "127.0.0.1:50051",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="GENERATION_TOKEN",
            help="The caller's token. Better in the environment: others see the command line.",
        ),
    ] = None,
    tls: Annotated[
        bool,
        typer.Option("--tls", envvar="GENERATION_TLS", help="Encrypt; the next three imply it."),
    ] = False,
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="GENERATION_CA",
            metavar="PEM",
            help="The authority that signed the server's certificate.",
        ),
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(envvar="GENERATION_CERT", metavar="PEM", help="Our certificate.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(envvar="GENERATION_KEY", metavar="PEM", help="Its private key.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="One JSON object per line, errors too (on stderr). Works anywhere."
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a call and its retries; uploads have 600.")
    ] = 30,
    give_up_after: Annotated[
        float, typer.Option(min=0, help="Seconds that a watch tries to reconnect.")
    ] = 300,
    allow_private_addresses: Annotated[
        bool,
        typer.Option(
            "--allow-private-addresses",
            help="Follow redirects of results to private addresses and http URLs, too.",
        ),
    ] = False,
) -> None:
    """Generate images and videos: create tasks, watch them, save what they made.

    Examples:
      python -m client create imagen4 "a lighthouse at dawn" --save results
      python -m client --json list --status pending

    Results go to stdout, progress and errors to stderr. Exit codes:

    0  done; a watched task ended SUCCESS
    1  the task ended FAILED
    2  wrong usage, or the service found the request invalid
    3  no such task
    4  the token or certificate is missing or wrong
    5  refused: by the provider, or because it is too late or used before
    6  unavailable or rate limited: try again later
    7  a local file, or a result's URL, cannot be read or written
    70  a bug, here or there
    130  interrupted; the message says how to go on
    """
    if (cert is None) != (key is None):
        raise typer.BadParameter("--cert and --key go together")
    encrypted = tls or any((ca, cert, key))
    output = _output(as_json=as_json)
    invocation = context.ensure_object(Invocation)
    invocation.command = context.invoked_subcommand or ""
    invocation.connect(address, {"--ca": ca, "--cert": cert, "--key": key}, encrypted=encrypted)
    context.obj = Settings(
        address=address,
        token=token,
        tls=Tls(ca, cert, key) if encrypted else None,
        timeout_seconds=timeout,
        give_up_after_seconds=give_up_after,
        allow_private_addresses=allow_private_addresses,
        output=output,
        invocation=invocation,
    )
    if token:
        _warn_of_a_careless_token(context, output, address, encrypted=encrypted)


def _warn_of_a_careless_token(
    context: typer.Context, output: Output, address: str, *, encrypted: bool
) -> None:
    source = context.get_parameter_source("token")
    if source is not None and source.name == "COMMANDLINE":
        output.note("warning: other users can see a --token; set GENERATION_TOKEN instead")
    if not encrypted and not is_local(address):
        output.note("warning: the token goes over the network unencrypted; use --tls")


@app.command(cls=Command)
def get(context: typer.Context, task_id: TaskId, save: Save = None) -> None:
    """Show a task as it stands. The exit code is 0 whatever became of it.

    Example:
      python -m client get ID --save results
    """

    async def work(session: Session) -> ExitCode:
        session.invocation.task_id = task_id
        task = await session.client.get(task_id, timeout=session.timeout)
        await session.conclude(task, save)
        return ExitCode.OK

    run(context, work)


@app.command("list", cls=Command)
def list_tasks(
    context: typer.Context,
    prompt_id: Annotated[
        str, typer.Option(metavar="ID", help="Only tasks with this reference.")
    ] = "",
    status: Annotated[int | None, choice(TaskStatus, "Only tasks with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The largest number of tasks to show.")] = 20,
) -> None:
    """List tasks, newest first: id, state, model, time of creation, prompt id.

    Example:
      python -m client list --status failed --limit 100
    """

    async def work(session: Session) -> ExitCode:
        tasks = session.client.list(
            prompt_id=prompt_id,
            status=cast("TaskStatus.ValueType", status or 0),
            page_size=min(limit, MAX_PAGE_SIZE),
            timeout=session.timeout,
        )
        left = limit
        async with aclosing(tasks):
            async for task in tasks:
                session.output.listed(task)
                left -= 1
                if left == 0:
                    break
        if left == limit:
            session.output.note("no tasks")
        return ExitCode.OK

    run(context, work)


@app.command(cls=Command)
def watch(context: typer.Context, task_id: TaskId, save: Save = None) -> None:
    """Show a task's progress until it ended, through restarts and lost connections.

    Example:
      python -m client watch ID --save results
    """

    async def work(session: Session) -> ExitCode:
        return await session.conclude(await session.follow(task_id), save)

    run(context, work)


@app.command(cls=Command)
def upload(
    context: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to upload.")],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its name at the provider. Default: its name here."),
    ] = None,
    content_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="As in image/png. Default: by the name's extension."),
    ] = None,
    upload_path: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The provider's folder.")
    ] = None,
) -> None:
    """Upload a file, and print the URL that `--file-url` and `--image-url` take.

    Example:
      python -m client upload photo.png
    """

    async def work(session: Session) -> ExitCode:
        session.output.file(
            await session.client.upload(
                file, file_name=name, content_type=content_type, upload_path=upload_path
            )
        )
        return ExitCode.OK

    run(context, work)


@app.command(cls=Command)
def cancel(context: typer.Context, task_id: TaskId) -> None:
    """Cancel a task that was not sent to the provider yet.

    Example:
      python -m client cancel ID
    """

    async def work(session: Session) -> ExitCode:
        session.invocation.task_id = task_id
        session.output.task(await session.client.cancel(task_id, timeout=session.timeout))
        return ExitCode.OK

    run(context, work)


def main() -> NoReturn:
    """Runs the command line and exits. No error leaves it as a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know every character
    arguments = _json_first(sys.argv[1:])
    invocation = Invocation()
    try:
        code = app(
            arguments,
            prog_name=shlex.join(invocation.program),
            standalone_mode=False,
            obj=invocation,
        )
    except Exception as error:  # noqa: BLE001 - the last line of defence, and it tells what it caught
        problem = problem_of(error, invocation)
        # By the arguments as they stand: they may be what is wrong.
        _output(as_json="--json" in arguments[:1]).problem(problem)
        code = problem.exit_code
    sys.exit(code)


def _json_first(arguments: list[str]) -> list[str]:
    """Return the arguments with --json before the command, wherever it was typed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--json" not in arguments[:end]:
        return arguments
    return ["--json", *(each for each in arguments[:end] if each != "--json"), *arguments[end:]]


def _output(*, as_json: bool) -> Output:
    return JsonOutput() if as_json else TextOutput()
