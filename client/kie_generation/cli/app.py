"""The command line: the global options and the commands.

`main` is the one place where an error becomes a message and an exit code.
"""

import io
import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from kie_generation.addresses import is_local
from kie_generation.cli import create
from kie_generation.cli import settings as options
from kie_generation.cli.catalogue import model, models
from kie_generation.cli.commands import Invocation
from kie_generation.cli.download import download
from kie_generation.cli.follow import follow
from kie_generation.cli.help import Command, Group
from kie_generation.cli.listing import list_tasks
from kie_generation.cli.output import JsonOutput, Output, TextOutput
from kie_generation.cli.problems import ExitCode, problem_of
from kie_generation.cli.session import Session, run

HELP = """Generate images, videos and sounds: create tasks, watch them, save their results.

Examples:
  kie-generation create imagen4 "a lighthouse at dawn" --save results
  kie-generation list --since 24h
  kie-generation follow --state feed.json --save results

Results go to stdout, progress and errors to stderr. Exit codes:

0  done; a watched task ended as SUCCESS
1  the task ended as FAILED
2  wrong usage, or the service rejected the request as invalid
3  the task, or its result, does not exist
4  the token or certificate is missing or invalid
5  refused: by the provider, model unavailable, too late to cancel, or request id used before
6  unavailable or rate limited: try again later
7  a local file, or the URL of a result, cannot be read or written
70  a bug, here or in the service
130  interrupted; the message says how to continue
"""

app = typer.Typer(
    cls=Group,
    help=HELP,
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
    address: options.Address = "127.0.0.1:50051",
    token: options.Token = None,
    tls: options.UseTls = False,
    ca: options.RootCa = None,
    cert: options.ClientCert = None,
    key: options.ClientKey = None,
    as_json: options.Json = False,
    timeout: options.Timeout = 30,
    give_up_after: options.GiveUpAfter = 300,
    allow_private_addresses: options.AllowPrivateAddresses = False,
    version: options.Version = False,  # noqa: ARG001 - its callback does it all
) -> None:
    """Turn the global options into the Settings of the command."""
    tls_settings = options.tls_of(ca, cert, key, wanted=tls)
    encrypted = tls_settings is not None
    output = _output(as_json=as_json)
    invocation = context.ensure_object(Invocation)
    invocation.command = context.invoked_subcommand or ""
    invocation.connect(address, {"--ca": ca, "--cert": cert, "--key": key}, encrypted=encrypted)
    context.obj = options.Settings(
        address=address,
        token=token,
        tls=tls_settings,
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
        output.note("warning: other users can see --token; set GENERATION_TOKEN instead")
    if not encrypted and not is_local(address):
        output.note("warning: the token is sent unencrypted; use --tls")


@app.command(cls=Command)
def get(context: typer.Context, task_id: TaskId, save: Save = None) -> None:
    """Show a task. The exit code is 0, whatever its status is.

    Example:
      kie-generation get ID --save results
    """

    async def work(session: Session) -> ExitCode:
        session.invocation.task_id = task_id
        task = await session.client.get(task_id, timeout=session.timeout)
        await session.conclude(task, save)
        return ExitCode.OK

    run(context, work)


app.command("list", cls=Command)(list_tasks)


app.command(cls=Command)(models)
app.command(cls=Command)(model)


@app.command(cls=Command)
def watch(context: typer.Context, task_id: TaskId, save: Save = None) -> None:
    """Show a task's progress until it has ended, across restarts and lost connections.

    Example:
      kie-generation watch ID --save results
    """

    async def work(session: Session) -> ExitCode:
        return await session.conclude(await session.follow(task_id), save)

    run(context, work)


app.command(cls=Command)(follow)
app.command(cls=Command)(download)


@app.command(cls=Command)
def upload(
    context: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to upload.")],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The name at the provider. Default: the file's name."),
    ] = None,
    content_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Such as image/png. Default: by the name's extension."),
    ] = None,
    upload_path: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The folder at the provider.")
    ] = None,
) -> None:
    """Upload a file, and print the URL that `--file-url` and `--image-url` take.

    Example:
      kie-generation upload photo.png
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
    """Cancel a task that has not been sent to the provider yet.

    Example:
      kie-generation cancel ID
    """

    async def work(session: Session) -> ExitCode:
        session.invocation.task_id = task_id
        session.output.task(await session.client.cancel(task_id, timeout=session.timeout))
        return ExitCode.OK

    run(context, work)


def main() -> NoReturn:
    """Run the command line and exit. No error ends in a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal can show every character
    arguments = _json_first(sys.argv[1:])
    invocation = Invocation()
    try:
        code = app(
            arguments,
            prog_name=shlex.join(invocation.program),
            standalone_mode=False,
            obj=invocation,
        )
    except Exception as error:  # noqa: BLE001 - the outermost handler, which reports every error
        problem = problem_of(error, invocation)
        # The arguments may be what is wrong, so --json is not looked up in the parsed options.
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
