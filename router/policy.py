"""Who writes next: the entropy gate of GlimpRouter (arXiv 2601.05110), and the controls it is compared with."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Protocol

from router.glimpse import MAX_ENTROPY
from router.hop import UNBOUNDED, Ending
from router.request import Model

GUESSES = 4
"""In a hop at most. On the pair it was measured on two of three are right, so one hop in five would need more."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One model's turn.

    gate: nats; it ends before a step whose first token is above. token_gate: the same for every token. None: ungated.
    guesses: tokens above `token_gate` that it may write on from. steps, tokens: at most.
    ungated_steps: steps at its beginning that no gate looks at.
    """

    model: Model
    gate: float | None = None
    token_gate: float | None = None
    guesses: int = 0
    steps: int = UNBOUNDED
    tokens: int = UNBOUNDED
    ungated_steps: int = 0


class Policy(Protocol):
    """Decides each turn from how the last one ended (None: there was none) and the large model's share so far."""

    def turn(self, last: Ending | None, large_share: float) -> Turn: ...


@dataclass(frozen=True, slots=True)
class EntropyGate:
    """The small model writes for as long as it is sure how each step begins; a step it is not sure of is the large
    model's, and then the small one goes on.

    threshold: nats; a first-token entropy equal to it still counts as sure.
    token_threshold: nats; a token of a step that the small model is not so sure of is the large model's as well, that
        token alone. This is beyond GlimpRouter; R2R (arXiv 2505.21600) routes so, by a classifier it trains.
    max_large_share: once the large model has this share of the committed tokens, the small one writes on.
    """

    threshold: float
    token_threshold: float | None = None
    max_large_share: float = 1.0

    @property
    def gated(self) -> bool:
        """Whether any entropy can be above a threshold."""
        return _gate(self.threshold) is not None or _gate(self.token_threshold) is not None

    def turn(self, last: Ending | None, large_share: float) -> Turn:
        # Where the share is bounded, the next unsure token may be nobody's but the small model's.
        guesses = GUESSES if self.max_large_share >= 1.0 else 0
        small = Turn("small", _gate(self.threshold), _gate(self.token_threshold), guesses)
        if last not in (Ending.GLIMPSE, Ending.TOKEN):
            return small
        if large_share >= self.max_large_share and self.max_large_share < 1.0:
            return replace(small, ungated_steps=1)
        return Turn("large", steps=1, tokens=UNBOUNDED if last is Ending.GLIMPSE else 1)


def _gate(threshold: float | None) -> float | None:
    """No entropy can be above the highest there is, so nobody needs to look."""
    return threshold if threshold is not None and threshold < MAX_ENTROPY else None


@dataclass(frozen=True, slots=True)
class Alone:
    """One model writes everything."""

    model: Model

    def turn(self, last: Ending | None, large_share: float) -> Turn:
        return Turn(self.model)


@dataclass(frozen=True, slots=True)
class RandomShare:
    """Every step goes to the large model with probability `share`, whatever it is: the control that a gate must
    beat. The same seed takes the same decisions."""

    share: float
    seed: int | None = None
    _dice: random.Random = field(init=False, repr=False, compare=False)
    _next: list[Model] = field(init=False, repr=False, compare=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_dice", random.Random(self.seed))

    def turn(self, last: Ending | None, large_share: float) -> Turn:
        model = self._next.pop() if self._next else self._throw()
        steps = 1
        while (following := self._throw()) == model and steps < 256:
            steps += 1
        self._next.append(following)
        return Turn(model, steps=steps)

    def _throw(self) -> Model:
        return "large" if self._dice.random() < self.share else "small"
