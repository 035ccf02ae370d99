"""What went wrong, for the person at the command line: an exit code, words, and what to do next."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
import typer

from client.download import DownloadError
from client.errors import (
    GenerationError,
    InvalidRequestError,
    RefusedError,
    TaskNotFoundError,
    UnauthenticatedError,
    UnavailableError,
    Violation,
)


class ExitCode(enum.IntEnum):
    """What the process says to its caller. `--help` explains each, and scripts rely on them."""

    OK = 0
    TASK_FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAUTHENTICATED = 4
    REFUSED = 5
    UNAVAILABLE = 6
    LOCAL = 7
    INTERNAL = 70
    INTERRUPTED = 130


class InterruptedWorkError(Exception):
    """Ctrl-C, in words that say how to go on."""


@dataclass(frozen=True)
class Problem:
    """An error as it is shown. `code` is gRPC's name, or one of ours in the same style."""

    exit_code: ExitCode
    code: str
    message: str
    reason: str = ""
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None
    task_id: str = ""
    request_id: str = ""
    hint: str = ""


_BY_CODE: Mapping[grpc.StatusCode, ExitCode] = {
    grpc.StatusCode.ABORTED: ExitCode.REFUSED,
    grpc.StatusCode.ALREADY_EXISTS: ExitCode.REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: ExitCode.REFUSED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExitCode.REFUSED,
}

_HINTS: Mapping[str, str] = {
    "ALREADY_SUBMITTED": "the provider cannot cancel: watch the task to its end",
    "CREDITS_EXHAUSTED": "the operator must top up the provider's account",
    "INTERNAL": "a bug of the service: report the message",
    "MODEL_NOT_ALLOWED": "use another model, or ask the operator to allow it for your token",
    "MODEL_UNAVAILABLE": "take another model, or try later",
    "PROVIDER_ERROR": "create it again: a new request may succeed",
    "PROVIDER_REJECTED": "change the parameters that the provider names",
    "PROVIDER_UNAUTHORIZED": "the operator must mend the service's key at the provider",
    "REQUEST_ID_REUSED": "this --request-id belongs to other parameters: take a new one",
    "TASK_NOT_FOUND": "`list` shows the tasks of this token",
    "UPLOAD_TOO_LARGE": "make the file smaller",
}


def problem_of(error: Exception) -> Problem:
    """Returns how to show any exception."""
    match error:
        case GenerationError():
            return _of_call(error)
        case typer.TyperException():
            message = error.format_message() or "no command given"
            return Problem(ExitCode.USAGE, "USAGE", message, hint=_usage_hint(error))
        case DownloadError():
            hint = "`get ID --save DIR` fetches the results again"
            return Problem(ExitCode.LOCAL, "DOWNLOAD", str(error), hint=hint)
        case OSError():
            return Problem(ExitCode.LOCAL, "LOCAL_FILE", str(error))
        case InterruptedWorkError():
            return Problem(ExitCode.INTERRUPTED, "INTERRUPTED", "interrupted", hint=str(error))
        case _:
            message = f"{type(error).__name__}: {error}"
            return Problem(ExitCode.INTERNAL, "CLIENT_BUG", message, hint="please report it")


def _of_call(error: GenerationError) -> Problem:
    return Problem(
        _exit_code(error),
        error.code.name,
        error.message,
        reason=error.reason,
        violations=error.violations,
        retry_after=error.retry_after,
        task_id=error.task_id,
        request_id=error.request_id if isinstance(error, UnavailableError) else "",
        hint=_call_hint(error),
    )


def _exit_code(error: GenerationError) -> ExitCode:
    match error:
        case InvalidRequestError():
            return ExitCode.USAGE
        case TaskNotFoundError():
            return ExitCode.NOT_FOUND
        case UnauthenticatedError():
            return ExitCode.UNAUTHENTICATED
        case RefusedError():
            return ExitCode.REFUSED
        case UnavailableError():
            return ExitCode.UNAVAILABLE
        case _:
            return _BY_CODE.get(error.code, ExitCode.INTERNAL)


def _call_hint(error: GenerationError) -> str:
    if isinstance(error, UnavailableError) and error.request_id:
        return f"run it again with --request-id {error.request_id}: nothing is bought twice"
    if error.reason in _HINTS:
        return _HINTS[error.reason]
    match error:
        case InvalidRequestError():
            return "`--help` of the command names the values"
        case UnauthenticatedError():
            return "set GENERATION_TOKEN to a token of this service"
        case UnavailableError():
            return "try again later; is --address right, and does the server speak TLS?"
        case _ if error.code is grpc.StatusCode.UNIMPLEMENTED:
            return "is --address that of a generation service?"
        case _:
            return ""


def _usage_hint(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)  # of a UsageError, which typer does not export
    path = context.command_path if context is not None else "python -m client"
    hint = f"try '{path} --help'"
    return (
        f"{hint}; global options come before the command"
        if "No such option" in str(error)
        else hint
    )
