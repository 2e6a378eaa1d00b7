"""When requests arrive: Poisson processes whose rate may change with time. Arrivals wait for nothing, so a slow server
does not thin them out (no coordinated omission)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SHAPES = ("poisson", "burst", "ramp", "step")


@dataclass(frozen=True, slots=True)
class Shape:
    """A rate over time, in requests per second.

    poisson: `rate` all along. burst: `factor` times the rate in the first tenth of every `period_s`, and so much less
    in between that the mean stays `rate`. ramp: from nothing to `rate` at `duration_s`, which it then keeps. step:
    `steps` equal steps up to `rate` over `duration_s`.
    """

    kind: str
    rate: float
    duration_s: float = 600.0
    period_s: float = 60.0
    factor: float = 5.0
    steps: int = 5

    def at(self, t: float) -> float:
        """The rate at `t` seconds from the start."""
        match self.kind:
            case "burst":
                share = 0.1
                lull = (1.0 - share * self.factor) / (1.0 - share)
                return self.rate * (self.factor if t % self.period_s < share * self.period_s else lull)
            case "ramp":
                return self.rate * min(1.0, t / self.duration_s)
            case "step":
                return self.rate * min(self.steps, math.floor(self.steps * t / self.duration_s) + 1) / self.steps
        return self.rate

    @property
    def peak(self) -> float:
        return self.rate * (self.factor if self.kind == "burst" else 1.0)


def arrivals(rate: Callable[[float], float], peak: float, dice: random.Random) -> Iterator[float]:
    """Times in seconds, ascending, without end (thinning: Lewis and Shedler, 1979). peak: no rate is above it."""
    t = 0.0
    while True:
        t += dice.expovariate(peak)
        if dice.random() * peak < rate(t):
            yield t
