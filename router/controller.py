"""Holds the large pool's load at a target by moving the threshold, so that overload costs a little quality instead of
latency.

What moves is not the threshold but the share of the escalations that is spared: one threshold means something else for
every pair, and over most of its range next to nothing may change. The threshold is then the quantile, among the
entropies seen lately that call for the large model, below which that share lies. Those that it spares are the least
unsure of them. Where single tokens call for it as well, the same share of theirs is spared.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace

from router.hop import Chunk, Ending, Hop
from router.leftovers import unwanted
from router.loop import Pool

LATELY = 512
"""Entropies remembered, of steps and of tokens. Far more than a quantile needs, few enough to follow what is asked."""

STALE_S = 1.0
"""A pool that has told nothing for so long has nothing to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a controller aims at.

    load: of the large pool, in hops under way for each that a replica takes, 0..1. highest: nats; no threshold is
    moved above it. gain: by how much the spared share moves in a second for a load that is 1 too high.
    """

    load: float
    highest: float
    gain: float = 0.1


class Controller:
    """An integral controller: what it spares changes with how far the load is from its target, for as long as it is."""

    def __init__(self, target: Target, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.target, self._clock = target, clock
        self.spared, self.load = 0.0, 0.0
        self._steps: deque[float] = deque(maxlen=LATELY)
        self._tokens: deque[float] = deque(maxlen=LATELY)
        self._at = self._told_at = clock()

    def saw(self, entropy: float) -> None:
        """The entropy of a glimpse, in nats, whatever came of it."""
        self._steps.append(entropy)

    def saw_tokens(self, entropies: Iterable[float]) -> None:
        """Those above the profile's token threshold, in nats, whatever came of them."""
        self._tokens.extend(entropies)

    def told(self, load: float) -> None:
        """What a replica of the large pool says of itself at the end of a hop."""
        self._settle()
        self.load, self._told_at = load, self._at

    def threshold(self, base: float) -> float:
        """In nats, for a request that begins now; `base` while nothing has to be spared."""
        return self._moved(base, self._steps)

    def token_threshold(self, base: float) -> float:
        """The same for tokens."""
        return self._moved(base, self._tokens)

    def _moved(self, base: float, seen: Iterable[float]) -> float:
        self._settle()
        if not self.spared or base >= self.target.highest:
            return base
        calling = sorted(entropy for entropy in seen if entropy > base)
        spared = round(self.spared * len(calling))
        return base if not spared else min(self.target.highest, calling[spared - 1])

    def _settle(self) -> None:
        now = self._clock()
        # A load that was told long ago says nothing of all the time since: then there was none.
        fresh = max(0.0, min(now, self._told_at + STALE_S) - self._at)
        idle = now - self._at - fresh
        moved = self.target.gain * ((self.load - self.target.load) * fresh - self.target.load * idle)
        self.spared, self._at = min(1.0, max(0.0, self.spared + moved)), now


class Heeded:
    """A pool whose glimpses, or whose load, a controller hears of. base: the profile's token threshold."""

    def __init__(
        self, pool: Pool, controller: Controller, *, loads: bool, base: Callable[[], float | None] = lambda: None
    ) -> None:
        self._pool, self._controller, self._loads, self._base = pool, controller, loads, base

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        if hop.token_gate is not None:
            # What a raised gate lets pass has to be heard of, or the gate would never be seen to be too high.
            hop = replace(hop, watched=self._base())
        # The first step's glimpse was heard of when it failed, at the end of the hop before.
        heard = hop.open_entropy is not None and not hop.open_tokens
        async with aclosing(self._pool.write(hop)) as chunks:
            async for chunk in chunks:
                if unwanted.get():
                    yield chunk  # what comes in its place is heard of
                    continue
                for step in chunk.steps:
                    if step.entropy is not None and not heard:
                        self._controller.saw(step.entropy)
                    heard = False
                if (end := chunk.end) is not None:
                    if end.ending is Ending.GLIMPSE and end.glimpse is not None:
                        self._controller.saw(end.glimpse)
                    self._controller.saw_tokens(end.watched)
                    if self._loads:
                        self._controller.told(end.load)
                yield chunk
