"""The provider of the service against the simulator: the catalogue, and every model in it.

Both read the same facts with code of their own, so a mistake in one of them shows here.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from generated.generation.v1.generation_pb2 import ProviderParams
from providers.base import Accepted, ParamsError, Recognition, Refused, Succeeded
from providers.kie.catalogue.client import Listing, NotAnswered, NotListed
from providers.kie.catalogue.facts import JsonSchema, bundled
from providers.kie.catalogue.known import BundledModels
from providers.kie.catalogue.openapi import ModelSchema
from providers.kie.client import KieProvider
from tests.support.kie_client import STILL, Kie, running
from tests.support.market_inputs import JOBS_MODELS, LISTED_JOBS_MODELS, MODELS, minimal_input

FAST = replace(STILL, seconds=dict.fromkeys(STILL.seconds, (0.0, 0.0)), catalogue_per_second=0)


class PublishedModels(BundledModels):
    """Schemas that a test has fetched."""

    def __init__(self) -> None:
        self.schemas: dict[str, JsonSchema | None] = {}

    def schema_of(self, model: str) -> JsonSchema | None:
        return self.schemas[model]


@pytest.fixture
async def kie() -> AsyncIterator[Kie]:
    async with running(FAST) as started:
        yield started


@pytest.fixture
def published() -> PublishedModels:
    return PublishedModels()


@pytest.fixture
async def provider(kie: Kie, published: PublishedModels) -> AsyncIterator[KieProvider]:
    url = kie.simulator.url
    provider = KieProvider(url, url, "any-key", known=published)
    yield provider
    await provider.close()


def params_of(model: str, given: dict[str, Any]) -> ProviderParams:
    params = ProviderParams()
    params.kie.market.model = model
    params.kie.market.input.update(given)
    return params


async def fetch(provider: KieProvider, published: PublishedModels, model: str) -> ModelSchema:
    found = await provider.catalogue.model_schema(model)
    assert isinstance(found, ModelSchema), (model, found)
    published.schemas[model] = found.input_schema
    return found


async def test_the_catalogue_lists_what_the_snapshot_lists(provider: KieProvider) -> None:
    found = await provider.catalogue.list_models()
    assert isinstance(found, Listing)
    assert found.ignored == 0
    listed = {facts.id: facts for facts in bundled().values() if facts.listed}
    assert {model.id for model in found.models} == set(listed)
    for model in found.models:
        facts = listed[model.id]
        assert (model.title, model.provider) == (facts.title, facts.provider)
        assert model.task_types == facts.task_types


async def test_every_published_schema_accepts_the_smallest_valid_input(
    provider: KieProvider, published: PublishedModels
) -> None:
    without_schema = 0
    for model in LISTED_JOBS_MODELS:
        found = await fetch(provider, published, model)
        params = params_of(model, minimal_input(model))
        assert provider.complete(params) is params, model
        if found.input_schema is None:
            without_schema += 1
            continue
        assert found.path == "jobs/createTask"
        assert set(found.input_schema["properties"]) >= set(MODELS[model]["fields"])
        unknown = params_of(model, {**minimal_input(model), "not_in_the_snapshot": 1})
        if MODELS[model].get("partial"):
            provider.complete(unknown)
        else:
            with pytest.raises(ParamsError, match="not_in_the_snapshot: is unknown"):
                provider.complete(unknown)
    assert 0 < without_schema < 40


async def test_every_model_is_created_and_ends_with_a_result(
    provider: KieProvider, published: PublishedModels
) -> None:
    async def run(model: str) -> None:
        params = params_of(model, minimal_input(model))
        accepted = await provider.submit(params, None)
        assert isinstance(accepted, Accepted), (model, accepted)
        task_id = accepted.provider_task_id
        assert await provider.recognise(params, task_id) is Recognition.AGREES, model
        outcome = await provider.poll(model, task_id, params)
        while not isinstance(outcome, Succeeded):
            await asyncio.sleep(0.01)
            outcome = await provider.poll(model, task_id, params)
        assert outcome.has_result, model
        assert not outcome.differs
        assert outcome.object_only == (MODELS[model]["result"] == "object"), model
        assert "application/octet-stream" not in outcome.mime_types
        if MODELS[model]["result"] == "audio":
            assert {kind.partition("/")[0] for kind in outcome.mime_types} == {"audio"}

    limit = asyncio.Semaphore(8)

    async def run_in_turn(model: str) -> None:
        async with limit:
            await run(model)

    await asyncio.gather(*map(run_in_turn, JOBS_MODELS))


async def test_a_number_for_a_text_field_is_refused_by_the_provider_too(
    provider: KieProvider, published: PublishedModels
) -> None:
    params = params_of("kling-3.0/video", {**minimal_input("kling-3.0/video"), "duration": 5})
    outcome = await provider.submit(params, None)
    assert isinstance(outcome, Refused)
    assert outcome.reason == "PROVIDER_REJECTED"


async def test_an_unknown_model_is_unavailable(provider: KieProvider) -> None:
    outcome = await provider.submit(params_of("acme/unheard-of", {}), None)
    assert isinstance(outcome, Refused)
    assert outcome.reason == "MODEL_UNAVAILABLE"
    assert isinstance(await provider.catalogue.model_schema("acme/unheard-of"), NotListed)


HOSTILE = ["recursive_schema", "slow_pattern", "changed_schema"]


@pytest.mark.parametrize("fault", HOSTILE)
async def test_a_hostile_schema_still_checks_what_is_known(
    kie: Kie, provider: KieProvider, published: PublishedModels, fault: str
) -> None:
    model = "nano-banana-2"
    kie.simulator.add_fault(f"schema:{fault},times=0")
    found = await fetch(provider, published, model)
    assert found.input_schema is not None
    given = (
        {**minimal_input(model), "added_field": "a"}
        if fault == "changed_schema"
        else (minimal_input(model))
    )
    provider.complete(params_of(model, given))
    with pytest.raises(ParamsError, match="resolutoin: is unknown; did you mean resolution"):
        provider.complete(params_of(model, {**given, "resolutoin": "1K"}))


async def test_a_huge_schema_is_no_answer(kie: Kie, provider: KieProvider) -> None:
    kie.simulator.add_fault("schema:large_schema,times=0")
    found = await provider.catalogue.model_schema("nano-banana-2")
    assert found == NotAnswered("more than 1048576 bytes")


async def test_the_limit_of_the_catalogue_is_met(kie: Kie) -> None:
    async with running(replace(FAST, catalogue_per_second=1)) as limited:
        url = limited.simulator.url
        provider = KieProvider(url, url, "any-key")
        answers = [await provider.catalogue.list_models() for _ in range(3)]
        await provider.close()
    assert isinstance(answers[0], Listing)
    refused = [answer for answer in answers if isinstance(answer, NotAnswered)]
    assert refused
    assert all(answer.limited for answer in refused)
