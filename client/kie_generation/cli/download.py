"""`download`: the results of a task through the service, which may have copies of them."""

from pathlib import Path
from typing import Annotated

import typer

from kie_generation.cli.problems import ExitCode
from kie_generation.cli.session import Session, run


def download(
    context: typer.Context,
    *,
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    save: Annotated[
        Path, typer.Option(metavar="DIR", file_okay=False, help="Save the results here.")
    ] = Path(),
    number: Annotated[
        int | None, typer.Option(min=1, help="Only this result; 1 is the first. Default: all.")
    ] = None,
) -> None:
    """Download results from the service, even if the provider's URLs have expired.

    A download that was interrupted continues where it ended, if it is repeated.

    Example:
      kie-generation download ID --save results
    """

    async def work(session: Session) -> ExitCode:
        session.invocation.task_id, session.invocation.folder = task_id, str(save)
        again = session.invocation.line("download", task_id, "--save", str(save))
        session.resume_hint = f"to continue: {again}"
        task = await session.client.get(task_id, timeout=session.timeout)
        # Also ask for the first one if there is none: the service explains why.
        numbers = range(1, max(1, len(task.artifacts)) + 1) if number is None else [number]
        for each in numbers:
            path = await session.client.save_artifact(task_id, each - 1, save)
            session.output.saved(task, [path])
        return ExitCode.OK

    run(context, work)
