"""How a task appears to clients: the records and callbacks of the three APIs.

Shapes come from recorded traffic where there is some, and otherwise from Kie's documents
(callbacks). These quirks are real, and reproduced: a jobs record's `param` contains its `input`
encoded twice, its `costTime` is in seconds though documented in milliseconds, it reports the price
while it is still generating, times are milliseconds of whole seconds (not Midjourney's), and
Midjourney's `resultInfoJson` is an object while its callback carries plain strings.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from providers.kie.simulator import sound
from providers.kie.simulator.faults import FaultRule
from providers.kie.simulator.orders import veo_aspect_ratio, veo_generation_type
from providers.kie.simulator.settings import SimulatorSettings
from providers.kie.simulator.tasks import (
    FAIL,
    FINAL_STATES,
    FRAMES,
    SUCCESS,
    Task,
    prompt_of,
    wants_frames,
)

Record = dict[str, Any]

GENERATING_FLAG, SUCCESS_FLAG, FAILED_FLAG, UPSTREAM_FAILED_FLAG, UNKNOWN_FLAG = 0, 1, 2, 3, 9
REJECTED_CODES: Final = frozenset({400, 422})
"""Codes of a failure that the request itself caused: an assumption, as none are documented."""
SEED_LOWEST, SEEDS = 10_000, 90_000
FAILED_CALLBACK_CODE: Final = 501
INTERNAL_ERROR_CODE: Final = 500
VEO_TIME_FORMATS: Final = {"text": "%Y-%m-%d %H:%M:%S", "iso": "%Y-%m-%dT%H:%M:%S"}
JOBS_CALLBACK_FIELDS: Final = (
    *("taskId", "model", "state", "param", "createTime", "completeTime", "costTime"),
    "creditsConsumed",
)
MJ_SERVER_DEFAULTS: Final = {"motion": "high", "videoBatchSize": 1, "enableTranslation": True}


def record_of(
    task: Task, now_ms: int, settings: SimulatorSettings, fault: FaultRule | None = None
) -> Record:
    """Return the `data` of a record query at `now_ms`, altered by `fault` if there is one."""
    state = task.state_at(now_ms)
    if fault and fault.kind == "late":
        state = task.phases[-1][0]
    if fault and fault.kind == "unknown_state":
        state = fault.state
    without_urls = fault is not None and fault.kind == "no_urls"
    urls = [] if without_urls else task.result_urls
    match task.kind.api:
        case "jobs":
            record = _jobs_record(task, state, urls, now_ms)
        case "veo":
            record = _veo_record(task, state, urls, settings.veo_times)
        case "mj":
            record = _mj_record(task, state, urls)
    if fault and fault.kind == "result_object":
        _swap_result_type(record)
    return record


def _jobs_record(task: Task, state: str, urls: list[str], now_ms: int) -> Record:
    final, param = state in FINAL_STATES, _jobs_param(task.body)
    result = _jobs_result(task, urls) if state == SUCCESS else None
    return {
        "taskId": task.id,
        "model": task.model,
        "operationType": "Market_" + task.model.replace("/", "_"),
        "state": state,
        "successFlag": UPSTREAM_FAILED_FLAG if state == FAIL else _success_flag(task, state),
        "param": param,
        "paramJson": param,
        "response": result,
        "resultJson": compact(result) if result else "",
        "failCode": task.fail_code if state == FAIL else None,
        "failMsg": task.fail_msg if state == FAIL else None,
        "costTime": _cost_time_seconds(task) if final else None,
        "completeTime": _whole_second(task.ends_ms) if final else None,
        "createTime": _whole_second(task.created_ms),
        "creditsConsumed": task.credits_in(state),
        "progress": task.progress_at(now_ms) if task.kind.family == "sora2" else None,
    }


def _jobs_result(task: Task, urls: list[str]) -> Record:
    """Return what a success delivers, in the form of its model."""
    prompt = prompt_of(task)
    made = {"title": "SAMPLE", "model": task.model, "text": prompt}
    match task.kind.result:
        case "audio":
            return {"data": [_song(task, number, url) for number, url in enumerate(urls)]}
        case "object":
            return {"resultObject": made}
        case "both":
            return {"resultUrls": urls, "resultObject": made}
        case _:
            return {"resultUrls": urls} | (_frames(task) if urls else {})


def _frames(task: Task) -> Record:
    """Return the first and the last frame of a video, as images, if they were wanted."""
    if not wants_frames(task):
        return {}
    return {f"{name}FrameUrl": [task.url_of(f"{task.id}_{name}.png")] for name in FRAMES}


def _song(task: Task, number: int, url: str) -> Record:
    return {
        "id": f"{task.id}-{number}",
        "audio_url": url,
        "title": "SAMPLE",
        "prompt": prompt_of(task),
        "duration": sound.SECONDS,
    }


def compact(value: object) -> str:
    """Return JSON as it appears inside a record: without spaces, with sorted keys."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _jobs_param(body: Mapping[str, Any]) -> str:
    return compact({**body, "input": compact(body.get("input") or {})})


def _cost_time_seconds(task: Task) -> int:
    assert task.ends_ms is not None
    return round((task.ends_ms - task.created_ms) / 1000)


def _whole_second(unix_ms: int | None) -> int | None:
    return None if unix_ms is None else unix_ms // 1000 * 1000


def _veo_record(task: Task, state: str, urls: list[str], times: str) -> Record:
    final = state in FINAL_STATES
    record = {
        "taskId": task.id,
        "paramJson": _veo_param(task),
        "completeTime": _veo_time(task.ends_ms, times) if final else None,
        "response": _veo_response(task, urls) if state == SUCCESS else None,
        "successFlag": _success_flag(task, state),
        "errorCode": _number_of(task.fail_code) if state == FAIL else None,
        "errorMessage": task.fail_msg if state == FAIL else None,
        "createTime": _veo_time(task.created_ms, times),
    }
    return record if task.model == "veo_4k" else record | {"fallbackFlag": False}


def _veo_param(task: Task) -> str:
    if task.model in {"veo_extend", "veo_4k"}:
        return compact(task.body)
    derived = {
        "model": task.model,
        "generationType": veo_generation_type(task.body),
        "aspectRatio": veo_aspect_ratio(task.body),
    }
    return compact({**task.body, **derived})


def _veo_response(task: Task, urls: list[str]) -> Record:
    response = {
        "taskId": task.id,
        "resultUrls": urls,
        "originUrls": None if veo_aspect_ratio(task.body) == "16:9" else urls,
        "fullResultUrls": urls if task.model == "veo_extend" else None,
        "resolution": task.body.get("resolution") or "720p",
        "hasAudioList": [True] * len(urls),
        "seeds": [_veo_seed(task)] * len(urls),
    }
    if task.model == "veo_4k":
        response |= {"resolution": "4k", "mediaIds": [task.id]}
    return response


def _veo_seed(task: Task) -> int:
    """Return the seed of the request, or one derived from the id."""
    drawn = SEED_LOWEST + int(task.id[:8], 16) % SEEDS
    return int(task.body.get("seeds") or drawn)


def _veo_time(unix_ms: int | None, times: str) -> str | int | None:
    if unix_ms is None or times == "ms":
        return _whole_second(unix_ms)
    return datetime.fromtimestamp(unix_ms // 1000, UTC).strftime(VEO_TIME_FORMATS[times])


def _mj_record(task: Task, state: str, urls: list[str]) -> Record:
    results = {"resultUrls": [{"resultUrl": url} for url in urls]}
    return {
        "taskId": task.id,
        "taskType": task.model,
        "paramJson": mj_param(task.body),
        "completeTime": task.ends_ms if state in FINAL_STATES else None,
        "resultInfoJson": results if state == SUCCESS else None,
        "successFlag": _success_flag(task, state),
        "createTime": task.created_ms,
        "errorCode": _number_of(task.fail_code) if state == FAIL else None,
        "errorMessage": task.fail_msg if state == FAIL else None,
    }


def mj_param(body: Mapping[str, Any]) -> str:
    """Return the request as Midjourney echoes it: with defaults, without empty values."""
    given = {name: value for name, value in body.items() if value not in (None, "")}
    return compact({**MJ_SERVER_DEFAULTS, **given})


def _success_flag(task: Task, state: str) -> int:
    if state == SUCCESS:
        return SUCCESS_FLAG
    if state == FAIL:
        rejected = _number_of(task.fail_code) in REJECTED_CODES
        return FAILED_FLAG if rejected else UPSTREAM_FAILED_FLAG
    known = {"waiting", "queuing", "generating"}
    return GENERATING_FLAG if state in known else UNKNOWN_FLAG


def _number_of(code: str) -> int:
    return int(code) if re.fullmatch(r"[0-9]{3}", code) else INTERNAL_ERROR_CODE


def _swap_result_type(record: Record) -> None:
    """Turn the result into an object where the API sends a string, and the reverse."""
    if "resultJson" in record:
        record["resultJson"] = json.loads(record["resultJson"])
        return
    name = "response" if "response" in record else "resultInfoJson"
    record[name] = compact(record[name])


def callback_of(task: Task) -> Record:
    """Return the body that is POSTed to a task's callback URL after its end."""
    assert task.ends_ms is not None
    if task.kind.api == "jobs":
        return _jobs_callback(task)
    if task.model == "veo_4k":
        return _veo_4k_callback(task)
    return _veo_callback(task) if task.kind.api == "veo" else _mj_callback(task)


def _jobs_callback(task: Task) -> Record:
    assert task.ends_ms is not None
    record = _jobs_record(task, _end_of(task), task.result_urls, task.ends_ms)
    data = {name: record[name] for name in JOBS_CALLBACK_FIELDS}
    data["updateTime"] = record["completeTime"]
    if task.succeeds:
        data["resultJson"] = record["resultJson"]
        return {"code": 200, "msg": "Playground task completed successfully.", "data": data}
    data |= {"failCode": task.fail_code, "failMsg": task.fail_msg, "resultJson": None}
    return {"code": FAILED_CALLBACK_CODE, "msg": "Playground task failed.", "data": data}


def _veo_callback(task: Task) -> Record:
    data: Record = {"taskId": task.id, "fallbackFlag": False}
    if not task.succeeds:
        return {"code": _number_of(task.fail_code), "msg": task.fail_msg, "data": data}
    response = _veo_response(task, task.result_urls)
    shown = ("resultUrls", "originUrls", "resolution")
    info = {name: response[name] for name in shown if response[name] is not None}
    data |= {"promptJson": _veo_param(task), "info": info}
    return {"code": 200, "msg": "Veo3.1 video generated successfully.", "data": data}


def _veo_4k_callback(task: Task) -> Record:
    if not task.succeeds:
        return {"code": INTERNAL_ERROR_CODE, "msg": task.fail_msg, "data": {"taskId": task.id}}
    info = {"resultUrls": task.result_urls, "imageUrls": []}
    msg = "4K Video generated successfully."
    return {"code": 200, "msg": msg, "data": {"taskId": task.id, "info": info}}


def _mj_callback(task: Task) -> Record:
    data = {
        "taskId": task.id,
        "promptJson": mj_param(task.body),
        "resultUrls": task.result_urls if task.succeeds else [],
    }
    if task.succeeds:
        return {"code": 200, "msg": "success", "data": data}
    return {"code": INTERNAL_ERROR_CODE, "msg": task.fail_msg, "data": data}


def _end_of(task: Task) -> str:
    return SUCCESS if task.succeeds else FAIL
