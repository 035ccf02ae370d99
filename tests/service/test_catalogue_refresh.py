"""The table of models follows the provider's catalogue, and survives whatever it answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.catalogue.client import ListedModel, Listing, NotAnswered, NotListed
from providers.kie.catalogue.openapi import ModelSchema
from providers.kie.simulator import Simulator
from service.bounds import BOUNDS, Bounds, UpkeepBounds
from service.catalogue import Catalogue, Lifecycle
from service.catalogue_changes import Change
from service.catalogue_refresh import CatalogueRefresh, RefreshTimes
from service.metrics import Metrics
from service.refresh_command import refresh_catalogue
from service.settings import Settings
from storage.models import StoredModel
from storage.opening import open_store
from storage.store import Store
from tests.support.harness import API_KEY, Serve, Service
from tests.support.market_inputs import LISTED_JOBS_MODELS, market
from tests.support.metrics_page import ADMIN, scrape
from tests.support.refusals import refused
from tests.support.waiting import eventually_answered

FAST = RefreshTimes(
    check_seconds=0.05,
    request_seconds=0.001,
    list_retry_seconds=0.3,
    limited_seconds=0.01,
)
NANO = "nano-banana-2"
FORM = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
REFRESHES = "generation_catalogue_refreshes_total"


def bounds(times: RefreshTimes = FAST) -> Bounds:
    return replace(BOUNDS, upkeep=UpkeepBounds(catalogue=times))


async def get(service: Service, model_id: str) -> pb.Model:
    return (await service.stub.GetModel(pb.GetModelRequest(id=model_id), timeout=10)).model


async def rounds(service: Service, result: str, count: int = 1) -> None:
    """Wait until so many rounds have ended with a result."""

    async def ended() -> bool:
        return ((await scrape(service)).value(REFRESHES, result=result) or 0) >= count

    await eventually_answered(ended)


@pytest.fixture
def refreshing(serve: Serve, kie: Simulator) -> Callable[..., Any]:
    """The service with a catalogue that is read at once, and hardly ever again."""
    kie.update(catalogue_per_second=0)

    def start(**settings: Any) -> Any:
        given = {"kie_catalogue_refresh_seconds": 3_600, "bounds": bounds()}
        return serve(**ADMIN, **given | settings)

    return start


# --- with the simulator ---


async def test_a_round_confirms_every_listed_model_and_reads_its_schema(
    refreshing: Callable[..., Any],
) -> None:
    async with refreshing() as service:
        await rounds(service, "applied")
        models = [await get(service, model_id) for model_id in LISTED_JOBS_MODELS]
        assert all(model.lifecycle == pb.Model.LIFECYCLE_ACTIVE for model in models)
        assert all(model.HasField("refresh_time") for model in models)
        assert all(model.HasField("input_schema") for model in models)
        assert not (await get(service, "nano-banana-2-1")).HasField("refresh_time")
        page = await scrape(service)
        assert page.value("generation_catalogue_models", lifecycle="ACTIVE") == 179
        assert page.value("generation_catalogue_refreshed_timestamp_seconds") == pytest.approx(
            time.time(), abs=60
        )


async def test_a_model_that_vanishes_is_retired_and_one_that_returns_is_active_again(
    refreshing: Callable[..., Any], kie: Simulator
) -> None:
    kie.update(withdrawn_models=[NANO])
    async with refreshing(kie_catalogue_refresh_seconds=0.3) as service:
        await rounds(service, "applied")
        assert (await get(service, NANO)).lifecycle == pb.Model.LIFECYCLE_RETIRED
        error = await refused(service.create(market(NANO, prompt="a cat")))
        assert error.reason == "MODEL_UNAVAILABLE"
        today = time.strftime("%Y-%m-%d", time.gmtime())
        assert f"has not been in the provider's catalogue since {today}" in error.message
        service.kie.update(withdrawn_models=[])

        async def returned() -> bool:
            return (await get(service, NANO)).lifecycle == pb.Model.LIFECYCLE_ACTIVE

        await eventually_answered(returned)
        await service.create(market(NANO, prompt="a cat"))


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        ("catalogue:fewer_models,times=0", "not_plausible"),
        ("catalogue:no_models,times=0", "not_plausible"),
        ("catalogue:other_models,times=0", "not_plausible"),
        ("catalogue:garbage,times=0", "not_answered"),
        ("catalogue:http,status=502,times=0", "not_answered"),
        ("catalogue:code,code=429,msg=call frequency is too high,times=0", "not_answered"),
        ("catalogue:code,code=404,msg=no,times=0", "not_answered"),
        ("catalogue:null_data,times=0", "not_answered"),
        ("catalogue:wrong_types,times=0", "not_answered"),
        ("catalogue:reset,times=0", "not_answered"),
    ],
)
async def test_a_list_that_cannot_be_right_changes_nothing(
    refreshing: Callable[..., Any], kie: Simulator, fault: str, result: str
) -> None:
    kie.add_fault(fault)
    async with refreshing() as service:
        await rounds(service, result)
        answer = await service.stub.ListModels(pb.ListModelsRequest(page_size=200))
        active = [m for m in answer.models if m.lifecycle == pb.Model.LIFECYCLE_ACTIVE]
        assert len(active) >= 170
        await service.create(market(NANO, prompt="a cat"))


async def test_the_catalogue_is_asked_again_after_a_failure(
    refreshing: Callable[..., Any], kie: Simulator
) -> None:
    kie.add_fault("catalogue:garbage,times=3")
    async with refreshing() as service:
        await rounds(service, "not_answered")
        await rounds(service, "applied")


@pytest.mark.parametrize(
    "kind", ["null_schema", "large_schema", "recursive_schema", "slow_pattern", "garbage", "http"]
)
async def test_a_bad_schema_holds_up_neither_creates_nor_the_other_schemas(
    refreshing: Callable[..., Any], kie: Simulator, kind: str
) -> None:
    kie.add_fault(f"schema:{kind},times=0,model={NANO}")
    async with refreshing() as service:
        await rounds(service, "applied")
        created = await service.create(market(NANO, prompt="a" * 20_000))
        assert created.provider_task_id
        error = await refused(service.create(market(NANO, prompt=5)))
        assert error.reason == "INVALID_PARAMS", "by the schema that was known"
        assert (await get(service, "kling-3.0/video")).HasField("refresh_time")


async def test_without_a_refresh_the_snapshot_is_used_and_the_catalogue_is_not_asked(
    serve: Serve,
) -> None:
    async with serve(**ADMIN, kie_catalogue_refresh_seconds=0, bounds=bounds()) as service:
        service.kie.add_fault("catalogue:code,code=500,times=0")
        await service.create(market(NANO, prompt="a cat"))
        page = await scrape(service)
        assert page.provider_calls("/api/v1/models", "200") is None
        assert page.value("generation_catalogue_refreshed_timestamp_seconds") == 0


# --- with a script ---


class Script:
    """A catalogue that answers as it is set, and keeps what it was asked for."""

    def __init__(self, *models: str) -> None:
        self.models = {model_id: entry(model_id) for model_id in models}
        self.schemas: dict[str, ModelSchema | NotListed | NotAnswered] = {}
        self.list_answers: list[Listing | NotAnswered] = []
        self.asked: list[str] = []
        self.times: list[float] = []

    async def list_models(self) -> Listing | NotAnswered:
        self._note("")
        if self.list_answers:
            return self.list_answers.pop(0)
        return Listing(tuple(self.models.values()), 0)

    async def model_schema(self, model: str) -> ModelSchema | NotListed | NotAnswered:
        self._note(model)
        return self.schemas.get(model, ModelSchema("jobs/createTask", FORM))

    def _note(self, model: str) -> None:
        self.asked.append(model)
        self.times.append(time.monotonic())


def entry(model_id: str, **changes: Any) -> ListedModel:
    model = ListedModel(model_id, model_id.title(), "Acme", ("Text to Image",), "4 credits")
    return replace(model, **changes)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A database without models of the snapshot."""
    store = open_store(database_url)
    yield store
    await store.close()


class Refreshed:
    """A process that refreshes the table of a store, without the snapshot."""

    def __init__(self, store: Store, script: Script, times: RefreshTimes = FAST) -> None:
        self.catalogue = Catalogue(snapshot=())
        self.script = script
        self.changes: list[tuple[str, str, str]] = []
        self.metrics = Metrics(())
        self.refresh = CatalogueRefresh(
            store,
            script,
            self.catalogue,
            self.metrics,
            refresh_seconds=3_600,
            times=times,
            on_change=self._note,
        )

    def _note(self, change: Change) -> None:
        self.changes.append((change.model.id, change.kind, change.detail))

    async def round(self) -> list[tuple[str, str, str]]:
        """Make a round, and return what changed."""
        self.changes.clear()
        self.script.asked.clear()
        await self.refresh.round()
        return sorted(self.changes)


async def start(store: Store, *models: str, times: RefreshTimes = FAST) -> Refreshed:
    refreshed = Refreshed(store, Script(*models), times)
    await refreshed.refresh.start()
    return refreshed


async def test_new_models_are_added_with_their_forms(store: Store) -> None:
    process = await start(store, "a/1", "a/2")
    assert await process.round() == [
        ("a/1", "added", "A/1"),
        ("a/1", "new form", "+prompt"),
        ("a/2", "added", "A/2"),
        ("a/2", "new form", "+prompt"),
    ]
    known = process.catalogue.get("a/1")
    assert known is not None
    assert (known.lifecycle, known.schema) == (Lifecycle.ACTIVE, FORM)
    assert known.stored.price_text == "4 credits"


async def test_new_and_changed_models_are_asked_for_their_schemas_before_the_oldest(
    store: Store,
) -> None:
    process = await start(store, "a/1", "a/2", "a/3")
    await process.round()
    process.script.models["a/3"] = entry("a/3", price_text="5 credits")
    process.script.models["b/new"] = entry("b/new")
    assert await process.round() == [
        ("a/3", "changed", "price: 4 credits -> 5 credits"),
        ("b/new", "added", "B/New"),
        ("b/new", "new form", "+prompt"),
    ]
    assert process.script.asked == ["", "a/3", "b/new", "a/1", "a/2"]


async def test_a_model_whose_schema_is_not_answered_does_not_hold_up_the_others(
    store: Store,
) -> None:
    process = await start(store, *(f"a/{n}" for n in range(6)))
    process.script.schemas["a/0"] = NotAnswered("an error page")
    await process.round()
    assert process.script.asked == ["", *["a/0"] * 3, "a/1", "a/2", "a/3", "a/4", "a/5"]
    for number in range(4):
        process.script.schemas[f"a/{number}"] = NotAnswered("an error page")
    await process.round()
    assert process.script.asked == ["", *["a/1"] * 3, *["a/2"] * 3, *["a/3"] * 3]
    await process.round()
    assert process.script.asked == ["", "a/4", "a/5", *["a/0"] * 3, *["a/1"] * 3, *["a/2"] * 3]


@pytest.mark.parametrize("answer", [ModelSchema("", None), NotListed("code 404")])
async def test_a_schema_that_the_catalogue_does_not_have_stays_as_it_is_known(
    store: Store, answer: ModelSchema | NotListed
) -> None:
    process = await start(store, "a/1")
    await process.round()
    process.script.schemas["a/1"] = answer
    assert await process.round() == []
    assert process.catalogue.schema_of("a/1") == FORM


async def test_an_unchanged_schema_stays_the_same_object(store: Store) -> None:
    process = await start(store, "a/1")
    await process.round()
    before = process.catalogue.schema_of("a/1")
    process.script.models["a/1"] = entry("a/1", title="Another")
    await process.round()
    assert process.catalogue.schema_of("a/1") is before
    process.script.schemas["a/1"] = ModelSchema("jobs/createTask", {**FORM, "required": []})
    assert ("a/1", "new form", "") in await process.round()
    assert process.catalogue.schema_of("a/1") == {**FORM, "required": []}


async def test_models_that_create_no_tasks_are_kept_but_not_offered_or_asked_for(
    store: Store,
) -> None:
    process = await start(store, "a/1", "chat", "omni")
    process.script.models["chat"] = entry("chat", task_types=("Chat",))
    process.script.schemas["omni"] = ModelSchema("omni/audio/create", FORM)
    await process.round()
    assert [m.stored.id for m in process.catalogue.models()] == ["a/1"]
    assert "chat" not in process.script.asked
    await process.round()
    assert process.script.asked == ["", "a/1"]
    reason = process.catalogue.unavailable("omni")
    assert reason is not None
    assert "does not create tasks" in reason


async def test_half_of_the_known_models_are_plausible_and_fewer_are_not(store: Store) -> None:
    process = await start(store, "a/1", "a/2", "a/3", "a/4")
    await process.round()
    half = Listing((entry("a/1"), entry("a/2")), 0)
    fewer = Listing((entry("a/1"), entry("b/1"), entry("b/2"), entry("b/3"), entry("b/4")), 0)
    process.script.list_answers = [fewer]
    assert await process.round() == []
    process.script.list_answers = [half]
    assert await process.round() == [("a/3", "retired", ""), ("a/4", "retired", "")]


async def test_a_limited_request_is_made_again(store: Store) -> None:
    process = await start(store, "a/1")
    process.script.list_answers = [NotAnswered("too fast", limited=True)]
    assert len(await process.round()) == 2
    assert process.script.asked == ["", "", "a/1"]


async def test_a_round_that_ended_early_continues_where_it_ended(store: Store) -> None:
    process = await start(store, *(f"a/{n}" for n in range(5)))
    for number in (1, 2, 3):
        process.script.schemas[f"a/{number}"] = NotAnswered("an error page")
    await process.round()
    process.script.schemas.clear()
    again = await start(store)
    await asyncio.sleep(FAST.list_retry_seconds)
    await again.refresh.run_once()
    assert again.script.asked == ["a/1", "a/2", "a/3", "a/4"]


async def test_a_restart_knows_the_stored_catalogue_without_asking(store: Store) -> None:
    first = await start(store, "a/1", "a/2")
    await first.round()
    del first.script.models["a/2"]
    await first.round()
    again = await start(store)
    assert again.catalogue.stored() == first.catalogue.stored()
    retired = again.catalogue.get("a/2")
    assert retired is not None
    assert retired.lifecycle is Lifecycle.RETIRED
    await again.refresh.run_once()
    assert again.script.asked == [], "the last round was an hour ago at most"


async def test_a_newer_snapshot_replaces_rows_that_the_catalogue_has_never_confirmed(
    store: Store,
) -> None:
    older = await start(store, "a/1")
    await older.round()
    await store.add_models([_row("s/1", "old"), _row("s/2", "old")])
    newer = Refreshed(store, Script())
    newer.catalogue.update([_row("s/1", "new"), _row("a/1", "new")])
    await newer.refresh.start()
    stored = newer.catalogue.stored()
    assert {name: stored[name].title for name in ("s/1", "s/2", "a/1")} == {
        "s/1": "new",
        "s/2": "old",
        "a/1": "A/1",
    }


def _row(model_id: str, title: str) -> StoredModel:
    return StoredModel(model_id, title, "Acme", (), "", "jobs/createTask", None, listed=True)


# --- the command ---


async def test_the_command_prints_what_changed_and_a_second_time_that_nothing_did(
    database_url: str, kie: Simulator
) -> None:
    kie.update(catalogue_per_second=0, withdrawn_models=[NANO])
    settings = Settings(
        database_url=SecretStr(database_url),
        kie_api_key=SecretStr(API_KEY),
        kie_api_url=kie.url,
        kie_upload_url=kie.url,
    )
    said: list[str] = []
    assert await refresh_catalogue(settings, said.append, FAST)
    assert f"retired: {NANO}" in said
    said.clear()
    assert await refresh_catalogue(settings, said.append, FAST)
    assert said == ["nothing changed"]
    kie.add_fault("catalogue:no_models,times=0")
    assert not await refresh_catalogue(settings, said.append, FAST)
    assert said == ["nothing changed"]


# --- several processes ---


@pytest.fixture
async def stores(postgresql_url: str) -> AsyncIterator[list[Store]]:
    """Two processes on one database."""
    stores = [open_store(postgresql_url) for _ in range(2)]
    yield stores
    for store in stores:
        await store.close()


async def test_one_process_makes_the_round_and_the_others_read_what_changed(
    stores: list[Store],
) -> None:
    processes = [await start(store, "a/1", "a/2") for store in stores]
    await asyncio.gather(*(process.refresh.run_once() for process in processes))
    asked = [process.script.asked for process in processes]
    assert sorted(asked) == [[], ["", "a/1", "a/2"]]
    for process in processes:
        await process.refresh.run_once()
        assert set(process.catalogue.stored()) == {"a/1", "a/2"}
        assert process.catalogue.schema_of("a/2") == FORM


async def test_requests_of_all_processes_together_keep_to_the_rate(stores: list[Store]) -> None:
    pace = replace(FAST, request_seconds=0.1)
    processes = [await start(store, "a/1", "a/2", "a/3", times=pace) for store in stores]
    await asyncio.gather(*(process.refresh.round() for process in processes))
    times = sorted(time for process in processes for time in process.script.times)
    assert len(times) == 8
    assert times[-1] - times[0] >= 0.1 * 7 * 0.9, "eight requests take seven intervals"
