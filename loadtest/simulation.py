"""Router and pools as a discrete-event simulation: how long requests take on so many replicas.

A request is the hops it took in a measured run. A replica decodes all its hops together, one token each per iteration;
an iteration takes longer the more hops there are, and one in which a hop begins takes as much longer as it has tokens
to read. Whoever comes while an iteration is under way waits for its end. There are so many places; hops that find none
wait, first come first served. Between hops a request spends what the router and Serve need. Pools that share a
machine's cores slow each other down. Users ask, read the reply, think, and ask again.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import simpy

from loadtest.client import Reply
from router.prefix import other
from router.request import Model


@dataclass(frozen=True, slots=True)
class HopWork:
    """Tokens that one hop writes, what a failed glimpse threw away included, and those it reads first: what its prefix
    holds and the pool has not in its KV cache."""

    pool: Model
    tokens: int
    reads: int = 0


Trace = tuple[HopWork, ...]


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of an iteration over n hops: `base_s + n * each_s`, and `read_s` for each token that is read in it.
    places: hops at a time in a replica. crowded: how many times longer all that takes while the other pool is at work;
    1 where each has a machine, or a GPU, of its own."""

    base_s: float
    each_s: float
    places: int
    read_s: float = 0.0
    crowded: float = 1.0

    def iteration_s(self, hops: int) -> float:
        return self.base_s + hops * self.each_s

    def alone_s(self, hop: HopWork) -> float:
        """Of a hop that has the replica to itself."""
        return hop.reads * self.read_s + hop.tokens * self.iteration_s(1)

    @classmethod
    def fitted(cls, seen: Iterable[tuple[int, float]], places: int) -> Pace:
        """From (hops at a time, seconds a token) as measured; neither part is below nothing."""
        at, took = (np.array(values, dtype=float) for values in zip(*seen, strict=True))
        if len(at) == 1:
            return cls(float(took[0]), 0.0, places)
        each, base = np.polyfit(at, took, 1)
        each = max(0.0, float(each))
        return cls(max(0.0, float(base)) if each else float(took.mean()), each, places)


@dataclass(frozen=True, slots=True)
class System:
    """Replicas of each pool, their pace, and the seconds that every hop costs outside the engines."""

    replicas: dict[Model, int]
    paces: dict[Model, Pace]
    hop_s: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of it. taken: share of a pool's places that were taken, on average; above 1 hops waited for one."""

    latencies_s: tuple[float, ...]
    tokens: int
    seconds: float
    taken: dict[Model, float]

    def latency_s(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent))

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class Replica:
    """One engine. Its hops are known by the tokens that they still need."""

    def __init__(self, world: simpy.Environment, pace: Pace) -> None:
        self._world, self._pace = world, pace
        self._left: dict[simpy.Event, float] = {}
        self._waiting: deque[tuple[simpy.Event, HopWork]] = deque()
        self._reading_s = 0.0
        self._since = 0.0
        self._alarm = 0
        self.taken_s = 0.0
        self.neighbours: Sequence[Replica] = ()

    @property
    def hops(self) -> int:
        return len(self._left) + len(self._waiting)

    def write(self, hop: HopWork) -> simpy.Event:
        """An event that comes when the hop is written."""
        over = self._world.event()
        self._catch_up_all()
        self._waiting.append((over, hop))
        self._go_on_all()
        return over

    @property
    def _slowness(self) -> float:
        return self._pace.crowded if any(one._left for one in self.neighbours) else 1.0

    def _catch_up_all(self) -> None:
        for one in (self, *self.neighbours):
            one._catch_up()

    def _go_on_all(self) -> None:
        # Before the neighbours, who are slowed down by what this one has to do.
        for one in (self, *self.neighbours):
            one._go_on()

    def _catch_up(self) -> None:
        passed, self._since = self._world.now - self._since, self._world.now
        self.taken_s += passed * self.hops / self._pace.places
        if self._left:
            worked = passed / self._slowness
            read = min(self._reading_s, worked)
            self._reading_s -= read
            written = (worked - read) / self._pace.iteration_s(len(self._left))
            for hop in self._left:
                self._left[hop] -= written

    def _go_on(self) -> None:
        while self._waiting and len(self._left) < self._pace.places:
            over, hop = self._waiting.popleft()
            # On average half of an iteration is still to come.
            self._left[over] = hop.tokens + (0.5 if self._left else 0.0)
            self._reading_s += hop.reads * self._pace.read_s
        self._alarm += 1
        if self._left:
            self._world.process(self._until_next(self._alarm))

    def _until_next(self, alarm: int) -> Generator[simpy.Event, Any, None]:
        least = max(0.0, min(self._left.values()))
        yield self._world.timeout((self._reading_s + least * self._pace.iteration_s(len(self._left))) * self._slowness)
        # Had a hop come meanwhile, everything would take longer than was thought.
        if alarm == self._alarm:
            self._catch_up_all()
            for hop in [hop for hop, left in self._left.items() if left <= 1e-9]:
                del self._left[hop]
                hop.succeed()
            self._go_on_all()


def simulate(
    system: System, traces: Sequence[Trace], *, users: int, think_s: float, seconds: float, seed: int
) -> Simulated:
    """So many users over so long a time; the first tenth, in which the system fills, is not counted."""
    world = simpy.Environment()
    pools = {model: [Replica(world, system.paces[model]) for _ in range(n)] for model, n in system.replicas.items()}
    for model, replicas in pools.items():
        if system.paces[model].crowded != 1.0:
            for one in replicas:
                one.neighbours = pools[other(model)]
    dice = random.Random(seed)
    begin = seconds / 10
    latencies: list[float] = []
    tokens = 0

    def user() -> Generator[simpy.Event, Any, None]:
        nonlocal tokens
        yield world.timeout(dice.random() * (think_s or begin / 10))
        # Hops of a request meet in one replica, where their prefix is cached.
        while True:
            asked, trace = world.now, dice.choice(traces)
            home = {model: min(replicas, key=lambda one: one.hops) for model, replicas in pools.items()}
            for hop in trace:
                yield world.timeout(system.hop_s)
                yield home[hop.pool].write(hop)
            if asked >= begin:
                latencies.append(world.now - asked)
            if world.now >= begin:
                tokens += sum(hop.tokens for hop in trace)
            yield world.timeout(dice.expovariate(1 / think_s) if think_s else 0.0)

    for _ in range(users):
        world.process(user())
    world.run(until=seconds)
    taken = {model: sum(one.taken_s for one in replicas) / len(replicas) / seconds for model, replicas in pools.items()}
    return Simulated(tuple(latencies), tokens, seconds - begin, taken)


def lengthened(traces: Sequence[Trace], tokens: int, seed: int) -> list[Trace]:
    """Each request gone on with, by others drawn by chance, until it writes so many tokens: the steps of short
    reasoning as long reasoning would have them. The question of each part is read as well."""
    dice = random.Random(seed)
    longer: list[Trace] = []
    for trace in traces:
        hops = list(trace)
        while sum(hop.tokens for hop in hops) < tokens:
            hops.extend(dice.choice(traces))
        longer.append(tuple(hops))
    return longer


def trace_of(reply: Reply) -> Trace:
    """A reply's hops: runs of small steps, each large step, and the answer. Raises `ValueError` if both models wrote in
    a step: where in it, and in how many hops, a reply does not tell."""
    if any(0 < step.by_large < step.tokens for step in reply.steps):
        raise ValueError("routed by token")
    hops: list[HopWork] = []
    for step in reply.steps:
        if hops and step.model == "small" == hops[-1].pool:
            hops[-1] = replace(hops[-1], tokens=hops[-1].tokens + step.tokens)
        else:
            hops.append(HopWork(step.model, step.tokens, step.prefix_tokens - step.cached_tokens))  # type: ignore[arg-type]
    # Every large step was glimpsed at first, by one token that was thrown away.
    hops = [replace(h, tokens=h.tokens + (h.pool == "small" and n + 1 < len(hops))) for n, h in enumerate(hops)]
    answer = reply.tokens - sum(step.tokens for step in reply.steps)
    by_large = reply.large_tokens - sum(step.by_large for step in reply.steps)
    if answer > 0:
        hops.append(HopWork("large", answer, _unread(reply)) if by_large else HopWork("small", answer))
    return tuple(hops)


def _unread(reply: Reply) -> int:
    """Tokens that the large model has not read when it is asked for the answer; steps tell only of the thinking."""
    unread = reply.steps[0].prefix_tokens if reply.steps else 0
    for step in reply.steps:
        unread = 0 if step.model == "large" else unread + step.tokens
    return unread
