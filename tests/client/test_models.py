"""The models of the catalogue, through the client and on the command line."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from google.protobuf import json_format

from kie_generation import MarketParams, MeasuredModel, Model, RefusedError, sync
from kie_generation.cli.forms import form_lines, model_lines
from kie_generation.cli.market import market_params
from kie_generation.generated.generation.v1.generation_pb2 import ListModelsResponse
from tests.support.command import command
from tests.support.scripted_server import (
    Failure,
    ScriptedService,
    connected,
    pending,
    serving,
)

SCHEMA = {
    "type": "object",
    "required": ["prompt", "duration", "size"],
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "maxLength": 5000},
        "duration": {"type": "string", "enum": ["5", "10"], "default": "5"},
        "size": {"enum": [1, 2.5, True, "large", None]},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2147483647},
        "image_urls": {
            "type": "array",
            "maxItems": 4,
            "items": {"type": "string", "format": "uri"},
        },
        "camera": {
            "type": "object",
            "properties": {"speed": {"type": "number", "maximum": 1}},
        },
        "either": {"oneOf": [{"type": "string"}, {"type": "array"}]},
        "anything": {},
        "image": {"allOf": [{"anyOf": [{"type": "string", "format": "uri"}, {"type": "array"}]}]},
        "strength": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1.5},
        "a_name_that_is_longer_than_its_column": {"type": ["boolean", "null"]},
    },
    "oneOf": [{"required": ["image_urls"]}, {"required": ["camera"]}],
}
FORM = """\
  duration                 one of "5", "10"; default "5"
  prompt                   required; text; 1 to 5000 characters
  size                     required; one of 1, 2.5, true, large, null
  a_name_that_is_longer_than_its_column
                           true or false or null
  anything                 any value
  camera                   object
    speed                  number; at most 1
  either                   text or list
  image                    URL or list
  image_urls               list of: URL; at most 4 values
  seed                     whole number; 0 to 2147483647
  strength                 number; more than 0; less than 1.5
  either: image_urls
  either: camera"""


def model(model_id: str, **fields: Any) -> Model:
    fields.setdefault("lifecycle", Model.LIFECYCLE_ACTIVE)
    return Model(id=model_id, **fields)


def pages(*pages: list[Model]) -> list[ListModelsResponse]:
    tokens = [*map(str, range(1, len(pages))), ""]
    return [
        ListModelsResponse(models=models, next_page_token=token)
        for models, token in zip(pages, tokens, strict=True)
    ]


# --- the client ---


async def test_models_are_listed_across_pages_with_the_same_filter() -> None:
    service = ScriptedService()
    service.answers.extend(pages([model("a"), model("b")], [model("c")]))
    async with connected(service) as client:
        found = [
            each.id
            async for each in client.list_models("wan video", provider="Wan", include_retired=True)
        ]
    assert found == ["a", "b", "c"]
    assert [request.page_token for request in service.requests] == ["", "1"]
    for request in service.requests:
        assert (request.query, request.provider) == ("wan video", "Wan")
        assert request.include_retired


async def test_a_model_is_read_with_its_form_and_an_unknown_one_is_refused() -> None:
    service = ScriptedService()
    known = model("a", title="A")
    json_format.ParseDict(SCHEMA, known.input_schema)
    refusal = Failure(grpc.StatusCode.FAILED_PRECONDITION, "MODEL_UNAVAILABLE", "no such model")
    service.answers.extend([known, refusal])
    async with connected(service) as client:
        assert await client.get_model("a") == known
        with pytest.raises(RefusedError, match="no such model"):
            await client.get_model("b")
    assert [request.id for request in service.requests] == ["a", "b"]


async def test_a_market_task_is_created_or_only_validated() -> None:
    service = ScriptedService()
    service.answers.extend([pending(1), pending(1)])
    params = MarketParams(model="nano-banana-2")
    params.input.update({"prompt": "a cat", "seed": 5, "tags": [True, None]})
    async with connected(service) as client:
        await client.create(params, prompt_id="p")
        await client.create(params, prompt_id="p", validate_only=True)
    created, validated = service.requests
    assert created.provider_params.kie.market == params
    assert validated.provider_params == created.provider_params
    assert (created.validate_only, validated.validate_only) == (False, True)


async def test_the_blocking_client_lists_and_reads_models(address: str) -> None:
    def work() -> None:
        with sync.GenerationClient(address) as client:
            found = [each.id for each in client.list_models("nano banana")]
            assert "nano-banana-2" in found
            assert client.get_model("nano-banana-2").HasField("input_schema")

    await asyncio.to_thread(work)


# --- the command line ---


@pytest.mark.parametrize(
    ("inputs", "fields"),
    [
        ([], {}),
        (["prompt=a cat"], {"prompt": "a cat"}),
        (
            ["n=5", 'text="5"', "yes=true", "no=null"],
            {"n": 5, "text": "5", "yes": True, "no": None},
        ),
        (['list=["a", 1]', 'object={"k": []}'], {"list": ["a", 1], "object": {"k": []}}),
        (["url=https://x.example/?a=b", "empty="], {"url": "https://x.example/?a=b", "empty": ""}),
        (["n=NaN", "m=05", "s='x'"], {"n": "NaN", "m": "05", "s": "'x'"}),
        (['{"prompt": "a", "n": 2.5}', "m=1e2"], {"prompt": "a", "n": 2.5, "m": 100}),
    ],
)
def test_a_value_is_json_if_it_parses_and_text_otherwise(
    inputs: list[str], fields: dict[str, Any]
) -> None:
    params = market_params("m", inputs)
    assert json_format.MessageToDict(params.input) == fields
    assert params.model == "m"


def test_a_file_holds_the_whole_input(tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"prompt": "ä", "duration": "5"}')
    params = market_params("m", [f"@{file}", "seed=1"])
    assert json_format.MessageToDict(params.input) == {"prompt": "ä", "duration": "5", "seed": 1}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["prompt"], "must be name=value, @FILE or a JSON object"),
        (["=x"], "must be name=value"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["{a: 1}"], "is not JSON"),
        ([f"a={2**53 + 1}"], "is too large for a number"),
        (["{" + '"a":{' * 100_000], "is not JSON"),
    ],
)
def test_an_input_that_cannot_be_sent_is_wrong_usage(inputs: list[str], words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        market_params("m", inputs)


def test_a_file_without_a_json_object_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    for text in ("[1]", "5", "", "x"):
        file.write_text(text)
        with pytest.raises(typer.BadParameter):
            market_params("m", [f"@{file}"])


async def test_create_market_sends_the_model_and_its_input() -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with serving(service) as address:
        ran = await command(
            address,
            *("create", "market", "kling-3.0/video", "-i", "prompt=a storm", "-i", "sound=true"),
            *("--input", "@-", "--request-id", "r"),
            stdin=b'{"duration": "10"}',
        )
    assert ran.code == 0, ran.err
    market = service.requests[0].provider_params.kie.market
    assert market.model == "kling-3.0/video"
    assert dict(market.input) == {"prompt": "a storm", "sound": True, "duration": "10"}


async def test_broken_rules_name_the_inputs_of_the_command_line() -> None:
    service = ScriptedService()
    path = "provider_params.kie.market"
    fields = {f"{path}.input.image_urls[2]": "must be a URL", f"{path}.model": "is required"}
    service.answers.append(
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS", "no", fields=fields)
    )
    async with serving(service) as address:
        ran = await command(address, "create", "market", "m", "-i", "image_urls=[1, 2, 3]")
    assert ran.code == 2
    assert "-i image_urls[2]: must be a URL" in ran.err
    assert "MODEL: is required" in ran.err


@pytest.mark.parametrize(
    ("field", "command_in_hint"),
    [("input.duration", " model m/1\n"), ("model", " create market --help\n")],
)
async def test_a_broken_rule_of_an_input_leads_to_the_form_of_its_model(
    field: str, command_in_hint: str
) -> None:
    service = ScriptedService()
    fields = {f"provider_params.kie.market.{field}": "is wrong"}
    service.answers.append(
        Failure(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS", "no", fields=fields)
    )
    async with serving(service) as address:
        ran = await command(address, "create", "market", "m/1", "-i", "duration=5")
    assert ran.err.partition("hint: for the values: ")[2].endswith(command_in_hint)


async def test_validate_only_shows_the_task_and_says_that_nothing_was_created() -> None:
    service = ScriptedService()
    service.answers.append(pending(1))
    async with serving(service) as address:
        ran = await command(address, "create", "imagen4", "a cat", "--validate-only", "--watch")
    assert ran.code == 0
    assert service.requests[0].validate_only
    assert "nothing was created" in ran.err
    assert len(service.requests) == 1


async def test_models_are_a_table_of_eighty_columns() -> None:
    service = ScriptedService()
    long_id = "acme/" + "x" * 100
    models = [
        model("a/1", price_text="4 credits"),
        model("a/2", lifecycle=Model.LIFECYCLE_RETIRED, price_text="p" * 200),
        model(long_id, lifecycle=Model.LIFECYCLE_UNLISTED),
        model(
            "a/3",
            measured=MeasuredModel(tasks=9, median_credits=12.5, max_credits=20, median_seconds=61),
        ),
        model("a/4\x1b[2J", price_text="x\ny"),
    ]
    service.answers.extend(pages(models))
    async with serving(service) as address:
        ran = await command(address, "models", "nano", "banana", "--provider", "Google")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert all(len(line) <= 80 for line in lines if line != long_id)
    assert lines[0].split() == ["a/1", "4", "credits"]
    assert lines[1].split()[:2] == ["a/2", "retired"]
    assert lines[2] == long_id
    assert lines[3].split() == ["unlisted"]
    assert "12.5 credits, 61 s here" in lines[4]
    assert "\x1b" not in ran.out
    [request] = service.requests
    assert (request.query, request.provider) == ("nano banana", "Google")


async def test_no_model_is_a_note() -> None:
    service = ScriptedService()
    service.answers.extend(pages([]))
    async with serving(service) as address:
        ran = await command(address, "models", "zzz")
    assert (ran.code, ran.out) == (0, "")
    assert "no models" in ran.err


async def test_a_model_is_shown_with_the_form_to_fill_in() -> None:
    known = model("a/1", title="A", task_types=["Text to Image"], replacement="b/1")
    json_format.ParseDict(SCHEMA, known.input_schema)
    service = ScriptedService()
    service.answers.append(known)
    async with serving(service) as address:
        ran = await command(address, "model", "a/1")
    assert ran.code == 0
    head, _, form = ran.out.partition("\ninput\n")
    assert "b/1 instead" in head
    assert form.rstrip("\n") == FORM


async def test_json_output_is_one_model_per_line() -> None:
    service = ScriptedService()
    service.answers.extend(pages([model("a"), model("b")]))
    async with serving(service) as address:
        ran = await command(address, "--json", "models")
    assert [each["id"] for each in ran.objects()] == ["a", "b"]


def test_a_form_of_any_schema_fits_and_ends() -> None:
    deep: dict[str, Any] = {"type": "object", "properties": {}}
    for _ in range(20):
        deep = {"type": "object", "properties": {"inner": deep}}
    known = model("a")
    odd: dict[str, Any] = {
        "properties": {
            "choices": {"enum": [f"choice {n}" for n in range(500)]},
            "deep": deep,
            "text\x1b[2J": {"type": "string", "description": "d\x1b"},
            "unknown": {"type": "date"},
            "const": {"const": "x"},
        }
    }
    json_format.ParseDict(odd, known.input_schema)
    lines = form_lines(known)
    assert all(len(line) <= 80 for line in lines)
    assert not any("\x1b" in line for line in lines)
    assert any("and 440 more" in line for line in lines)
    assert form_lines(model("a")) == []
    assert json.dumps(model_lines(model("a"))) == '["a"]'


def test_fields_that_only_the_alternatives_describe_have_their_types() -> None:
    known = model("a")
    form = {
        "type": "object",
        "properties": {"kind": {}, "text": {}, "size": {}, "other": {}},
        "oneOf": [
            {
                "required": ["kind", "text"],
                "properties": {
                    "kind": {"enum": ["draw"]},
                    "text": {"type": "string", "maxLength": 9},
                    "size": {"type": "string"},
                },
            },
            {
                "required": ["kind"],
                "properties": {"kind": {"enum": ["edit"]}, "size": {"type": "integer"}},
            },
        ],
    }
    json_format.ParseDict(form, known.input_schema)
    assert form_lines(known) == [
        "  kind                     one of draw, edit",
        "  other                    any value",
        "  size                     text or whole number",
        "  text                     text; at most 9 characters",
        "  either: kind, text",
        "  either: kind",
    ]
