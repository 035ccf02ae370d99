"""The Helm chart: what it renders fits the service, and a process with the rendered environment."""

import asyncio
import json
import re
import signal
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from service.settings import Settings
from tests.support.paths import ROOT
from tests.support.processes import served, to
from tests.support.tools import run_tool, try_tool
from tests.support.waiting import eventually

CHART = ROOT / "deploy/helm/generation"
SETTINGS = {name.upper() for name in Settings.model_fields}
GRPC, CALLBACKS, ADMIN = 50051, 8080, 9090
OUTSIDE = {53, 443, 5432}  # DNS, HTTPS and PostgreSQL
MONITORING = ("serviceMonitor.enabled=true", "alerts.enabled=true", "dashboard.enabled=true")
PROFILES = {
    "postgresql": (),
    "sqlite": ("database=sqlite",),
    "everything": (
        *("tls.secretName=pair", "tls.clientCa=true", "callerLimits=[default]"),
        *("settings.PUBLIC_URL=https://here.example", *MONITORING),
    ),
}
Manifest = dict[str, Any]


def setting_arguments(values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


class Rendered:
    """What the chart renders, by kind."""

    def __init__(self, *values: str) -> None:
        text = run_tool("helm", "template", "our", str(CHART), *setting_arguments(values))
        self.manifests = [each for each in yaml.safe_load_all(text) if each]

    def all(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def one(self, kind: str) -> Manifest:
        [manifest] = self.all(kind)
        return manifest

    @property
    def deployment(self) -> Manifest:
        spec: Manifest = self.one("Deployment")["spec"]
        return spec

    @property
    def pod(self) -> Manifest:
        spec: Manifest = self.deployment["template"]["spec"]
        return spec

    @property
    def container(self) -> Manifest:
        [container] = self.pod["containers"]
        return dict(container)

    @property
    def env(self) -> dict[str, Manifest]:
        entries = self.container["env"]
        assert len({entry["name"] for entry in entries}) == len(entries)
        return {entry["name"]: entry for entry in entries}

    @property
    def plain_env(self) -> dict[str, str]:
        return {name: entry["value"] for name, entry in self.env.items() if "value" in entry}


@pytest.fixture(params=PROFILES)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return Rendered(*PROFILES[request.param])


# --- any profile ---


@pytest.mark.parametrize("profile", PROFILES)
def test_helm_finds_nothing_to_complain_about(profile: str) -> None:
    run_tool("helm", "lint", "--strict", str(CHART), *setting_arguments(PROFILES[profile]))


def test_every_environment_variable_is_a_setting(rendered: Rendered) -> None:
    assert rendered.env.keys() <= SETTINGS


def test_secrets_are_only_referred_to(rendered: Rendered) -> None:
    assert not rendered.all("Secret")
    assert "valueFrom" in rendered.env["KIE_API_KEY"]


def test_every_port_is_one_of_ours(rendered: Rendered) -> None:
    ports = {port["name"]: port["containerPort"] for port in rendered.container["ports"]}
    addresses = {name: v for name, v in rendered.plain_env.items() if name.endswith("_ADDRESS")}
    assert {int(address.rpartition(":")[2]) for address in addresses.values()} == {*ports.values()}
    for service in rendered.all("Service"):
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert ports[rendered.container[probe]["httpGet"]["port"]] == ADMIN
    policy = rendered.one("NetworkPolicy")["spec"]
    assert _ports(policy["ingress"]) == {*ports.values()}
    assert _ports(policy["egress"]) <= OUTSIDE


def _ports(rules: list[Manifest]) -> set[int]:
    return {port["port"] for rule in rules for port in rule["ports"]}


def test_every_file_of_the_settings_is_mounted_and_every_volume_exists(
    rendered: Rendered,
) -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in rendered.container["volumeMounts"]}
    for name, value in rendered.plain_env.items():
        if name.endswith("_FILE"):
            assert str(Path(value).parent) in mounts
    assert sorted(mounts.values()) == sorted(volume["name"] for volume in rendered.pod["volumes"])


def test_the_container_has_no_privileges(rendered: Rendered) -> None:
    pod, container = rendered.pod["securityContext"], rendered.container["securityContext"]
    user = (ROOT / "Dockerfile").read_text().partition("\nUSER ")[2].splitlines()[0]
    assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == user
    assert pod["runAsNonRoot"]
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not rendered.pod["automountServiceAccountToken"]
    assert rendered.container["resources"]["limits"]["memory"]


def test_every_selector_finds_the_pods(rendered: Rendered) -> None:
    labels = rendered.deployment["template"]["metadata"]["labels"].items()
    selectors = [
        rendered.deployment["selector"]["matchLabels"],
        rendered.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(service["spec"]["selector"] for service in rendered.all("Service")),
        *(pdb["spec"]["selector"]["matchLabels"] for pdb in rendered.all("PodDisruptionBudget")),
    ]
    for selector in selectors:
        assert selector.items() <= labels


# --- the profiles ---


def test_postgresql_has_three_replicas_that_are_replaced_one_by_one() -> None:
    rendered = Rendered()
    assert rendered.deployment["replicas"] == 3
    assert rendered.deployment["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert rendered.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert "valueFrom" in rendered.env["DATABASE_URL"]
    assert not rendered.all("PersistentVolumeClaim")


def test_sqlite_has_one_replica_with_a_volume_that_uninstalling_keeps() -> None:
    rendered = Rendered("database=sqlite", "replicas=3")
    assert rendered.deployment["replicas"] == 1
    assert rendered.deployment["strategy"] == {"type": "Recreate"}
    claim = rendered.one("PersistentVolumeClaim")["metadata"]
    assert claim["annotations"] == {"helm.sh/resource-policy": "keep"}
    [volume] = [each for each in rendered.pod["volumes"] if each["name"] == "data"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["name"]
    assert rendered.env["DATABASE_URL"]["value"] == "sqlite:////data/generation.db"
    assert not rendered.all("PodDisruptionBudget")


def test_the_operator_finds_the_metrics_under_the_job_of_the_alerts() -> None:
    rendered = Rendered(*PROFILES["everything"])
    monitor = rendered.one("ServiceMonitor")["spec"]
    chosen = [
        service
        for service in rendered.all("Service")
        if monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    [service] = chosen
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "generation"
    [port] = service["spec"]["ports"]
    [endpoint] = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"], port["port"]) == (port["name"], "/metrics", ADMIN)


def test_the_service_of_the_callers_does_not_show_the_metrics() -> None:
    [service] = Rendered().all("Service")
    assert [port["port"] for port in service["spec"]["ports"]] == [GRPC]


def test_the_chart_delivers_the_alerts_and_the_dashboard() -> None:
    rendered = Rendered(*MONITORING)
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
    assert rendered.one("PrometheusRule")["spec"] == alerts
    dashboard = rendered.one("ConfigMap")["data"]["generation.json"]
    assert json.loads(dashboard) == json.loads(
        (ROOT / "deploy/grafana/generation.json").read_text()
    )


def test_everything_optional_can_be_turned_off() -> None:
    flags = ("service", "podDisruptionBudget", "networkPolicy")
    rendered = Rendered(*(f"{flag}.enabled=false" for flag in flags))
    assert [manifest["kind"] for manifest in rendered.manifests] == ["Deployment"]


# --- values ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("104857600", "104857600"),
        ("0.5", "0.5"),
        ("true", "true"),
        ("0", "0"),
        ('"007"', "007"),
        ("sora2", "sora2"),
    ],
)
def test_a_setting_reaches_the_service_as_it_is_written(
    text: str, value: str, tmp_path: Path
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(f"settings: {{UPLOAD_MAX_BYTES: {text}}}")
    rendered = run_tool("helm", "template", "our", str(CHART), "--values", str(file))
    [found] = re.findall(r"UPLOAD_MAX_BYTES, value: (.+)}", rendered)
    assert json.loads(found) == value


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ((), 43),
        (("settings.SHUTDOWN_SECONDS=60",), 75),
        (("settings.SHUTDOWN_SECONDS=0.5", "settings.DRAIN_DELAY_SECONDS=0"), 11),
        (("settings.SHUTDOWN_SECONDS=null", "settings.DRAIN_DELAY_SECONDS=null"), 19),
        (("settings.SHUTDOWN_SECONDS=", "settings.DRAIN_DELAY_SECONDS="), 19),
    ],
)
def test_a_pod_has_ten_seconds_more_to_stop_than_its_settings_say(
    values: tuple[str, ...], seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = Rendered(*values)
    for name in ("SHUTDOWN_SECONDS", "DRAIN_DELAY_SECONDS"):
        monkeypatch.setenv(name, rendered.plain_env.get(name, ""))
    settings = Settings()
    assert rendered.pod["terminationGracePeriodSeconds"] == seconds
    assert 10 <= seconds - settings.shutdown_seconds - settings.drain_delay_seconds < 11


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("settings.SHUTDOWN=1", "SHUTDOWN"),
        ("settings.KIE_API_KEY=secret", "KIE_API_KEY"),
        ("settings.LISTEN_ADDRESS=0.0.0.0:1", "LISTEN_ADDRESS"),
        ("secrets.LOG_LEVEL.name=x", "LOG_LEVEL"),
        ("secrets.KIE_API_KEY=null", "secrets.KIE_API_KEY"),
        ("secrets.DATABASE_URL=null", "secrets.DATABASE_URL"),
        ("secrets.KIE_API_KEY=null,settings.KIE_SIMULATOR=true", "settings.KIE_API_URL"),
        ("tokensSecret=", "tokensSecret"),
        ("tls.clientCa=true", "tls.secretName"),
        ("database=mysql", "database"),
        ("replicas=0", "replicas"),
        ("replicaCount=2", "replicaCount"),
        ("image.digest=latest", "digest"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(value: str, named: str) -> None:
    done = try_tool("helm", "template", "our", str(CHART), "--set", value)
    assert done.returncode != 0
    assert named in done.stderr


def test_a_digest_replaces_the_tag() -> None:
    digest = f"sha256:{'0' * 64}"
    rendered = Rendered("image.repository=registry.example/generation", f"image.digest={digest}")
    assert rendered.container["image"] == f"registry.example/generation@{digest}"


def test_the_chart_installs_the_version_of_the_service() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]


# --- a real process with the rendered environment ---

TOKEN = "secret"
METADATA: dict[str, Any] = {"metadata": (("authorization", f"Bearer {TOKEN}"),)}


def environment(rendered: Rendered, folder: Path) -> dict[str, str]:
    """Put the files of a pod into a folder, and return its environment for that place."""
    for name in ("config/tokens", "config/limits", "data"):
        (folder / name).mkdir(parents=True)
    token_hash = sha256(TOKEN.encode()).hexdigest()
    (folder / "config/tokens/tokens").write_text(f"me {token_hash}\n")
    limits = rendered.one("ConfigMap")["data"]["limits.toml"]
    (folder / "config/limits/limits.toml").write_text(limits)
    return {
        name: re.sub(r":(\d+)$", ":0", re.sub("/(config|data)/", rf"{folder}/\1/", value))
        for name, value in rendered.plain_env.items()
    }


async def test_a_pod_answers_its_probes_and_ends_within_its_grace_without_losing_a_paid_request(
    kie: Simulator, tmp_path: Path
) -> None:
    rendered = Rendered(
        "database=sqlite", "callerLimits=[default]", "settings.DRAIN_DELAY_SECONDS=1"
    )
    paths = {
        probe: rendered.container[f"{probe}Probe"]["httpGet"]["path"]
        for probe in ("startup", "readiness", "liveness")
    }
    settings = environment(rendered, tmp_path) | to(kie.url)
    async with served(tmp_path, **settings) as service:
        for path in paths.values():
            assert (await service.get(path))[0] == 200
        kie.add_fault("create:slow,seconds=3")
        creating = asyncio.create_task(service.create(**METADATA))
        await eventually(lambda: kie.stats["faults_struck"])
        service.process.signal(signal.SIGTERM)
        while (await service.get(paths["readiness"]))[0] != 503:
            assert not creating.done()
        assert (await service.get(paths["liveness"]))[0] == 200
        assert await service.process.exit_code(rendered.pod["terminationGracePeriodSeconds"]) == 0
        await asyncio.wait([creating])
    async with served(tmp_path, **settings) as service:
        [task] = (await service.stub.ListTasks(pb.ListTasksRequest(), **METADATA)).tasks
        ended = await service.end(task.id, **METADATA)
    assert ended.status == pb.TASK_STATUS_SUCCESS
    assert len(kie.tasks) == 1
