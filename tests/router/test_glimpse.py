import math

import pytest

from router.glimpse import MAX_ENTROPY, entropy


def test_a_certain_token_has_no_entropy() -> None:
    assert entropy([0.0]) == 0.0
    assert entropy([-0.01, -20.0]) < 0.01


def test_a_flat_distribution_has_the_most() -> None:
    assert entropy([-9.0] * 20) == pytest.approx(math.log(20)) == pytest.approx(MAX_ENTROPY)


def test_it_is_renormalised_over_what_was_returned() -> None:
    top = [math.log(0.3), math.log(0.1)]
    p, q = 0.75, 0.25
    assert entropy(top) == pytest.approx(-(p * math.log(p) + q * math.log(q)))


def test_impossible_tokens_weigh_nothing() -> None:
    assert entropy([math.log(0.5), math.log(0.5), -math.inf]) == pytest.approx(math.log(2))


def test_nobody_saw_it() -> None:
    with pytest.raises(ValueError, match="candidate"):
        entropy([])
