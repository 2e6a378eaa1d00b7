"""Locust itself, against the real API in front of a service that knows one answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from one_answer import OneAnswer

ROOT = Path(__file__).parents[2]
Counts = dict[tuple[str, str], int]


def locust(url: str, folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], Counts]:
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


def test_a_run_within_its_bounds_passes_and_lists_what_routing_did(
    url: str, one_answer: OneAnswer, tmp_path: Path
) -> None:
    one_answer.refused = 4
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text("- {name: acme, weight: 3}\n- {name: zed}\n")
    run, counts = locust(url, tmp_path, "--tenants", str(tenants), "--max-p95-s", "60")
    assert run.returncode == 0, run.stdout + run.stderr
    requests = {line: n for line, n in counts.items() if line[0] in ("acme", "zed")}
    assert {name for _, name in requests} == {"chat, streamed", "chat, whole", "question, streamed", "question, whole"}
    answered, streamed = sum(requests.values()), sum(n for (_, name), n in requests.items() if "streamed" in name)
    assert counts["glimpse", "step by small"] == counts["glimpse", "escalations (number)"] == answered
    assert counts["glimpse", "large share (percent)"] == counts["glimpse", "right (percent)"] == answered
    assert counts["glimpse", "time to first token"] == counts["glimpse", "time between pieces"] == streamed
    assert abs(counts["refused", "429"] - answered / 3) <= 1
    assert "large share" in (tmp_path / "report.html").read_text()


def test_nothing_is_asked_after_the_run_time(url: str, one_answer: OneAnswer, tmp_path: Path) -> None:
    run, _ = locust(url, tmp_path, "--stop-timeout", "10")
    assert run.returncode == 0, run.stdout + run.stderr
    # 30 a second for 5 seconds; in 15 it would be 450.
    assert 75 < one_answer.asked < 300


def test_a_broken_bound_fails_and_is_named(url: str, one_answer: OneAnswer, tmp_path: Path) -> None:
    one_answer.refused = 4
    run, _ = locust(url, tmp_path, "--max-refused", "0.1", "--arrivals", "burst")
    assert run.returncode == 1
    assert "requests were refused; 10.0% may be" in run.stdout
