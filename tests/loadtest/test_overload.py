import pytest

from loadtest.offered import Told
from loadtest.overload import Deadlines, percentile, row, shown

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


def test_shown() -> None:
    rows = [measured(Told(11.0, 1.0, 200), Told(11.0, 1.0, 200)), measured(Told(11.0, 1.0, 200), BUSY)]
    text = shown(rows, Deadlines(64, 4, 60, 12.0, 40.0, (1, 0)))
    assert "| 100% |" in " ".join(text.split())
    assert "| 50% |" in " ".join(text.split())
    assert "60 of 64 requests at once took over 1 s" in text
    assert "engines then: 1; a second later: 0." in text
