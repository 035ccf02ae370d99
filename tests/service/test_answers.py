"""Every answer of tests/support/answers.py through the real service, to the gRPC surface."""

import asyncio
import html
import json
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import aiohttp
import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.http import Timeouts
from service.holds import HoldTimes
from service.limits import LimitBounds
from service.verdicts import VerdictBounds
from tests.support.answers import (
    CREATES,
    ECHOES,
    FAMILIES,
    INCONCLUSIVE,
    RECORDS,
    UPLOADS,
    URL,
    Becomes,
    Http,
    Row,
)
from tests.support.harness import poller_bounds, serving, upload_messages
from tests.support.kie_socket import Raw, Request, SocketKie, http
from tests.support.refusals import refusal
from tests.support.waiting import eventually

IMPATIENT = replace(
    poller_bounds(
        limits=LimitBounds(holds=HoldTimes(first_seconds=0.02, max_seconds=0.02)),
        verdicts=VerdictBounds(postpone_seconds=0.02),
    ),
    kie=Timeouts(rest_seconds=0.2),
)
QUOTE = "a poster that says credits insufficient and this model is not supported"
MINIMAL: dict[str, dict[str, Any]] = {
    family: {"task_type": "TASK_TYPE_TXT2IMG"} if family == "midjourney" else {}
    for family in FAMILIES
}
UNDECIDED = [
    Row(kind, answer, Becomes(urls=(URL,)), ("imagen4",)) for kind, answer, _ in INCONCLUSIVE
]
ROWS = [
    (f"row{number}", family, row)
    for number, row in enumerate([*CREATES, *RECORDS, *UNDECIDED])
    for family in row.families
]


def number_of(task_id: str) -> str:
    return str(crc32(task_id.encode()))


def filled(answer: Http, task_id: str, prompt: str = "") -> Raw:
    """Return an answer with the placeholders filled in."""
    data = answer.body if isinstance(answer.body, bytes) else answer.body.encode()
    number = number_of(task_id)
    values = {"@NUMBER": number, "@UPPER": task_id.upper(), "@QUOTE": prompt, "@ID": task_id}
    for name, value in values.items():
        data = data.replace(f'"{name}"'.encode(), number.encode()) if name == "@NUMBER" else data
        data = data.replace(name.encode(), value.encode())
        data = data.replace(name.encode("utf-16-le"), value.encode("utf-16-le"))
    headers = dict(answer.headers)
    return http(data, answer.status, headers, answer.announced, answer.stays_open)


class Player:
    """Answers with the row that a prompt names, and with a success where the row has nothing."""

    def __init__(self) -> None:
        self.rows = {f"{key}-{family}": row for key, family, row in ROWS}
        self.creates: Counter[str] = Counter()
        self.polls: Counter[str] = Counter()
        self.keys: dict[str, str] = {}
        self.prompts: dict[str, str] = {}

    def id_of(self, key: str) -> str:
        return f"task-of-{key}"

    def __call__(self, request: Request) -> Raw:
        if request.endpoint == "create":
            return self._created({**request.body, **request.body.get("input", {})}["prompt"])
        return self._polled(self.keys[request.task_id.strip().lower()])

    def _created(self, prompt: str) -> Raw:
        key = prompt.partition(" ")[0]
        task_id = self.id_of(key)
        self.prompts[key] = prompt
        for known in (task_id, number_of(task_id)):
            self.keys[known] = key
        self.creates[key] += 1
        row = self.rows[key]
        if row.kind.startswith("create") and self.creates[key] == 1:
            return filled(row.answer, task_id, prompt)
        return http(json.dumps({"code": 200, "data": {"taskId": task_id}}))

    def _polled(self, key: str) -> Raw:
        row = self.rows[key]
        self.polls[key] += 1
        played = row.kind.startswith("record") and (row not in UNDECIDED or self.polls[key] <= 2)
        return filled(row.answer, self.id_of(key)) if played else self._success(key)

    def _success(self, key: str) -> Raw:
        request = json.dumps({"input": {"prompt": self.prompts[key]}})
        record = {"param": request, "state": "success", "successFlag": 1}
        return http(json.dumps({"code": 200, "data": {**record, "response": [URL]}}))


class Played:
    """The result of every row."""

    def __init__(self) -> None:
        self.player = Player()
        self.ends: dict[str, pb.GenerationTask] = {}
        self.logs: list[Any] = []
        self.metrics = ""

    def counted(self, cause: str) -> float:
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics)
            for sample in family.samples
            if sample.name == "generation_polls_inconclusive_total"
            and sample.labels["cause"] == cause
        )


@pytest.fixture(scope="module")
async def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    played = Played()
    folder = tmp_path_factory.mktemp("answers")
    with capture_logs() as logs:
        settings: dict[str, Any] = {"create_wait_seconds": 0, "admin_address": "127.0.0.1:0"}
        settings["account_hold_seconds"] = 0  # one row must not hold the others
        kie: Any = SocketKie(played.player)
        async with kie, serving(folder, kie, bounds=IMPATIENT, **settings) as service:

            async def play(key: str, family: str) -> None:
                name = f"{key}-{family}"
                params = {family: {"prompt": f"{name} {QUOTE}", **MINIMAL[family]}}
                created = await service.create(params, timeout=60)
                async for task in service.watch(created.id, timeout=60):
                    played.ends[name] = task

            await asyncio.gather(*(play(key, family) for key, family, _ in ROWS))
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://{service.admin_address}/metrics") as page,
            ):
                played.metrics = await page.text()
        played.logs = list(logs)
    return played


def test_the_table_has_at_least_250_answers_of_at_least_40_kinds() -> None:
    kinds = {row.kind for _, _, row in ROWS} | {kind for kind, _, _ in UPLOADS}
    kinds |= {f"callback: a record that repeats the prompt {how}" for how, _ in ECHOES}
    assert len(ROWS) + len(UPLOADS) + len(ECHOES) >= 250
    assert len(kinds) >= 40


@pytest.mark.parametrize(
    ("key", "family", "row"), ROWS, ids=[f"{key}-{family}-{row.kind}" for key, family, row in ROWS]
)
async def test_each_answer_has_its_effect_on_a_task(
    played: Played, key: str, family: str, row: Row
) -> None:
    name = f"{key}-{family}"
    end, becomes = played.ends[name], row.becomes
    reason = pb.ErrorReason.Name(end.failure.reason).removeprefix("ERROR_REASON_")
    assert (reason if end.failure.reason else "") == becomes.reason, row.answer
    assert played.player.creates[name] == becomes.creates
    task_id = played.player.id_of(name)
    if becomes.provider_id is not None:
        assert end.provider_task_id == becomes.provider_id.replace("@ID", task_id).replace(
            "@NUMBER", number_of(task_id)
        )
    if becomes.urls is not None:
        assert tuple(artifact.url for artifact in end.artifacts) == becomes.urls
        assert tuple(json.loads(end.result_json)["resultUrls"]) == becomes.urls
    if becomes.credits is not None:
        assert end.credits_consumed == becomes.credits
    assert becomes.words in end.failure.message
    if becomes.code is not None:
        assert end.failure.provider_code == becomes.code
    assert becomes.kept in end.result_json
    assert "/callbacks/" not in end.result_json, "the seal of a callback URL is a secret"
    if becomes.logged:
        logged = [log for log in played.logs if log.get("task_id", end.id) == end.id]
        assert any(becomes.logged in json.dumps(log, ensure_ascii=False) for log in logged)


async def test_polls_without_a_verdict_are_counted_by_their_cause(played: Played) -> None:
    for cause in ("unreadable", "unavailable", "unknown_state"):
        expected = sum(2 for _, _, known in INCONCLUSIVE if known == cause)
        assert played.counted(cause) == expected


async def test_an_unknown_state_is_logged_once(played: Played) -> None:
    words = "a record has a state that this version does not know"
    warnings = [log["state"] for log in played.logs if log["event"] == words]
    assert len(warnings) == len(set(warnings)) == 4


# --- records found through a callback ---

PROMPT = 'Ein Caf\u0065\u0301 & "Kr\u00fcmel" <am> See, \ufb01ne \u2460 Tage lang im Regen'
REPEATED = {
    "@PROMPT": PROMPT,
    "@NFC": unicodedata.normalize("NFC", PROMPT),
    "@NFKC": unicodedata.normalize("NFKC", PROMPT),
    "@HTML2": html.escape(html.escape(PROMPT)),
    "@HTML": html.escape(PROMPT),
    "@CAPITALS": PROMPT.upper(),
    "@CUT": PROMPT[:40],
}


@pytest.mark.parametrize(("how", "echo"), ECHOES, ids=[how for how, _ in ECHOES])
async def test_an_orphan_is_recovered_by_a_record_that_repeats_its_prompt(
    tmp_path: Path, unused_tcp_port: int, how: str, echo: str
) -> None:
    urls: list[str] = []
    repeated = echo
    for name, value in REPEATED.items():
        repeated = repeated.replace(name, json.dumps(value)[1:-1])

    def answer(request: Request) -> Raw:
        if request.endpoint == "create":
            urls.append(request.body["callBackUrl"])
            return http("")
        param = json.dumps({"input": json.dumps({"prompt": json.loads(repeated)})})
        record = {"taskId": request.task_id, "param": param, "state": "success", "response": [URL]}
        return http(json.dumps({"code": 200, "data": record}))

    settings: dict[str, Any] = {
        "http_address": f"127.0.0.1:{unused_tcp_port}",
        "public_url": f"http://127.0.0.1:{unused_tcp_port}",
        "create_wait_seconds": 0,
    }
    kie: Any = SocketKie(answer)
    async with kie, serving(tmp_path, kie, **settings) as service:
        created = await service.create({"imagen4": {"prompt": PROMPT}})
        await eventually(lambda: bool(urls))
        body = {"data": {"taskId": "a-task-at-kie"}}
        async with aiohttp.ClientSession() as session, session.post(urls[0], json=body) as posted:
            assert posted.status == 200
        end = await service.end(created.id)
    assert [artifact.url for artifact in end.artifacts] == [URL]
    assert kie.count("create") == 1


# --- uploads ---


@pytest.mark.parametrize(("kind", "given", "reason"), UPLOADS)
async def test_each_answer_has_its_effect_on_an_upload(
    tmp_path: Path, kind: str, given: Http, reason: str
) -> None:
    kie: Any = SocketKie(lambda _: filled(given, ""))
    async with kie, serving(tmp_path, kie) as service:
        uploading = service.stub.UploadFile(iter(upload_messages(b"x" * 1_000)), timeout=20)
        if reason:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await uploading
            assert refusal(caught.value).reason == reason
        else:
            assert (await uploading).file.download_url == URL
