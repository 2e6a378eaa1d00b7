"""The glimpse: how unsure the small model is about how a step begins (GlimpRouter, arXiv 2601.05110, §3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

TOP = 20
"""Candidates that count. Engines return this many cheaply; the whole vocabulary costs a thousand times more."""

MAX_ENTROPY = math.log(TOP)
"""Nats; a gate at or above it never closes."""


def entropy(logprobs: Sequence[float]) -> float:
    """Shannon entropy in nats of a next-token distribution, renormalised over its top candidates.

    logprobs: shape (n,), n <= TOP, natural logarithms of raw probabilities (before temperature) of the n most
    likely tokens; -inf is allowed for impossible ones. An empty sequence is a distribution nobody saw: ValueError.
    """
    weights = [math.exp(lp) for lp in logprobs]
    total = sum(weights)
    if not total > 0.0:
        raise ValueError("a glimpse needs at least one candidate with a finite logprob")
    # H = log Z - sum(p log p) / Z, for weights p that add up to Z.
    weighted = sum(w * lp for w, lp in zip(weights, logprobs, strict=True) if w > 0.0)
    return max(0.0, math.log(total) - weighted / total)
