"""Errors as the command line shows them: an exit code, a message, and what to do next."""

import enum
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
import typer

from kie_generation.cli.commands import Invocation
from kie_generation.cli.options import is_market_input
from kie_generation.download import DownloadError
from kie_generation.errors import (
    ArtifactNotFoundError,
    GenerationError,
    InvalidRequestError,
    RefusedError,
    TaskNotFoundError,
    TokenError,
    UnauthenticatedError,
    UnavailableError,
    Violation,
)
from kie_generation.state_file import StateFileError


class ExitCode(enum.IntEnum):
    """The exit codes of the process. `--help` explains them, and scripts rely on them."""

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
    """Ctrl-C; the message says how to continue."""


@dataclass(frozen=True)
class Problem:
    """An error as it is shown. `code` is the name of a gRPC status, or a name of our own."""

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
    "CREDITS_EXHAUSTED": "the operator must top up the provider's account",
    "INTERNAL": "this is a bug of the service: report the message",
    "MODEL_NOT_ALLOWED": "use another model, or ask the operator to allow it for your token",
    "MODEL_UNAVAILABLE": "use another model, or try again later",
    "PROVIDER_ERROR": "create the task again: a new request may succeed",
    "PROVIDER_REJECTED": "change the parameters that the provider names",
    "PROVIDER_UNAUTHORIZED": "the operator must fix the service's key at the provider",
    "REQUEST_ID_REUSED": "this --request-id was used with different parameters: choose a new one",
    "UPLOAD_MISMATCH": "the file must not be empty, and must not change during the upload",
    "UPLOAD_TOO_LARGE": "use a smaller file",
}

# Parts of TLS errors, from C-core and from this client, and what to do about them.
_TLS_HINTS: Mapping[str, str] = {
    "CERTIFICATE_VERIFY_FAILED": "did the authority of --ca sign the server's certificate?",
    "WRONG_VERSION_NUMBER": "the server does not use TLS: omit --tls, --ca, --cert and --key",
    "security handshaker": "--ca, --cert and --key must be PEM files, and --key must match --cert",
    "expects TLS": "use --tls, or --ca FILE for your own authority",
    "requires a certificate": "name a client certificate that the server accepts: --cert and --key",
    "rejects the certificate": "did an authority that the server trusts sign --cert?",
}

# The variables that C-core reads; it ignores names in upper case.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


def problem_of(error: Exception, invocation: Invocation) -> Problem:
    """Return how to show any exception of a command.

    Args:
        error: What the command raised.
        invocation: How it was called, for hints.
    """
    match error:
        case GenerationError():
            return _of_call(error, invocation)
        case typer.TyperException():
            message = error.format_message() or "no command given"
            hint = _usage_hint(error, invocation)
            return Problem(ExitCode.USAGE, "USAGE", message, hint=hint)
        case DownloadError():
            command = invocation.command if invocation.command == "download" else "get"
            again = invocation.line(command, invocation.task_id, "--save", invocation.folder)
            hint = f"to fetch the results again: {again}"
            return Problem(ExitCode.LOCAL, "DOWNLOAD", str(error), hint=hint)
        case StateFileError():
            return Problem(ExitCode.LOCAL, "STATE_FILE", str(error))
        case OSError():
            return Problem(ExitCode.LOCAL, "LOCAL_FILE", _words_of(error))
        case TokenError():
            return Problem(ExitCode.UNAUTHENTICATED, "UNAUTHENTICATED", str(error))
        case UnicodeError():
            message = "the arguments and the input must be UTF-8"
            return Problem(ExitCode.USAGE, "USAGE", message)
        case InterruptedWorkError():
            return Problem(ExitCode.INTERRUPTED, "INTERRUPTED", "interrupted", hint=str(error))
        case _:
            message = f"{type(error).__name__}: {error}"
            return Problem(ExitCode.INTERNAL, "CLIENT_BUG", message, hint="please report it")


def _words_of(error: OSError) -> str:
    """Return the file and what is wrong with it, without the error number."""
    words = error.strerror or str(error)
    return f"{error.filename}: {words}" if error.filename is not None else words


def _of_call(error: GenerationError, invocation: Invocation) -> Problem:
    return Problem(
        _exit_code(error),
        error.code.name,
        error.message,
        reason=error.reason,
        violations=error.violations,
        retry_after=error.retry_after,
        task_id=error.task_id,
        request_id=error.request_id if isinstance(error, UnavailableError) else "",
        hint=_call_hint(error, invocation),
    )


def _exit_code(error: GenerationError) -> ExitCode:
    match error:
        case InvalidRequestError():
            return ExitCode.USAGE
        case TaskNotFoundError() | ArtifactNotFoundError():
            return ExitCode.NOT_FOUND
        case UnauthenticatedError():
            return ExitCode.UNAUTHENTICATED
        case RefusedError():
            return ExitCode.REFUSED
        case UnavailableError():
            return ExitCode.UNAVAILABLE
        case _:
            return _BY_CODE.get(error.code, ExitCode.INTERNAL)


def _call_hint(error: GenerationError, invocation: Invocation) -> str:
    if error.reason == "ALREADY_SUBMITTED":
        return f"to see the task: {invocation.line('get', error.task_id or invocation.task_id)}"
    if error.reason in _HINTS:
        return _HINTS[error.reason]
    match error:
        case TaskNotFoundError():
            return f"to list your tasks: {invocation.line('list')}"
        case InvalidRequestError() if error.violations:
            return f"for the values: {_values_command(error, invocation)}"
        case UnauthenticatedError():
            return _authentication_hint(error)
        case UnavailableError():
            return _unavailable_hint(error, invocation)
        case _ if error.code is grpc.StatusCode.UNIMPLEMENTED:
            return f"is there a generation service at {invocation.address}?"
        case _:
            return ""


def _values_command(error: InvalidRequestError, invocation: Invocation) -> str:
    if any(is_market_input(violation.field) for violation in error.violations):
        return invocation.line("model", invocation.market_model)
    return invocation.help_line()


def _authentication_hint(error: UnauthenticatedError) -> str:
    hints = (hint for words, hint in _TLS_HINTS.items() if words in error.message)
    return next(hints, "set GENERATION_TOKEN to a token of this service")


def _unavailable_hint(error: UnavailableError, invocation: Invocation) -> str:
    hints = []
    if error.request_id:
        hints.append(
            f"run it again with --request-id {error.request_id}: nothing is paid for twice"
        )
    elif error.reason:  # the service is reachable
        hints.append("try again later")
    if not error.reason:
        hints.append(f"is a generation service running at {invocation.address}?")
    if not error.reason and (proxy := _proxy(invocation)):
        hints.append(f"gRPC uses the proxy from {proxy}: add the host to no_proxy")
    return "; ".join(hints)


def _proxy(invocation: Invocation) -> str:
    """Return the environment variable that makes gRPC use a proxy for the service; "" for none."""
    if invocation.is_local:
        return ""
    return next((name for name in _PROXY_VARIABLES if os.environ.get(name)), "")


def _usage_hint(error: typer.TyperException, invocation: Invocation) -> str:
    context = getattr(error, "ctx", None)  # of a UsageError, which typer does not export
    path = context.command_path if context is not None else shlex.join(invocation.program)
    hint = f"try: {path} --help"
    return (
        f"{hint}; global options come before the command"
        if "No such option" in str(error)
        else hint
    )
