"""No samples by accident: who gets a simulator, and how it is reported."""

from pathlib import Path

import pytest

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.harness import API_KEY
from tests.support.processes import Launch, Served, served, started, to

EVERYWHERE = {"LISTEN_ADDRESS": "0.0.0.0:0", "ALLOW_UNAUTHENTICATED": "true"}


async def simulated(process: Served) -> float:
    """Return the gauge."""
    _, text = await process.get("/metrics")
    [line] = [line for line in text.splitlines() if line.startswith("generation_simulated ")]
    return float(line.split()[1])


@pytest.mark.parametrize(
    "variables",
    [
        {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"},
        EVERYWHERE,
        {"KIE_SIMULATOR": "false"},
    ],
)
async def test_a_replica_without_its_secret_does_not_start_and_says_what_is_missing(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    async with started(tmp_path, **variables) as process:
        assert await process.exit_code() == 2
    assert process.text.startswith("KIE_API_KEY: ")
    assert "KIE_SIMULATOR=true" in process.text


async def test_a_key_and_a_simulator_together_do_not_start(tmp_path: Path) -> None:
    async with started(tmp_path, KIE_SIMULATOR="true", KIE_API_KEY=API_KEY) as process:
        assert await process.exit_code() == 2
    assert process.text.startswith("KIE_SIMULATOR: ")
    assert API_KEY not in process.text


async def test_an_explicit_simulator_serves_other_machines_and_is_reported_everywhere(
    launch: Launch,
) -> None:
    async with launch(KIE_SIMULATOR="true", **EVERYWHERE) as process:
        end = await process.end((await process.create("a cat [sim:seconds=0]")).id)
        assert end.status == pb.TASK_STATUS_SUCCESS
        assert await simulated(process) == 1
        assert await process.get("/readyz") == (200, "ok\nsimulated: results are samples\n")
        [line] = [line for line in process.process.log if "KIE_SIMULATOR IS TRUE" in line["event"]]
        assert line["level"] == "warning"


async def test_replicas_can_share_a_simulator_without_a_key(
    tmp_path: Path, postgresql_url: str
) -> None:
    async with Simulator() as kie:
        urls = {"KIE_API_URL": kie.url, "KIE_UPLOAD_URL": kie.url}
        variables = {"KIE_SIMULATOR": "true", "DATABASE_URL": postgresql_url, **urls}
        async with served(tmp_path, **variables) as process:
            end = await process.end((await process.create("a cat [sim:seconds=0]")).id)
            assert end.status == pb.TASK_STATUS_SUCCESS
            await process.stop()
        assert len(kie.tasks) == 1


async def test_a_private_address_of_kie_counts_as_simulated_although_there_is_a_key(
    launch: Launch, kie: Simulator
) -> None:
    async with launch(**to(kie.url)) as process:
        assert await simulated(process) == 1
        assert await process.get("/readyz") == (200, "ok\nsimulated: results are samples\n")
        assert any("results count as simulated" in line["event"] for line in process.process.log)


async def test_a_private_address_that_is_declared_real_is_not_called_simulated(
    launch: Launch, kie: Simulator
) -> None:
    async with launch(KIE_SIMULATOR="false", **to(kie.url)) as process:
        assert await simulated(process) == 0
        assert await process.get("/readyz") == (200, "ok\n")
        assert "simulated" not in process.process.text
