import pytest

from loadtest.soak import growth, windows


def test_growth_is_the_slope_after_settling_in_shares_of_what_there_was() -> None:
    samples = [(0.0, {"router": 500.0})] + [(60.0 * n, {"router": 100.0 + n}) for n in range(5, 21)]
    (router,) = growth(samples, settle_s=300.0)
    assert (router.first_mib, router.last_mib) == (105.0, 120.0)
    assert router.per_10_min == pytest.approx(10 / 105)


def test_what_is_held_for_requests_under_way_is_not_a_leak() -> None:
    spans = [(60.0 * n - 30.0, 60.0 * 100) for n in range(5, 15)] + [(60.0 * n - 30.0, 1.0) for n in range(15, 21)]
    waits = {60.0 * n: min(n, 14) - 4 for n in range(5, 21)}
    samples = [(at, {"router": 100.0 + 2 * n, "leak": 100.0 + at / 600 + 2 * n}) for at, n in waits.items()]
    leak, router = growth(samples, 300.0, spans)
    assert router.per_10_min > 0.1
    assert router.at_equal_load == pytest.approx(0, abs=1e-9)
    assert leak.at_equal_load == pytest.approx(0.01, rel=0.1)
    assert (router.request_kib, leak.request_kib) == (pytest.approx(2048), pytest.approx(2048))


def test_a_process_that_came_later_counts_from_then() -> None:
    samples = [(300.0, {"router": 100.0}), (310.0, {"router": 100.0, "proxy": 50.0}), (320.0, {"proxy": 50.0})]
    assert [one.process for one in growth(samples, settle_s=300.0)] == ["proxy", "router"]


def test_a_request_counts_in_the_minutes_it_came_in() -> None:
    parts = windows([(0.0, 1.0), (299.0, 3.0), (301.0, 5.0), (400.0, 5.0)], 10, [(0.0, {}), (600.0, {})])
    assert [(one.minute, one.requests, one.p50_s) for one in parts] == [(0, 2, 2.0), (5, 2, 5.0)]


def test_cpu_time_of_a_request() -> None:
    spans = [(at, 1.0) for at in (10.0, 20.0, 310.0, 320.0, 330.0, 340.0)]
    used = [
        (60.0 * n, {"engine core": 0.2 * n, "proxy": 0.1 * n, "router": 0.1 * n, "other": 7.0 * n}) for n in range(11)
    ]
    parts = windows(spans, 10, used)
    assert [(one.engines_ms, one.others_ms) for one in parts] == [pytest.approx((500, 500)), pytest.approx((250, 250))]
    parts = windows(spans, 7, used[:8])
    assert [one.engines_ms for one in parts] == [pytest.approx(500), pytest.approx(100)], "two minutes are left"
