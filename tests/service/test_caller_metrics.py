"""Metrics by caller."""

from typing import Any

from providers.kie.simulator import Simulator
from tests.support.callers import Files, Serving, all_waiting
from tests.support.databases import rows
from tests.support.harness import Service
from tests.support.metrics_page import scrape
from tests.support.prompts import STUCK
from tests.support.refusals import refused
from tests.support.waiting import eventually

CALLERS = "generation_caller_"
Values = dict[tuple[str, tuple[str, ...]], float]


async def scraped(service: Service) -> Values:
    """Return the values of the series about callers, by name and labels."""
    samples = [sample for family in (await scrape(service)).families for sample in family.samples]
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for sample in samples
        if sample.name.startswith(CALLERS)
    }


async def test_creates_refusals_and_ends_are_counted_by_caller_if_the_operator_wants_it(
    serve_both: Serving, files: Files, kie: Simulator
) -> None:
    settings: dict[str, Any] = {"metrics_per_caller": True, "admin_address": "127.0.0.1:0"}
    limits = "[callers.alice]\nrunning = 1\nqueue = 1\n[callers.bob]\nmodels = ['imagen4']\n"
    async with serve_both(limits, **settings) as (alice, bob):
        _, waiting = await all_waiting(alice, 1)
        await alice.create_refused()
        await alice.cancel(waiting.id)
        await refused(bob.create({"veo3": {"prompt": "x"}}))
        running = await bob.create(STUCK)
        shown = await scraped(alice.service)
        assert {key: value for key, value in shown.items() if not key[0].endswith("created")} == {
            (f"{CALLERS}creates_total", ("alice",)): 2,
            (f"{CALLERS}creates_total", ("bob",)): 1,
            (f"{CALLERS}refusals_total", ("alice", "queue")): 1,
            (f"{CALLERS}refusals_total", ("bob", "models")): 1,
            (f"{CALLERS}ends_total", ("alice", "FAILED")): 1,
        }
        assert await bob.is_sent(running.id)
        provider_task_id = (await bob.query(running.id)).provider_task_id
        files.name("alice")
        kie.finish(provider_task_id)
        await eventually(lambda: ends_of_bob(alice.service) == 1)
        assert shown.items() <= (await scraped(alice.service)).items()


def ends_of_bob(service: Service) -> int:
    sql = "SELECT count(*) FROM tasks WHERE caller = 'bob' AND status <> 'PENDING'"
    return int(rows(service.database_url, sql)[0][0])


async def test_by_default_no_caller_is_shown(serve_both: Serving) -> None:
    async with serve_both(admin_address="127.0.0.1:0") as (alice, _):
        await alice.create(STUCK)
        page = await scrape(alice.service)
    assert "alice" not in page.text
