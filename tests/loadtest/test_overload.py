import pytest

from loadtest.offered import Told
from loadtest.overload import Deadlines, middle, percentile, row, shown

BUSY = Told(sent=12.0, took_s=0.1, status=429, retry_after=True)


def measured(*told: Told):  # type: ignore[no-untyped-def]
    return row("2x", told, begin=10.0, end=20.0, patience_s=5.0, generator_cores=0.1)


def test_answers_count_where_they_end() -> None:
    found = measured(Told(8.0, 3.0, 200), Told(8.0, 1.0, 200), Told(19.0, 2.0, 200), Told(11.0, 2.0, 200))
    assert found.goodput == 0.2
    assert found.offered == 0.2


def test_a_late_answer_is_not_goodput() -> None:
    found = measured(Told(11.0, 6.0, 200), Told(11.0, 5.0, 200))
    assert (found.goodput, found.late) == (0.1, 0.1)


def test_refusals_and_failures_are_apart() -> None:
    found = measured(BUSY, Told(13.0, 0.2, 503), Told(14.0, 1.0, 500), Told(15.0, 1.0, 0))
    assert (found.refused, found.without_retry_after, found.failed) == (0.2, 1, 2)
    assert found.refused_max_ms == pytest.approx(200)


def test_percentiles() -> None:
    assert percentile([], 50) is None
    assert percentile([3.0], 99) == 3.0
    assert percentile([float(n) for n in range(101)], 99) == 99.0


def test_rounds_meet_in_the_middle() -> None:
    one = measured(Told(11.0, 1.0, 200), BUSY)
    other = measured(*[Told(11.0, 3.0, 200)] * 3, Told(12.0, 0.3, 500), Told(12.0, 0.3, 503))
    found = middle([one, other, measured()])
    assert (found.goodput, found.latency_p50_s) == (0.1, 2.0)
    assert (found.failed, found.without_retry_after, found.refused_max_ms) == (1, 1, pytest.approx(300))
    assert middle([measured()]).refused_max_ms is None


def test_shown_compares_within_a_round() -> None:
    answer = Told(11.0, 1.0, 200)
    slow = [measured(*[answer] * 2), measured(answer, BUSY)]
    fast = [measured(*[answer] * 8), measured(*[answer] * 4, BUSY)]
    text = shown([slow, fast, fast], Deadlines(64, 3, 60, 12.0, 40.0, (1, 0)))
    assert "| 100% |" in " ".join(text.split())
    assert "| 50% |" in " ".join(text.split())
    assert "60 of 64 requests at once took over 1 s (3 did not)" in text
    assert "Told something else: 1." in text
    assert "engines then: 1; a second later: 0." in text
