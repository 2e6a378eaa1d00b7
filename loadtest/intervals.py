"""Intervals for shares and for paired differences, and the area under the ROC curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def share(hits: int, of: int) -> Estimate:
    """hits / of, with Wilson's interval."""
    p, z2 = hits / of, Z95**2
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    reach = Z95 / (1 + z2 / of) * math.sqrt(p * (1 - p) / of + z2 / (4 * of**2))
    return Estimate(p, max(0.0, middle - reach), min(1.0, middle + reach))


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> Estimate:
    """Share right of `first` minus that of `second` on the same problems, with Newcombe's interval for paired
    proportions (1998, method 10), which keeps its width where the two never disagree."""
    n = len(first)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    only_first, only_second = sum(first) - both, sum(second) - both
    neither = n - both - only_first - only_second
    p, q = share(sum(first), n), share(sum(second), n)
    overlap = float(both * neither - only_first * only_second)
    if overlap > 0:
        overlap = max(0.0, overlap - n / 2)
    margins = sum(first) * (n - sum(first)) * sum(second) * (n - sum(second))
    phi = overlap / math.sqrt(margins) if margins else 0.0
    difference = (only_first - only_second) / n
    return Estimate(
        difference,
        difference - _joint(p.value - p.low, q.high - q.value, phi),
        difference + _joint(p.high - p.value, q.value - q.low, phi),
    )


def _joint(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """The probability that a positive's score is above a negative's, ties counting half; None without both."""
    values, is_positive = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    positives = int(is_positive.sum())
    negatives = len(values) - positives
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    ranks = float(mean_rank[place][is_positive].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)
