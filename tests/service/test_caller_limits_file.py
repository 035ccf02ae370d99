"""The file of limits: what is in it, and what happens when it changes."""

import time
from collections.abc import Callable

import grpc
import pytest
from structlog.testing import capture_logs

from generated.generation.v1 import generation_pb2 as pb
from generated.generation.v1.generation_pb2 import Imagen4Params
from kie_generation import GenerationClient
from kie_generation.errors import RefusedError
from service.caller_limits import CallerLimitsError, read_limits
from tests.support.callers import Files, Serving, all_waiting
from tests.support.metrics_page import Page, page_when, scrape
from tests.support.prompts import STUCK, STUCK_PROMPT


def problems(page: Page) -> float | None:
    return page.value("generation_config_problems", file="caller_limits")


async def test_a_model_that_is_not_allowed_is_refused_for_that_caller_alone(
    serve_both: Serving,
) -> None:
    async with serve_both('[callers.alice]\nmodels = ["veo*", "sora2"]\n') as (alice, bob):
        error = await alice.create_refused()
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        assert error.reason == "MODEL_NOT_ALLOWED"
        assert "imagen4" in error.message
        await alice.create({"veo3": {"prompt": STUCK_PROMPT}})
        await alice.create({"sora2": {"prompt": STUCK_PROMPT}})
        await bob.create(STUCK)
        assert (
            await alice.service.stub.ListTasks(pb.ListTasksRequest(), metadata=alice.metadata)
            != await bob.list()
        )


async def test_the_client_calls_a_model_that_is_not_allowed_a_refusal(
    serve_both: Serving,
) -> None:
    async with (
        serve_both('[callers.alice]\nmodels = ["veo3"]\n') as (alice, _),
        GenerationClient(alice.service.address, token="alice") as client,
    ):
        with pytest.raises(RefusedError) as caught:
            await client.create(Imagen4Params(prompt="x"), prompt_id="p")
        assert caught.value.reason == "MODEL_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("models", "allowed"),
    [
        ([], False),
        (["*"], True),
        (["imagen4"], True),
        (["imagen"], False),
        (["imagen4x"], False),
        (["imagen*"], True),
        (["imagen4*"], True),
        (["veo3", "i*"], True),
        (["google/*"], False),
        (["IMAGEN4"], False),
    ],
)
async def test_a_star_at_the_end_of_a_name_matches_a_prefix(
    serve_both: Serving, models: list[str], allowed: bool
) -> None:
    async with serve_both(f"[callers.alice]\nmodels = {models!r}\n") as (alice, _):
        if allowed:
            await alice.create(STUCK)
        else:
            assert (await alice.create_refused()).reason == "MODEL_NOT_ALLOWED"


BAD_FILES = {
    "not toml": ("queue", "must be TOML"),
    "a key outside of a table": ("queue = 1", "[queue] is unknown"),
    "an unknown table": ("[caller.alice]\nqueue = 1", "[caller] is unknown"),
    "an unknown key": ("[default]\nqueues = 1", "[default] queues is unknown"),
    "another of a caller": ("[callers.alice]\nque = 1", "[callers.alice] que is unknown"),
    "zero": ("[default]\nqueue = 0", "[default] queue must be greater than or equal to 1"),
    "less": ("[default]\nlists = -1", "[default] lists must be greater than or equal to 1"),
    "too much": ("[default]\nlists = 9999999999", "[default] lists must be less than or equal to"),
    "a bool": ("[default]\nrunning = true", "[default] running must be a whole number"),
    "a float": ("[default]\nwatches = 1.0", "[default] watches must be a whole number"),
    "infinity": ("[default]\nwatches = inf", "[default] watches must be a whole number"),
    "a text": ('[default]\nuploads = "1"', "[default] uploads must be a whole number"),
    "a list": ("[default]\nuploads = [1]", "[default] uploads must be a whole number"),
    "a text of models": ('[default]\nmodels = "a"', "[default] models must be a list"),
    "a number as a model": ("[default]\nmodels = [1]", "[default] models[0] must be the name"),
    "a star within": ('[default]\nmodels = ["a", "a*b"]', "[default] models[1] must be the name"),
    "an empty model": ('[default]\nmodels = [""]', "[default] models[0] must be the name"),
    "a blank model": ('[default]\nmodels = ["a b"]', "[default] models[0] must be the name"),
    "two stars": ('[default]\nmodels = ["a**"]', "[default] models[0] must be the name"),
    "a slash first": ('[default]\nmodels = ["/a"]', "[default] models[0] must be the name"),
    "a long model": (f'[default]\nmodels = ["{"a" * 129}"]', "[default] models[0] must be"),
    "no table": ("default = 1", "[default] must be a table"),
    "no table of callers": ("callers = 1", "[callers] must be a table"),
    "no table of a caller": ("[callers]\nalice = 1", "[callers.alice] must be a table"),
    "tables": ("[[default]]\nqueue = 1", "[default] must be a table"),
    "no name": ('[callers.""]\nqueue = 1', "[callers.''] cannot be the name"),
    "a blank name": ('[callers."a b"]\nqueue = 1', "[callers.'a b'] cannot be the name"),
    "twice": ("[default]\nqueue = 1\nqueue = 2", "must be TOML"),
    "an invisible name": ('[callers."\u200ba"]\nqueue = 1', "cannot be the name"),
    "a number of 5,000 digits": ("[default]\nqueue = " + "1" * 5_000, "must be TOML"),
    "deep": ("a = " + "[" * 5_000, "must be TOML"),
}


@pytest.mark.parametrize(("text", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_limit_is_named_with_its_table_and_key(text: str, words: str) -> None:
    with pytest.raises(CallerLimitsError) as caught:
        read_limits(text.encode())
    assert words in str(caught.value)


def test_every_bad_limit_of_a_file_is_named() -> None:
    with pytest.raises(CallerLimitsError) as caught:
        read_limits(b"[default]\nqueue = 0\n[callers.alice]\nruning = 1\nlists = true\n")
    for words in ("[default] queue", "[callers.alice] runing", "[callers.alice] lists"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"k{n} = 1\n" for n in range(1_000)),
        "[default]\nmodels = [" + '"a b",' * 1_000 + "]",
        ".".join("a" * 20_000) + " = 1",
        "[" + ".".join("a" * 20_000) + "]",
        "x = {" + ".".join("a" * 20_000) + " = 1}",
        "x = " + "[" * 100_000,
    ],
)
def test_a_file_of_another_kind_is_refused_in_few_words_and_in_little_time(text: str) -> None:
    began = time.thread_time()
    with pytest.raises(CallerLimitsError) as caught:
        read_limits(text.encode())
    assert len(str(caught.value)) < 3_000
    assert time.thread_time() - began < 1


def test_control_characters_of_a_file_are_shown_as_escapes() -> None:
    for text in ('[default]\n"\\u001b[31mred" = 1', '[callers."\\u001b[31mred"]', '"\\u001b" = 1'):
        with pytest.raises(CallerLimitsError) as caught:
            read_limits(text.encode())
        assert str(caught.value).isprintable()


def test_a_line_of_dots_or_of_many_models_is_no_long_key() -> None:
    models = ", ".join(['"kling-3.0/video"'] * 300)
    text = f"# {'.' * 300}\n[default]\nmodels = [{models}]\nqueue = 7\n"
    assert read_limits(text.encode()).default.queue == 7


def test_a_file_that_is_not_text_is_refused() -> None:
    with pytest.raises(CallerLimitsError, match="UTF-8"):
        read_limits(b"\xff\xfe")


def test_a_file_from_windows_is_read() -> None:
    assert read_limits("[default]\r\nqueue = 7\r\n".encode("utf-8-sig")).default.queue == 7


async def test_a_changed_file_counts_at_once_and_callers_inherit_the_default(
    serve_both: Serving, files: Files
) -> None:
    async with serve_both() as (alice, bob):
        await alice.create(STUCK)
        files.limit('[default]\nmodels = ["veo3"]\n[callers.alice]\ncreates_per_minute = 1\n')
        for caller in (alice, bob):
            assert (await caller.create_refused()).reason == "MODEL_NOT_ALLOWED"
        files.limit("[callers.alice]\ncreates_per_minute = 1\n")
        assert (await alice.create_refused()).metadata["limit"] == "creates_per_minute"
        await bob.create(STUCK)
        files.limit("")
        await alice.create(STUCK)


async def test_names_that_match_no_model_are_legal_and_logged_once_for_each_version_of_the_file(
    serve_both: Serving, files: Files
) -> None:
    models = (
        '[default]\nmodels = ["imagen4", "veo*"]\n[callers.alice]\nmodels = ["imagen", "zz*"]\n'
    )
    with capture_logs() as logs:
        async with serve_both(models) as (alice, bob):
            for _ in range(3):
                assert (await alice.create_refused()).reason == "MODEL_NOT_ALLOWED"
                await bob.create(STUCK)
            files.limit('[default]\nmodels = ["*", "sora3"]\n')
            await alice.create(STUCK)
    unknown = [line for line in logs if "unknown models" in line["event"]]
    assert [(line["log_level"], line["models"]) for line in unknown] == [
        ("warning", "imagen, zz*"),
        ("warning", "sora3"),
    ]


SPOILED: list[Callable[[Files], None]] = [
    lambda files: files.limit("[defualt]"),
    lambda files: files.limits.unlink(),
]


async def test_a_file_that_turns_bad_is_ignored_logged_once_and_shown(
    serve_both: Serving, files: Files
) -> None:
    limits = '[callers.alice]\nmodels = ["veo3"]\n'
    async with serve_both(limits, admin_address="127.0.0.1:0") as (alice, _):
        for spoil in SPOILED:
            with capture_logs() as logs:
                spoil(files)
                for _ in range(3):
                    assert (await alice.create_refused()).reason == "MODEL_NOT_ALLOWED"
            said = [line for line in logs if "caller limits file" in line["event"]]
            assert [line["log_level"] for line in said] == ["warning"]
            assert problems(await scrape(alice.service)) == 1
        files.limit("")
        await alice.create(STUCK)
        assert problems(await scrape(alice.service)) == 0


async def test_a_file_that_turns_bad_is_noticed_while_nobody_calls(
    serve_both: Serving, files: Files
) -> None:
    async with serve_both("", admin_address="127.0.0.1:0") as (alice, _):
        assert problems(await scrape(alice.service)) == 0
        files.limit("[[[")
        await page_when(alice.service, lambda page: problems(page) == 1)


async def test_a_second_caller_halves_the_defaults(serve_both: Serving, files: Files) -> None:
    files.name("alice")
    async with serve_both(kie_running_max=1, queue_max_tasks=3) as (alice, _):
        tasks = await all_waiting(alice, 3)
        assert (await alice.create_refused()).metadata["max"] == "3"
        files.name("alice", "bob")
        await alice.cancel(tasks[-1].id)
        error = await alice.create_refused()
        assert error.metadata == {"limit": "queue", "max": "2", "scope": "caller"}
