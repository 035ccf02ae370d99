"""Kie's jobs API, shared by Imagen 4, Sora 2 and the market models."""

from collections.abc import Callable, Mapping
from typing import Any

from providers.base import Poll, Progress, Succeeded, UnknownState, Unreadable
from providers.kie.envelope import OK, Envelope, read_other_code
from providers.kie.kept import kept_record, kept_text
from providers.kie.params import Params
from providers.kie.results import FailureFields, credits_consumed, failed, succeeded
from providers.kie.success_flag import flagged
from providers.kie.values import as_int, clean

FAILURE_FIELDS = FailureFields(
    messages=("failMsg", "errorMessage"), codes=("failCode", "errorCode")
)


def input_body(params: Params) -> dict[str, Any]:
    """Return the body of createTask: the model, and the rest inside `input`."""
    wire = params.wire()
    return {"model": wire.pop("model"), "input": wire}


def read_job(
    envelope: Envelope, succeed: Callable[[Mapping[str, Any]], Succeeded] = succeeded
) -> Poll:
    """Read a recordInfo response.

    Args:
        envelope: The response.
        succeed: Returns the outcome of a successful record.
    """
    if envelope.code != OK:
        return read_other_code(envelope, rejects=False)
    record = envelope.record
    if record is None:
        return Unreadable("code 200 without a record", kept_text(envelope.text))
    state = record.get("state")
    match state.strip() if isinstance(state, str) else state:
        case "waiting" | "queuing" | "queueing":
            return _progress(record, generating=False)
        case "generating":
            return _progress(record, generating=True)
        case "success":
            return succeed(record)
        case "fail":
            return failed(record, FAILURE_FIELDS)
        case None | "":
            return flagged(record, succeed)
        case _:
            return UnknownState(clean(state, 50), kept_record(record))


def _progress(record: Mapping[str, Any], *, generating: bool) -> Progress:
    percent = as_int(record.get("progress"))
    return Progress(
        generating=generating,
        percent=None if percent is None else min(max(percent, 0), 100),
        credits_consumed=credits_consumed(record),
        record=kept_record(record),
    )
