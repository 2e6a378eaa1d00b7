from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.capacity import checked, hop_s, planned, read_options
from loadtest.command import MeasuringError
from loadtest.simulation import HopWork, Pace

TRACE = [("small", 200), ("large", 60), ("small", 140), ("large", 40)]


@pytest.fixture
def traces(tmp_path: Path) -> str:
    path = tmp_path / "traces.json"
    path.write_text(json.dumps({"traces": [TRACE, TRACE[:2]]}))
    return str(path)


def plan(traces: str, *more: str) -> list[dict]:
    told, text = planned(
        read_options(["--traces", traces, "--small", "10,0.2,32", "--large", "30,0.6,16", "--seconds", "300", *more])
    )
    assert len(text.splitlines()) == 2 + len(told["rows"])
    return told["rows"]


def test_more_users_need_more_replicas_and_keep_the_wanted_latency(traces: str) -> None:
    few, many = plan(traces, "--users", "10,2000", "--p95-s", "20")
    assert (few["small_replicas"], few["large_replicas"]) == (1, 1)
    assert many["small_replicas"] > few["small_replicas"]
    assert many["large_replicas"] > few["large_replicas"]
    assert all(one["latency_p95_s"] <= 20 for one in (few, many))


def test_a_slice_stands_for_the_whole(traces: str) -> None:
    (whole,) = plan(traces, "--users", "400", "--p95-s", "20")
    (sliced,) = plan(traces, "--users", "400", "--p95-s", "20", "--slice", "200")
    assert sliced["tokens_per_s"] == pytest.approx(whole["tokens_per_s"], rel=0.1)
    assert abs(sliced["large_replicas"] - whole["large_replicas"]) <= 1


def test_a_latency_below_that_of_the_engines_is_refused(traces: str) -> None:
    with pytest.raises(MeasuringError, match="engines are too slow"):
        plan(traces, "--users", "5", "--p95-s", "1")


def test_a_hop_costs_what_the_engines_leave() -> None:
    pace = Pace(0.01, 0.0, 8)
    alone = [(HopWork("small", 50), HopWork("large", 50))]
    assert hop_s(1.2, alone, {"small": pace, "large": pace}) == pytest.approx(0.1)
    assert hop_s(0.5, alone, {"small": pace, "large": pace}) == 0.0


def test_what_has_no_traces_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(MeasuringError, match="has no traces"):
        plan(str(path))


def test_options_name_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options([])
    assert "--check" in capsys.readouterr().err


def test_a_server_is_measured_and_compared_with_its_simulation(url: str, tmp_path: Path) -> None:
    options = ["--check", "--url", url, "--problems", "8", "--concurrency", "2", "--seconds", "5"]
    told, text = checked(read_options(options))
    assert [[hop[:2] for hop in trace] for trace in told["traces"]] == [[("small", 30), ("large", 10)]] * 8
    assert told["paces"]["small"]["base_s"] + told["paces"]["small"]["each_s"] > 0
    assert [line["figure"] for line in told["check"]] == ["p50, s", "p95, s", "tokens/s"]
    assert all(line["simulated"] > 0 for line in told["check"])
    assert "off by" in text
    path = tmp_path / "traces.json"
    path.write_text(json.dumps(told))
    assert plan(str(path), "--users", "10")[0]["small_replicas"] == 1
