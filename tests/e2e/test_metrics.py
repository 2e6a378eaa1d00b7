"""Metrics as a real Prometheus sees them: what they count, and that dashboards and alerts find what they ask for."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from asking import STEPS, ask_all, problems
from system import ROOT, System, at_work, back, settled

MONITORING = ROOT / "k8s" / "components" / "monitoring"
SCRAPE_S = 2
REPORT_S = 10
"""Ray's processes report what they counted every so often."""


class Prometheus:
    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=30)

    def ask(self, query: str) -> list[dict[str, Any]]:
        reply = self._http.get("/api/v1/query", params={"query": query}).json()
        assert reply["status"] == "success", f"{query}: {reply}"
        return reply["data"]["result"]

    def value(self, query: str) -> float:
        return sum(float(one["value"][1]) for one in self.ask(query))

    def answers(self, query: str) -> bool:
        return any(not math.isnan(float(one["value"][1])) for one in self.ask(query))

    def up(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200 and self.value("up") == 1
        except httpx.ConnectError:
            return False


def rules() -> dict[str, Any]:
    return yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]


@pytest.fixture(scope="module")
def prometheus(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing: `apt-get install prometheus`")
    folder = tmp_path_factory.mktemp("prometheus")
    often = rules()
    for group in often["groups"]:
        group["interval"] = f"{SCRAPE_S}s"
    (folder / "rules.yaml").write_text(yaml.safe_dump(often))
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{system.metrics_port}"]}]},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                f"--web.listen-address={address}",
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    running = Prometheus(f"http://{address}")
    try:
        for _ in range(100):
            if running.up():
                break
            time.sleep(0.2)
        else:
            pytest.fail((folder / "log").read_text())
        yield running
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


async def test_counters_are_the_replies_added_up(
    client: httpx.AsyncClient, system: System, prometheus: Prometheus
) -> None:
    await settled(system, within_s=10)
    await asyncio.sleep(REPORT_S + 2 * SCRAPE_S)
    counted = {
        "requests": 'ray_glimpse_requests_total{model="glimpse",code="200"}',
        "small steps": 'ray_glimpse_steps_total{model="small"}',
        "large steps": 'ray_glimpse_steps_total{model="large"}',
        "glimpses": "ray_glimpse_entropy_nats_count",
        "hops": "ray_glimpse_hop_seconds_count",
        "small tokens": 'ray_glimpse_tokens_total{model="small",kind="completion"}',
        "large tokens": 'ray_glimpse_tokens_total{model="large",kind="completion"}',
        "discarded tokens": 'ray_glimpse_tokens_total{kind="discarded"}',
        "engines' tokens": "ray_vllm_generation_tokens_total",
        "finished": "ray_glimpse_request_seconds_count",
        "first tokens": "ray_glimpse_time_to_first_token_seconds_count",
    }

    def now() -> dict[str, float]:
        return {name: prometheus.value(query) for name, query in counted.items()}

    before = now()
    replies = await ask_all(client, [p.question for p in problems(24)], at_a_time=6, glimpse=STEPS)
    steps = [step for reply in replies for step in reply["glimpse"]["steps"]]
    usage = [reply["usage"]["by_model"] for reply in replies]
    written = {
        model: sum(one[model]["completion_tokens"] for one in usage if model in one) for model in ("small", "large")
    }
    discarded = sum(reply["glimpse"]["discarded_tokens"] for reply in replies)
    expected = {
        "requests": 24,
        "small steps": sum(step["model"] == "small" for step in steps),
        "large steps": sum(step["model"] == "large" for step in steps),
        "glimpses": sum(step["entropy"] is not None for step in steps),
        "hops": sum(reply["glimpse"]["hops"] for reply in replies),
        "small tokens": written["small"],
        "large tokens": written["large"],
        "discarded tokens": discarded,
        "engines' tokens": written["small"] + written["large"] + discarded,
        "finished": 24,
        "first tokens": 24,
    }
    assert all(expected.values())
    until = time.monotonic() + 3 * REPORT_S
    grown: dict[str, float] = {}
    while grown != expected and time.monotonic() < until:
        await asyncio.sleep(1)
        grown = {name: value - before[name] for name, value in now().items()}
    assert grown == expected


def queries() -> dict[str, str]:
    """Every query of every dashboard, as Grafana would send it, and all that is recorded for alerts."""
    found = {
        rule["record"]: rule["record"] for group in rules()["groups"] for rule in group["rules"] if "record" in rule
    }
    for path in sorted(Path(MONITORING / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                sent = target["expr"].replace("$__rate_interval", "1m").replace("$__range", "5m")
                assert "$" not in sent
                found[f"{path.stem}: {panel['title']} {target['refId']}"] = sent
    return found


async def test_every_query_of_every_dashboard_and_alert_returns_data(
    client: httpx.AsyncClient, system: System, prometheus: Prometheus
) -> None:
    questions = itertools.cycle(problem.question for problem in problems(60, seed=8))

    async def one(fields: dict[str, Any]) -> None:
        said = {"messages": [{"role": "user", "content": next(questions)}], "temperature": 0}
        # One of these requests may meet the replica that is killed below; that is another test's business.
        await client.post("/v1/chat/completions", json=said | fields)

    async def load() -> None:
        asked = itertools.cycle([{}, {"stream": True}, {"model": "large"}, {"model": "small"}, {"temperature": 9}])
        while True:
            await asyncio.gather(*(one({"model": "glimpse"} | next(asked)) for _ in range(5)))

    loading = [asyncio.create_task(load()) for _ in range(2)]
    try:
        # More at a time than a router takes, so that some are turned away.
        async with httpx.AsyncClient(
            base_url=system.url, timeout=120, limits=httpx.Limits(max_connections=400)
        ) as many:
            short = {"model": "small", "messages": [{"role": "user", "content": "2 + 2?"}], "max_tokens": 64}
            replies = await asyncio.gather(*(many.post("/v1/chat/completions", json=short) for _ in range(400)))
        assert {200, 429} <= {reply.status_code for reply in replies} <= {200, 429, 503}
        replica = (await at_work(system, "small"))["pid"]
        os.kill(replica, signal.SIGKILL)
        missing, until = queries(), time.monotonic() + 120
        while missing and time.monotonic() < until:
            await asyncio.sleep(2)
            missing = {name: query for name, query in missing.items() if not prometheus.answers(query)}
    finally:
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
    assert missing == {}
    await back(system, "small", replica)
    assert await settled(system, within_s=10) == {"small": 0, "large": 0}
