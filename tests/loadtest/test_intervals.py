import random

import pytest

from loadtest.intervals import auroc, paired_difference, share


def test_wilson_interval_of_a_share() -> None:
    found = share(95, 100)
    assert (found.value, found.low, found.high) == pytest.approx((0.95, 0.8882, 0.9785), abs=5e-5)


def test_wilson_interval_stays_inside_and_has_a_width_at_the_ends() -> None:
    none, all = share(0, 20), share(20, 20)
    assert none.low == 0.0
    assert none.high == pytest.approx(0.1611, abs=5e-5)
    assert all.high == pytest.approx(1.0)
    assert all.low == pytest.approx(1 - 0.1611, abs=5e-5)


def test_paired_interval_is_newcombes_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17:2635, table III, method 10.
    first = [True] * 48 + [False] * 2
    second = [True] * 36 + [False] * 12 + [True] * 2
    found = paired_difference(first, second)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)


def test_paired_interval_turns_with_the_pair() -> None:
    first = [True, True, False, True, False, True, False, True]
    second = [True, False, False, False, False, True, True, False]
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_paired_interval_has_a_width_where_nobody_differs() -> None:
    found = paired_difference([True] * 500, [True] * 500)
    assert found.value == 0
    assert -0.01 < found.low < 0 < found.high < 0.01


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    rng = random.Random(3)
    scores = [float(rng.randrange(8)) for _ in range(60)]
    positive = [rng.random() < 0.3 for _ in scores]
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, hit in zip(scores, positive, strict=True)
        if hit
        for low, also in zip(scores, positive, strict=True)
        if not also
    ]
    assert auroc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_of_one_class_is_unknown() -> None:
    assert auroc([0.1, 0.2], [True, True]) is None
    assert auroc([], []) is None
