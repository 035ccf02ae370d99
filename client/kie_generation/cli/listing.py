"""`list`: which tasks there are, and what they cost."""

import re
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Annotated, cast

import typer

from kie_generation.cli.create import choice
from kie_generation.cli.problems import ExitCode
from kie_generation.cli.session import Session, run
from kie_generation.cli.tasks import Totals
from kie_generation.generated.generation.v1.generation_pb2 import TaskStatus

MAX_PAGE_SIZE = 200
DEFAULT_LIMIT = 20

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def since(text: str) -> datetime:
    """Return the time that was `24h` ago, or that an ISO text names, by default in local time.

    Raises:
        typer.BadParameter: The text is neither.
    """
    try:
        if found := _AGO.fullmatch(text.strip().lower()):
            return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: float(found[1])})
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError, OSError):
        message = f"'{text}' is neither a duration (30m, 24h, 7d) nor a time (2026-11-26T08:00)"
        raise typer.BadParameter(message) from None


PromptId = Annotated[str, typer.Option(metavar="ID", help="Only tasks with this prompt id.")]
Since = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        parser=since,
        metavar="TIME",
        help="Only tasks created since then: 30m, 24h, 7d, or a time such as 2026-11-26T08:00.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1, help=f"The maximum number of tasks. Default: {DEFAULT_LIMIT}; all with --since."
    ),
]


def list_tasks(
    context: typer.Context,
    *,
    prompt_id: PromptId = "",
    model: Annotated[str, typer.Option(metavar="NAME", help="Only tasks of this model.")] = "",
    status: Annotated[int | None, choice(TaskStatus, "Only tasks with this status.")] = None,
    created_after: Since = None,
    limit: Limit = None,
) -> None:
    """List tasks, newest first, with their sums at the end.

    Examples:
      kie-generation list --since 24h
      kie-generation list --status failed --model veo3 --limit 100
    """
    if limit is None and created_after is None:
        limit = DEFAULT_LIMIT

    async def work(session: Session) -> ExitCode:
        tasks = session.client.list(
            prompt_id=prompt_id,
            status=cast("TaskStatus.ValueType", status or 0),
            created_after=created_after,
            model=model,
            page_size=min(limit or MAX_PAGE_SIZE, MAX_PAGE_SIZE),
            timeout=session.timeout,
        )
        totals = Totals()
        async with aclosing(tasks):
            async for task in tasks:
                session.output.listed(task)
                totals.add(task)
                if len(totals) == limit:
                    break
        _show(session, totals, limit)
        return ExitCode.OK

    run(context, work)


def _show(session: Session, totals: Totals, limit: int | None) -> None:
    if not len(totals):
        session.output.note("no tasks")
    else:
        newest = "the newest " if len(totals) == limit else ""
        session.output.totals(f"{newest}{totals}")
