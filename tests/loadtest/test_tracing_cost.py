"""What can be checked of the command without a system: who is traced, what is started, what is made of the turns."""

from __future__ import annotations

import pytest

from deployments.config import AppConfig
from loadtest.command import PROFILE
from loadtest.tracing_cost import SHARES, Turn, summary, traced, twice


@pytest.mark.parametrize(("share", "count", "wanted"), [(0.0, 100, 0), (0.01, 100, 1), (0.01, 250, 2), (0.01, 7, 1)])
def test_so_many_requests_are_traced(share, count, wanted):
    assert sum(traced(share, count)) == wanted
    assert all(traced(1.0, count))


def test_the_second_application_traces_nowhere_and_is_the_same_otherwise():
    on, off = twice(PROFILE)["applications"]
    assert on["name"] != off["name"]
    assert off["route_prefix"] == "/off"
    pair = [AppConfig.read(application["args"]) for application in (on, off)]
    for part in ("small", "large", "router"):
        own, other = (getattr(config, part) for config in pair)
        assert other.env == own.env | {"RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": ""}
        assert other.model_copy(update={"env": own.env}) == own


def test_turns_are_compared_with_their_own_rounds():
    cost = {"off": 1.0, "1%": 1.02, "100%": 1.2}
    turns = [
        Turn(name, number, cpu_s=slow * cost[name], steps=500, spans=7)
        for number, slow in enumerate((1.0, 3.0, 2.0))
        for name in SHARES
    ]
    rows = {row["tracing"]: row for row in summary(turns)}
    assert rows["off"]["cpu_s_per_1k_steps"] == pytest.approx(4.0)
    assert rows["1%"]["ratio"] == pytest.approx(1.02)
    assert rows["100%"]["ratio_most"] == pytest.approx(1.2)
    assert rows["100%"]["spans"] == 21
