"""Kie's jobs API, shared by Imagen 4 and Sora 2 (kie-api.md 2)."""

from typing import Any

from providers.base import Failed, Poll, Progress, Weather
from providers.kie.envelope import (
    OK,
    Envelope,
    as_int,
    as_object,
    as_time,
    clean,
    read_other_code,
)
from providers.kie.params import Params
from providers.kie.results import credits_consumed, succeeded


def input_body(params: Params) -> dict[str, Any]:
    """Return the body of createTask: the model, and the rest inside `input`."""
    wire = params.wire()
    return {"model": wire.pop("model"), "input": wire}


def read_job(envelope: Envelope) -> Poll:
    """Read a recordInfo."""
    if envelope.code != OK:
        return read_other_code(envelope, rejects=False)
    record = envelope.record
    if record is None:
        return Weather("code 200 without a record", answered=True)
    match record.get("state"):
        case "waiting" | "queuing" | "queueing":
            return Progress(generating=False, percent=_percent(record))
        case "generating":
            return Progress(generating=True, percent=_percent(record))
        case "success":
            return succeeded(record, as_object(record.get("resultJson")))
        case "fail":
            return _failed(record)
        case state:
            return Weather(f"unknown state {clean(state, 50)!r}", answered=True)


def _failed(record: Any) -> Failed:
    return Failed(
        message=clean(record.get("failMsg")) or "the provider gave no reason",
        provider_code=clean(record.get("failCode"), 50),
        credits_consumed=credits_consumed(record),
        complete_time=as_time(record.get("completeTime")),
    )


def _percent(record: Any) -> int | None:
    percent = as_int(record.get("progress"))
    return None if percent is None else min(max(percent, 0), 100)
