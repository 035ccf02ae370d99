"""`models` and `model`: what can be created, and with which input."""

from contextlib import aclosing
from typing import Annotated

import typer

from kie_generation.cli.problems import ExitCode
from kie_generation.cli.session import Session, run

MAX_PAGE_SIZE = 200


def models(
    context: typer.Context,
    query: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUERY]...", help="Words to look for; all must match."),
    ] = None,
    task_type: Annotated[
        str, typer.Option(metavar="TYPE", help='Only models that do this: "Text to Image".')
    ] = "",
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Only models of this provider: Google.")
    ] = "",
    *,
    retired: Annotated[
        bool, typer.Option("--retired", help="Also models that are no longer in the catalogue.")
    ] = False,
) -> None:
    """List the models of the catalogue: id, state if not active, price or cost.

    Examples:
      kie-generation models nano banana
      kie-generation models --task-type "Text to Video" --provider Kling
    """

    async def work(session: Session) -> ExitCode:
        found = session.client.list_models(
            " ".join(query or ()),
            task_type=task_type,
            provider=provider,
            include_retired=retired,
            page_size=MAX_PAGE_SIZE,
            timeout=session.timeout,
        )
        count = 0
        async with aclosing(found):
            async for model in found:
                session.output.listed_model(model)
                count += 1
        if not count:
            session.output.note("no models")
        return ExitCode.OK

    run(context, work)


def model(
    context: typer.Context,
    model_id: Annotated[str, typer.Argument(metavar="MODEL", help="The id of the model.")],
) -> None:
    """Show a model and the form to fill in: each field with its type, choices and default.

    Example:
      kie-generation model kling-3.0/video
    """

    async def work(session: Session) -> ExitCode:
        session.output.model(await session.client.get_model(model_id, timeout=session.timeout))
        return ExitCode.OK

    run(context, work)
