from types import SimpleNamespace

import pytest

from deployments.autoscaling import EnginePressure, Pressure, check_scaling, reported, wanted

GOOD = Pressure(requests=16, kv_use=0.8, queued_tokens=16_384)


@pytest.mark.parametrize(
    ("engines", "waiting", "replicas"),
    [
        ([], 0, 0),
        ([], 1, 1),
        ([], 40, 3),
        ([Pressure(requests=16)], 0, 1),
        ([Pressure(requests=16)], 1, 2),
        ([Pressure(requests=4), Pressure(requests=4)], 0, 1),
        ([Pressure(requests=2, kv_use=0.95)], 0, 2),
        ([Pressure(requests=2, queued_tokens=60_000)], 0, 4),
        ([Pressure(), Pressure()], 0, 0),
    ],
)
def test_the_most_pressing_report_decides(engines: list[Pressure], waiting: float, replicas: int) -> None:
    assert wanted(GOOD, engines, waiting) == replicas


def test_reports_are_read_per_replica() -> None:
    metrics = {"requests": {"a": 3.0, "b": 5.0}, "kv_use": {"a": 0.5}}
    assert sorted(reported(metrics), key=lambda p: p.requests) == [Pressure(3.0, 0.5), Pressure(5.0)]


@pytest.mark.parametrize(
    ("told", "counted", "replicas"),
    [({}, 40.0, 3), ({"a": 32.0}, 32.0, 2), ({"a": 16.0}, 48.0, 3), ({"a": 20.0}, 0.0, 2)],
)
def test_a_replica_that_reports_nothing_is_not_idle(told: dict[str, float], counted: float, replicas: int) -> None:
    context = SimpleNamespace(
        aggregated_metrics={"requests": told}, total_queued_requests=0.0, total_num_requests=counted
    )
    assert EnginePressure()(context)[0] == replicas  # type: ignore[arg-type]


def test_a_policy_of_somebody_elses_is_not_looked_for() -> None:
    told = {"min_replicas": 1, "max_replicas": 2, "policy": {"policy_function": "their_own.policy:theirs"}}
    assert check_scaling(told) == told
