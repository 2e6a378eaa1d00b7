"""Locust itself, against the real API in front of a service that knows one answer."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
import uvicorn

from loadtest.command import free_port
from router.api.routes import build
from router.request import Event, Finished, ModelUsage, Pair, Refusal, Request, StepWritten, Text

ROOT = Path(__file__).parents[2]
PAIR = Pair("9f2c", {"small": "s", "large": "l"}, True, "ids", 4096, 1.0, "large")
USED = {"small": ModelUsage(20, 30, 0), "large": ModelUsage(20, 10, 0)}


class OneAnswer:
    """Refuses every fourth request."""

    pair = PAIR

    def __init__(self) -> None:
        self.tenants: list[str] = []
        self.asked = 0

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        self.asked += 1
        if self.asked % 4 == 0:
            raise Refusal("busy", status=429, code="overloaded", retry_after_s=1.0)
        yield Text("reasoning", "Two and two.\n\n")
        yield StepWritten(0, "small", 0.4, 30, 0, 20, 12.0, "Two and two.\n\n")
        yield Text("content", "4")
        yield Finished("stop", USED, 30, 0, 1.0, 1, 3, 0, "9f2c")

    async def ready(self) -> str | None:
        return None


@pytest.fixture
def url() -> Iterator[str]:
    service = OneAnswer()
    server = uvicorn.Server(uvicorn.Config(build(lambda: service), port=free_port(), log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


def locust(
    url: str, folder: Path, *options: str
) -> tuple[subprocess.CompletedProcess[str], dict[tuple[str, str], int]]:
    """What it said, and how often each line of its statistics was counted."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py"), "--host", url),
            *("--headless", "--run-time", "5s", "--rate", "30", "--json-file", str(folder / "out")),
            *("--html", str(folder / "report.html"), *options),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    stats = json.loads((folder / "out.json").read_text())
    return run, {(line["method"], line["name"]): line["num_requests"] for line in stats}


def test_a_run_within_its_bounds_passes_and_lists_what_routing_did(url: str, tmp_path: Path) -> None:
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text("- {name: acme, weight: 3}\n- {name: zed}\n")
    run, counts = locust(url, tmp_path, "--tenants", str(tenants), "--max-p95-s", "60")
    assert run.returncode == 0, run.stdout + run.stderr
    requests = {line: n for line, n in counts.items() if line[0] in ("acme", "zed")}
    assert {name for _, name in requests} == {"chat, streamed", "chat, whole", "question, streamed", "question, whole"}
    answered, streamed = sum(requests.values()), sum(n for (_, name), n in requests.items() if "streamed" in name)
    assert counts["glimpse", "step by small"] == counts["glimpse", "escalations (number)"] == answered
    assert counts["glimpse", "large share (percent)"] == answered
    assert counts["glimpse", "time to first token"] == counts["glimpse", "time between pieces"] == streamed
    assert abs(counts["refused", "429"] - answered / 3) <= 1
    assert "large share" in (tmp_path / "report.html").read_text()


def test_a_broken_bound_fails_and_is_named(url: str, tmp_path: Path) -> None:
    run, _ = locust(url, tmp_path, "--max-refused", "0.1", "--arrivals", "burst")
    assert run.returncode == 1
    assert "requests were refused; 10.0% may be" in run.stdout
