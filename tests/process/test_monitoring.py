"""The dashboard and the alerts: what they ask for exists, and they are documented and tested."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from generated.generation.v1 import generation_pb2 as pb
from providers.kie.simulator import Simulator
from tests.support.harness import upload_messages
from tests.support.paths import ROOT
from tests.support.processes import served, to
from tests.support.promql import grouping_labels, selectors
from tests.support.tools import run_tool

RULES = ROOT / "deploy/prometheus/alerts.yaml"
RULES_TEST = RULES.with_name("alerts_test.yaml")
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/generation.json").read_text())
DOCUMENT = (ROOT / "docs/metrics.md").read_text()
ROW = re.compile(r"^\| (Generation\w+) \| (\w+) \| (.+) \|$", re.MULTILINE)
SCRAPE_LABELS = {"job", "instance"}  # Prometheus adds them
[GROUP] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}


def queries() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each query of the dashboard with the title of its panel."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target


def filled(expression: str) -> str:
    """Return an expression of the dashboard with its variables replaced by their defaults."""
    values = {v["name"]: v["current"].get("value") for v in DASHBOARD["templating"]["list"]}
    values["__rate_interval"] = "5m"
    return re.sub(r"\$(\w+)", lambda found: str(values[found[1]]), expression)


EXPRESSIONS = [
    *(pytest.param(rule["expr"], id=name) for name, rule in ALERTS.items()),
    *(
        pytest.param(filled(target["expr"]), id=f"{title} {target['refId']}")
        for title, target in queries()
    ),
]


# --- what a process exposes ---


@dataclass(frozen=True)
class Exposed:
    """The samples of a scrape, and what their labels can be."""

    samples: list[Sample]
    labels: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    values: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        for sample in self.samples:
            self.labels[sample.name] |= sample.labels.keys()
            for label, value in sample.labels.items():
                self.values[sample.name, label].add(value)


@pytest.fixture(scope="module")
async def exposed(tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    """Scrape a process after two tasks and two refused calls."""
    folder = tmp_path_factory.mktemp("monitored")
    async with Simulator() as kie, served(folder, UPLOAD_MAX_BYTES="1", **to(kie.url)) as service:
        for prompt in ("a cat [sim:seconds=0.1]", "a cat [sim:seconds=0.1] [sim:fail]"):
            await service.end((await service.create(prompt)).id)
        for call in (
            service.stub.QueryTask(pb.QueryTaskRequest()),
            service.stub.UploadFile(iter(upload_messages(b"too large"))),
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                await call
        _, text = await service.get("/metrics")
    families = text_string_to_metric_families(text)
    return Exposed([sample for family in families for sample in family.samples])


# --- the dashboard and the alerts ask for what exists ---


@pytest.mark.parametrize("expression", EXPRESSIONS)
async def test_every_metric_and_label_of_an_expression_is_exposed(
    expression: str, exposed: Exposed
) -> None:
    exposed.labels["up"] |= SCRAPE_LABELS
    found = selectors(expression)
    assert found
    for selector in found:
        assert selector.metric in exposed.labels
        labels = exposed.labels[selector.metric] | SCRAPE_LABELS
        assert selector.labels | grouping_labels(expression) <= labels


@pytest.mark.parametrize("expression", EXPRESSIONS)
async def test_every_label_value_of_an_expression_is_exposed_or_documented(
    expression: str, exposed: Exposed
) -> None:
    for selector in selectors(expression):
        for label, value in selector.wanted:
            if label not in SCRAPE_LABELS:
                values = exposed.values[selector.metric, label]
                assert value in values | _documented(selector.metric, label)


def _documented(metric: str, label: str) -> set[str]:
    """Return the values of a label that occur only in case of failure."""
    if (metric, label) == ("generation_call_seconds_count", "code"):
        return {code.name for code in grpc.StatusCode}
    rows = re.findall(rf"^\| {label} \| (.+) \|$", DOCUMENT, re.MULTILINE)
    return set(re.findall(r"`([^`]+)`", " ".join(rows)))


# --- the alerts ---


def test_the_documented_alerts_are_the_rules() -> None:
    rules = [
        (name, rule["labels"]["severity"], rule["annotations"]["summary"])
        for name, rule in ALERTS.items()
    ]
    assert ROW.findall(DOCUMENT) == rules


def test_every_alert_says_what_to_do() -> None:
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["description"].endswith(".")


def test_every_alert_is_tested_quiet_and_firing() -> None:
    tested: dict[str, set[bool]] = defaultdict(set)
    for case in yaml.safe_load(RULES_TEST.read_text())["tests"]:
        for query in case["promql_expr_test"]:
            [alert] = re.findall(r'alertname="(\w+)"', query["expr"])
            tested[alert].add(bool(query["exp_samples"]))
    assert tested == {name: {True, False} for name in ALERTS}


def test_promtool_accepts_the_alerts_and_their_tests_pass() -> None:
    run_tool("promtool", "check", "rules", "--lint-fatal", RULES.name, folder=RULES.parent)
    run_tool("promtool", "test", "rules", RULES_TEST.name, folder=RULES.parent)


# --- the dashboard ---


async def test_every_metric_of_the_service_is_on_the_dashboard(exposed: Exposed) -> None:
    shown = {s.metric for _, target in queries() for s in selectors(filled(target["expr"]))}
    ours = {name for name in exposed.labels if name.startswith("generation_")}
    assert without_suffix(ours) == without_suffix(shown & ours)


def without_suffix(metrics: set[str]) -> set[str]:
    """Return the metrics of series: a histogram has several."""
    return {re.sub("_(bucket|count|sum)$", "", name) for name in metrics}


async def test_every_panel_shows_something(exposed: Exposed, tmp_path: Path) -> None:
    """Let Prometheus evaluate each query over a scrape whose counters grow."""
    series = [{"series": 'up{job="generation", instance="a"}', "values": "1x20"}]
    for sample in exposed.samples:
        labels = sample.labels | {"job": "generation", "instance": "a"}
        words = ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
        grows = sample.name.endswith(("_total", "_count", "_sum", "_bucket"))
        step = sample.value if grows else 0
        series.append(
            {"series": f"{sample.name}{{{words}}}", "values": f"{sample.value:f}+{step:f}x20"}
        )
    something = [
        {
            "expr": f"vector(1) and on () ({filled(target['expr'])})",
            "eval_time": "15m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for _, target in queries()
    ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": something}
    (tmp_path / "test.yaml").write_text(json.dumps({"rule_files": [], "tests": [test]}))
    run_tool("promtool", "test", "rules", "test.yaml", folder=tmp_path)


def test_every_legend_names_labels_that_its_query_keeps() -> None:
    for _, target in queries():
        labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        assert set(labels) <= grouping_labels(target["expr"])


def test_every_panel_uses_the_chosen_data_source_and_job() -> None:
    for title, target in queries():
        assert target["datasource"]["uid"] == "${datasource}", title
        for selector in selectors(target["expr"]):
            assert ("job", "=", "$job") in selector.matchers, title


def test_no_two_panels_overlap() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
