from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from entries import NOW
from sqlalchemy import Engine

from router.request import ModelUsage
from router.shadow import Comparison
from router.tenancy.comparisons import Comparisons
from router.tenancy.database import DatabaseError
from router.tenancy.settings import Price

ONE = Comparison(
    id="a",
    tenant="acme",
    pair="9f2c",
    at=NOW,
    threshold=0.5,
    token_threshold=None,
    agree=True,
    routed_s=1.0,
    large_s=2.0,
    routed={"small": ModelUsage(10, 80), "large": ModelUsage(10, 20)},
    large=ModelUsage(10, 100),
)


@pytest.fixture
def comparisons(database: Engine) -> Comparisons:
    return Comparisons(database, {"small": Price(completion=1.0), "large": Price(completion=10.0)})


def test_they_are_summed_by_tenant_and_thresholds(comparisons: Comparisons) -> None:
    comparisons.add(ONE)
    comparisons.add(replace(ONE, id="b", agree=False, routed_s=3.0))
    comparisons.add(replace(ONE, id="c", threshold=1.0))
    comparisons.add(replace(ONE, id="d", tenant="other"))
    first, second, third = comparisons.report()
    assert (first.tenant, first.threshold, first.compared, first.agreed) == ("acme", 0.5, 2, 1)
    assert (first.routed_s, first.large_s) == (4.0, 4.0)
    assert (first.routed_large_tokens, first.large_tokens) == (40, 200)
    # 80 at 1 and 20 at 10 a million, against 100 at 10, in billionths.
    assert (first.routed_cost_nano, first.large_cost_nano) == (2 * 280_000, 2 * 1_000_000)
    assert (second.threshold, third.tenant) == (1.0, "other")


def test_tokens_are_a_threshold_of_their_own(comparisons: Comparisons) -> None:
    for id, threshold in zip("abcd", (None, 0.75, 0.5, 0.5), strict=True):
        comparisons.add(replace(ONE, id=id, token_threshold=threshold))
    assert [(one.token_threshold, one.compared) for one in comparisons.report()] == [(0.5, 2), (0.75, 1), (None, 1)]


def test_pairs_of_models_are_apart_and_a_threshold_that_moves_is_one(comparisons: Comparisons) -> None:
    comparisons.add(replace(ONE, threshold=0.50312))
    comparisons.add(replace(ONE, id="b", threshold=0.49871))
    comparisons.add(replace(ONE, id="c", pair="77aa"))
    found = [(one.pair, one.threshold, one.compared) for one in comparisons.report()]
    assert found == [("77aa", 0.5, 1), ("9f2c", 0.5, 2)]


def test_a_report_can_be_narrowed(comparisons: Comparisons) -> None:
    comparisons.add(ONE)
    comparisons.add(replace(ONE, id="b", at=NOW - timedelta(days=3)))
    comparisons.add(replace(ONE, id="c", tenant="other"))
    (found,) = comparisons.report("acme", NOW - timedelta(days=1))
    assert found.compared == 1


def test_one_request_is_compared_once(comparisons: Comparisons) -> None:
    comparisons.add(ONE)
    with pytest.raises(DatabaseError):
        comparisons.add(ONE)
    (found,) = comparisons.report()
    assert found.compared == 1
