"""Alert rules by promtool, dashboards and the collector's configuration by what they refer to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.config import AppConfig
from router.tracing import SERVE_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "k8s" / "components" / "monitoring"
TRACING = ROOT / "k8s" / "components" / "tracing"
ALERTS = Path(__file__).parent / "alerts.yaml"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))

dashboards = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


@pytest.fixture
def rules() -> dict[str, Any]:
    return yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]


@pytest.fixture
def checked(tmp_path: Path, rules: dict[str, Any]) -> Path:
    """A folder with the rules as Prometheus itself reads them, and their tests."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    shutil.copy(ALERTS, tmp_path)
    return tmp_path


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing: it comes with Debian's package `prometheus`")
    return subprocess.run([found, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def test_promtool_takes_the_rules(checked):
    told = promtool(checked, "check", "rules", "rules.yaml")
    assert told.returncode == 0, told.stderr
    assert "SUCCESS" in told.stdout


def test_alerts_fire_when_they_should(checked):
    told = promtool(checked, "test", "rules", "alerts.yaml")
    assert told.returncode == 0, told.stderr


def test_every_alert_has_a_test(rules):
    named = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert len(named) >= 10
    assert {name for name in named if name not in ALERTS.read_text()} == set()


def test_the_tests_of_the_alerts_can_fail(checked):
    rules = checked / "rules.yaml"
    rules.write_text(rules.read_text().replace("glimpse:error_ratio > 0.02", "glimpse:error_ratio > 0.5"))
    assert "GlimpRouterErrors" in promtool(checked, "test", "rules", "alerts.yaml").stderr


def test_alerts_look_at_what_is_recorded(rules):
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    for group in rules["groups"]:
        for alert in (rule for rule in group["rules"] if "alert" in rule):
            assert re.fullmatch(r"(\S+) [<>] [0-9.]+", alert["expr"]).group(1) in recorded
            assert alert["labels"]["severity"] in {"critical", "warning", "info"}


def test_the_operator_gets_all_dashboards(overlay):
    maps = [
        one
        for one in overlay
        if one["kind"] == "ConfigMap" and "grafana_dashboard" in one["metadata"].get("labels", {})
    ]
    if not any(one["kind"] == "PodMonitor" for one in overlay):
        assert maps == []
        return
    assert sorted(maps[0]["data"]) == [path.name for path in DASHBOARDS]


@dashboards
def test_a_dashboard_is_whole(path):
    board = json.loads(path.read_text())
    assert {other for other in DASHBOARDS if json.loads(other.read_text())["uid"] == board["uid"]} == {path}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells
        assert panel["targets"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_pods_get_what_serve_needs_to_trace(overlay):
    maps = {one["metadata"]["name"]: one["data"] for one in overlay if one["kind"] == "ConfigMap"}
    if "tracing" not in maps:
        return
    assert SERVE_ENVIRONMENT.items() <= maps["tracing"].items()
    (collector,) = (one for one in overlay if one["kind"] == "Service" and one["metadata"]["name"] == "otel-collector")
    ports = {port["port"] for port in collector["spec"]["ports"]}
    host, port = re.fullmatch(r"http://(\S+):(\d+)", maps["tracing"]["OTEL_EXPORTER_OTLP_ENDPOINT"]).groups()
    assert (host, int(port)) in {("otel-collector", number) for number in ports}
    cluster = next(one for one in overlay if one["kind"] == "RayService")["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        for container in group["template"]["spec"]["containers"]:
            assert container["envFrom"] == [{"configMapRef": {"name": "tracing"}}]


def test_the_collector_waits_for_a_requests_end(overlay):
    config = yaml.safe_load((TRACING / "collector-config.yaml").read_text())
    args = yaml.safe_load(next(one for one in overlay if one["kind"] == "RayService")["spec"]["serveConfigV2"])
    deadline = AppConfig.model_validate(args["applications"][0]["args"]).limits.deadline_s
    sampling = config["processors"]["tail_sampling"]
    assert float(sampling["decision_wait"].removesuffix("s")) > deadline
    assert {policy["type"] for policy in sampling["policies"]} >= {"status_code", "latency"}
    for policy in sampling["policies"]:
        assert set(policy) == {"name", "type", policy["type"]}


def test_the_collectors_pipelines_are_made_of_what_it_has():
    config = yaml.safe_load((TRACING / "collector-config.yaml").read_text())
    assert set(config["service"]["extensions"]) == set(config["extensions"])
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in config["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            used[kind] |= set(names)
    assert used == {kind: set(config[kind]) for kind in used}
