"""compose.yaml: its settings exist, its images are pinned, and nothing in it is without a limit."""

import re
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.support.paths import ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = "generation-service"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_has_limits_and_no_new_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["logging"]["options"]["max-size"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_ours_or_has_a_full_version(name: str) -> None:
    image = SERVICES[name]["image"]
    if image == OURS:
        assert SERVICES[name]["read_only"]
        assert SERVICES[name]["cap_drop"] == ["ALL"]
    else:
        assert re.fullmatch(r"nginx:\d+\.\d+\.\d+|postgres:\d+\.\d+", image)


def test_every_environment_variable_is_a_setting() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    assert SERVICES["generation"]["environment"].keys() <= settings


def test_the_metrics_are_reachable_on_an_inner_network_only() -> None:
    generation = SERVICES["generation"]
    assert generation["environment"]["ADMIN_ADDRESS"] == "0.0.0.0:9090"
    assert "metrics" in generation["networks"]
    assert COMPOSE["networks"]["metrics"] == {"internal": True}
    assert "ports" not in generation


def test_only_the_replicas_reach_the_database() -> None:
    assert COMPOSE["networks"]["database"] == {"internal": True}
    reaching = {name for name, each in SERVICES.items() if "database" in each["networks"]}
    assert reaching == {"generation", "postgres"}
    assert SERVICES["postgres"]["networks"] == ["database"]


def test_what_holds_a_connection_for_each_watch_has_enough_descriptors() -> None:
    for name in ("balancer", "generation"):
        assert SERVICES[name]["ulimits"]["nofile"] >= 40_000


def test_a_replica_has_ten_seconds_more_to_stop_than_its_settings_say() -> None:
    generation = SERVICES["generation"]
    shutdown = generation["environment"]["SHUTDOWN_SECONDS"]
    assert generation["stop_grace_period"] == f"{shutdown + 10}s"
