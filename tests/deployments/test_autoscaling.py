import pytest

from deployments.autoscaling import Pressure, reported, wanted

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
