"""With RESULTS_URL, SUCCESS means that the results are in our own storage."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from generated.generation.v1 import generation_pb2 as pb
from service.copy_verdicts import CopyBounds
from service.verdicts import VerdictBounds
from tests.support.databases import change, rows
from tests.support.harness import Serve, Service, poller_bounds
from tests.support.kept_places import FolderPlace
from tests.support.media_host import MIB, Cut, MediaHost, media, media_host
from tests.support.waiting import eventually

Start = Callable[..., AbstractAsyncContextManager[Service]]
QUICK = CopyBounds(retry_seconds=0.01, retry_max_seconds=0.05)


@pytest.fixture
async def host() -> AsyncIterator[MediaHost]:
    async with media_host() as host:
        yield host


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path / "results")


@pytest.fixture
def start(serve: Serve, host: MediaHost, place: FolderPlace) -> Start:
    """Start the service with this provider, and with this place for results."""

    def start(**settings: Any) -> AbstractAsyncContextManager[Service]:
        usual = {
            "kie_api_url": host.base,
            "kie_upload_url": host.base,
            "results_url": place.url,
            "bounds": poller_bounds(copies=QUICK),
        }
        return serve(**usual | settings)

    return start


def prompt(*names: str) -> dict[str, Any]:
    return {"imagen4": {"prompt": json.dumps(names)}}


def stuck(host: MediaHost, name: str) -> asyncio.Event:
    """Let a file hang until an event is set."""
    go = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        await go.wait()
        return await host.send_file(request, name)

    host.answers[name] = answer
    return go


def check_copies(task: pb.GenerationTask, place: FolderPlace, *contents: bytes) -> None:
    """Check that a task has these results, in this order."""
    assert len(task.artifacts) == len(contents)
    for artifact, content in zip(task.artifacts, contents, strict=True):
        assert artifact.storage_error == ""
        assert artifact.size_bytes == len(content)
        assert artifact.sha256 == hashlib.sha256(content).digest()
        assert place.content(artifact.storage_uri) == content
    assert place.temporary() == []


def is_storing(task: pb.GenerationTask) -> bool:
    return task.stage == pb.TASK_STAGE_STORING


# --- the copy ---


async def test_a_successful_task_has_copies_of_all_its_results(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    contents = [media(MIB + number, number) for number in range(3)]
    for number, content in enumerate(contents):
        host.add(f"{number}.mp4", content)
    async with start() as service:
        task = await service.create(prompt("0.mp4", "1.mp4", "2.mp4"))
        end = await service.end(task.id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        check_copies(end, place, *contents)
        day = end.create_time.ToDatetime().strftime("%Y/%m/%d")
        assert place.names() == {f"{day}/{task.id}/{number}.mp4" for number in range(3)}
        assert [artifact.url for artifact in end.artifacts] == [
            host.url(f"{number}.mp4") for number in range(3)
        ]
        assert await service.query(task.id) == end


async def test_while_results_are_copied_they_are_shown_with_the_urls_of_the_provider(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    host.add("0.png", media(99))
    host.add("1.mp4", media(99))
    go = stuck(host, "1.mp4")
    async with start() as service:
        task = await service.create(prompt("0.mp4", "1.mp4"))
        host.add("0.mp4", media(99))
        storing = await service.until(task.id, is_storing)
        await eventually(place.names)
        assert await service.query(task.id) == storing
        assert storing.status == pb.TASK_STATUS_PENDING
        assert [(each.url, each.mime_type) for each in storing.artifacts] == [
            (host.url("0.mp4"), "video/mp4"),
            (host.url("1.mp4"), "video/mp4"),
        ]
        assert not any(each.storage_uri or each.storage_error for each in storing.artifacts)
        assert storing.result_json
        assert not storing.HasField("complete_time")
        go.set()
        end = await service.end(task.id)
        assert end.complete_time.ToNanoseconds() > storing.update_time.ToNanoseconds()
        assert [each.expire_time for each in end.artifacts] == [
            each.expire_time for each in storing.artifacts
        ]


async def test_a_task_in_storing_does_not_count_as_running(start: Start, host: MediaHost) -> None:
    go = stuck(host, "0.mp4")
    host.add("0.mp4", media(99))
    async with start(kie_running_max=1) as service:
        tasks = [await service.create(prompt("0.mp4")) for _ in range(3)]
        for task in tasks:
            await service.until(task.id, is_storing)
        go.set()
        for task in tasks:
            await service.end(task.id)


async def test_only_so_many_results_are_copied_at_a_time(start: Start, host: MediaHost) -> None:
    now, most = 0, 0
    content = media(99)

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return await host.send_file(request, "0.mp4")

    host.add("0.mp4", content)
    host.answers["0.mp4"] = answer
    async with start(results_parallel=2) as service:
        tasks = [await service.create(prompt(*["0.mp4"] * 3)) for _ in range(4)]
        for task in tasks:
            await service.end(task.id)
    assert most == 2


@pytest.mark.parametrize("results_url", ["", "/", "/sub/folder"])
async def test_copies_have_public_urls_if_they_are_published(
    start: Start, host: MediaHost, place: FolderPlace, results_url: str
) -> None:
    host.add("0.mp4", media(99))
    settings = {
        "results_url": f"{place.url}{results_url}",
        "results_public_url": "https://cdn.example.com/kept",
    }
    async with start(**settings) as service:
        task = await service.create(prompt("0.mp4"))
        [artifact] = (await service.end(task.id)).artifacts
        day = task.create_time.ToDatetime().strftime("%Y/%m/%d")
        assert artifact.public_url == f"https://cdn.example.com/kept/{day}/{task.id}/0.mp4"


# --- failed attempts ---


async def test_a_copy_that_fails_is_tried_until_it_succeeds(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    content = media(3 * MIB)
    host.add("0.mp4", content)
    host.cuts["0.mp4"] = [Cut(MIB, times=3), Cut(2 * MIB, times=3)]
    async with start() as service:
        task = await service.create(prompt("0.mp4"))
        seen = [each async for each in service.watch(task.id)]
        check_copies(seen[-1], place, content)
        storing = [each for each in seen if is_storing(each)]
        assert len({each.revision for each in storing}) == 1, "attempts are not visible"
    assert host.asked["0.mp4"] == 7


async def test_after_a_while_a_task_is_success_without_the_copies_that_failed(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    content = media(MIB)
    host.add("1.mp4", content)
    host.add("0.mp4", b"<html>down</html>")
    async with start(results_give_up_seconds=0.3) as service:
        task = await service.create(prompt("0.mp4", "1.mp4"))
        end = await service.end(task.id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        failed, copied = end.artifacts
        assert failed.storage_error == "the content is text/html, but should be video/mp4"
        assert failed.url == host.url("0.mp4")
        assert (failed.storage_uri, failed.sha256, failed.HasField("size_bytes")) == (
            "",
            b"",
            False,
        )
        assert place.content(copied.storage_uri) == content
    assert host.asked["1.mp4"] == 1
    assert host.asked["0.mp4"] > 1


async def test_a_result_that_never_arrives_ends_no_later_than_one_that_is_refused(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    content = media(99)
    host.add("0.mp4", content)
    stuck(host, "1.mp4")
    quick = replace(QUICK, last_min_seconds=0.5)
    bounds = poller_bounds(copies=quick)
    async with start(results_give_up_seconds=0.3, bounds=bounds) as service:
        task = await service.create(prompt("0.mp4", "1.mp4"))
        copied, late = (await service.end(task.id)).artifacts
        assert late.storage_error == "the result was not copied in time"
        assert place.content(copied.storage_uri) == content
    assert place.temporary() == []


async def test_a_fresh_link_is_asked_for_at_the_provider(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    content = media(MIB)
    host.fresh[host.url("gone.mp4")] = host.add("fresh.mp4", content)
    async with start() as service:
        task = await service.create(prompt("gone.mp4"))
        end = await service.end(task.id)
        check_copies(end, place, content)
        assert end.artifacts[0].url == host.url("gone.mp4")


async def test_a_url_inside_our_network_is_refused_and_the_task_ends_all_the_same(
    start: Start, host: MediaHost
) -> None:
    async with media_host() as inside, start(results_give_up_seconds=0.1) as service:
        inside.add("0.mp4", media(99))
        task = await service.create(prompt(inside.url("0.mp4")))
        [artifact] = (await service.end(task.id)).artifacts
        assert artifact.storage_error
        assert not inside.asked


async def test_a_storage_that_is_gone_for_a_while_loses_nothing(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    content = media(MIB)
    host.add("0.mp4", content)
    async with start() as service:
        place.disappear()
        task = await service.create(prompt("0.mp4"))
        await eventually(lambda: host.asked["0.mp4"] > 2)
        assert is_storing(await service.query(task.id))
        place.reappear()
        check_copies(await service.end(task.id), place, content)


# --- late deliveries ---

LATE = poller_bounds(copies=QUICK, verdicts=VerdictBounds(late_poll_seconds=0.01))


async def test_a_late_delivery_is_copied_before_it_is_added(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    content = media(MIB)
    host.add("0.mp4", content)
    host.add("1.mp4", content)
    host.cuts["0.mp4"] = [Cut(99, times=2)]
    host.is_late = True
    async with start(task_max_age_seconds=0.2, bounds=LATE) as service:
        task = await service.create(prompt("0.mp4", "1.mp4"))
        failed = await service.end(task.id)
        assert failed.status == pb.TASK_STATUS_FAILED
        host.is_late = False
        added = await service.until(task.id, lambda each: bool(each.artifacts))
        assert added.status == pb.TASK_STATUS_FAILED
        assert added.revision == failed.revision + 1
        check_copies(added, place, content, content)
    assert host.asked["0.mp4"] == 3


async def test_a_late_delivery_that_cannot_be_copied_is_added_in_the_end(
    start: Start, host: MediaHost
) -> None:
    host.is_late = True
    settings = {"task_max_age_seconds": 0.2, "bounds": LATE, "results_give_up_seconds": 0.3}
    async with start(**settings) as service:
        task = await service.create(prompt("0.mp4"))
        await service.end(task.id)
        host.is_late = False
        added = await service.until(task.id, lambda each: bool(each.artifacts))
        assert added.artifacts[0].storage_error == "the server of the result answered HTTP 404"


# --- restarts ---


async def test_a_copy_continues_after_a_restart(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    content = media(MIB)
    go = stuck(host, "0.mp4")
    host.add("0.mp4", content)
    async with start() as service:
        task = await service.create(prompt("0.mp4"))
        await service.until(task.id, is_storing)
        await eventually(lambda: host.asked["0.mp4"])
    go.set()
    async with start() as service:
        check_copies(await service.end(task.id), place, content)


async def test_a_process_that_keeps_no_results_ends_the_tasks_that_wait_for_copies(
    start: Start, host: MediaHost
) -> None:
    stuck(host, "0.mp4")
    bounds = poller_bounds(copies=replace(QUICK, left_to_others_seconds=0.1))
    async with start() as service:
        task = await service.create(prompt("0.mp4"))
        await service.until(task.id, is_storing)
        await eventually(lambda: host.asked["0.mp4"])
    async with start(results_url=None, bounds=bounds) as service:
        [artifact] = (await service.end(task.id)).artifacts
        assert artifact.storage_error == "results are no longer copied: RESULTS_URL is not set"


async def test_tasks_that_ended_before_are_not_copied(
    start: Start, host: MediaHost, place: FolderPlace
) -> None:
    host.add("0.mp4", media(99))
    async with start(results_url=None) as service:
        task = await service.create(prompt("0.mp4"))
        end = await service.end(task.id)
    async with start() as service:
        assert await service.query(task.id) == end
    assert host.asked["0.mp4"] == 0


async def test_without_a_storage_nothing_changes(start: Start, host: MediaHost) -> None:
    async with start(results_url=None) as service:
        task = await service.create(prompt("0.mp4"))
        seen = [each async for each in service.watch(task.id)]
        assert seen[-1].status == pb.TASK_STATUS_SUCCESS
        assert not any(map(is_storing, seen))
        [artifact] = seen[-1].artifacts
        assert artifact == pb.Artifact(
            url=host.url("0.mp4"), mime_type="video/mp4", expire_time=artifact.expire_time
        )
    assert host.asked["0.mp4"] == 0


# --- the purge ---


@pytest.mark.parametrize("deletes", [False, True])
async def test_copies_are_purged_with_their_tasks_only_if_configured(
    start: Start, host: MediaHost, place: FolderPlace, deletes: bool
) -> None:
    host.add("0.mp4", media(99))
    settings: dict[str, Any] = {"task_retention_seconds": 3_600, "results_delete_on_purge": deletes}
    async with start(**settings) as service:
        tasks = [await service.create(prompt("0.mp4")) for _ in range(2)]
        for task in tasks:
            await service.end(task.id)
        kept = place.names()
        assert len(kept) == 2
        database_url = service.database_url
    old = "UPDATE tasks SET complete_time = 1, update_time = 1 WHERE id = ?"
    change(database_url, old, tasks[0].id)
    async with start(**settings):
        await eventually(lambda: len(rows(database_url, "SELECT id FROM tasks")) == 1)
    assert place.names() == ({name for name in kept if tasks[1].id in name} if deletes else kept)
