"""Whose turn it is when the system is full.

So many requests are written at a time; the others wait. A higher class comes first. Within a class the tenant comes
first that has had the least for its weight: each has a virtual time, which its tokens divided by its weight move on
(start-time fair queueing; Goyal, Vin and Cheng, 1996). Its own requests take turns in the order they came. A tenant
that was away starts at the time of those who were not, so that nobody saves up.

How much a request will write is not known when it starts. Until it ends it counts as what its tenant's requests came
to lately, but not for those who come meanwhile: they would start behind by all that it may turn out not to have been.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from router.request import Refusal, overdue
from router.tenancy.tenant import PriorityClass

RANK: dict[PriorityClass, int] = {"high": 0, "normal": 1, "low": 2}
TYPICAL_TOKENS = 256.0
LATELY = 0.1
"""Weight of the newest request in what a tenant's requests came to lately."""

SPREAD = 1 << 24
"""Priorities within a class: how far a tenant is ahead of its share, in tokens."""

KNOWN = 10_000


@dataclass(slots=True)
class Share:
    """A tenant's place in its class. `time` in tokens per weight, of requests that ended; `charged` for those that run
    and `lately` in tokens."""

    tenant: str
    weight: float = 1.0
    time: float = 0.0
    charged: float = 0.0
    lately: float = TYPICAL_TOKENS
    waiting: deque[Turn] = field(default_factory=deque)
    running: int = 0

    @property
    def next(self) -> float:
        """The time at which its next request would start."""
        return self.time + self.charged / self.weight

    @property
    def active(self) -> bool:
        return bool(self.waiting or self.running)


@dataclass(slots=True, eq=False)
class Turn:
    """A request's turn. `priority` is vLLM's, lower first; `used` is what it wrote, in tokens."""

    rank: int
    share: Share
    come: asyncio.Future[None]
    charged: float = 0.0
    priority: int = 0
    used: int | None = None


class FairQueue:
    """Places for `places` requests at a time, and for `waiting` that wait for one, each at most `wait_s` seconds.

    When nobody else can wait, the last to come of the tenant with the most waiting (for its weight, in the lowest
    class) is refused: a crowd makes no difference to others.
    """

    def __init__(self, places: int, waiting: int, wait_s: float) -> None:
        self._places, self._room, self._wait_s = places, waiting, wait_s
        self._shares: tuple[OrderedDict[str, Share], ...] = tuple(OrderedDict() for _ in RANK)
        self._time = [0.0 for _ in RANK]
        self.running = self.waiting = 0

    @asynccontextmanager
    async def turn(
        self,
        tenant: str,
        priority: PriorityClass = "normal",
        weight: float = 1.0,
        *,
        deadline: float = math.inf,
    ) -> AsyncIterator[Turn]:
        """Waits for a place and holds it. Raises a `Refusal` if there is none in time. deadline: the request's own, in
        seconds of the monotonic clock."""
        turn, left_s = self._join(RANK[priority], tenant, weight), deadline - time.monotonic()
        try:
            async with asyncio.timeout(min(self._wait_s, left_s)):
                await turn.come
        except TimeoutError:
            self._leave(turn)
            raise (overdue() if left_s < self._wait_s else busy()) from None
        except BaseException:
            self._leave(turn)
            raise
        try:
            yield turn
        finally:
            self._end(turn)

    def refuses(self, tenant: str, priority: PriorityClass = "normal", weight: float = 1.0) -> bool:
        """Whether a request of the tenant's would be refused at once, if it came now. Whoever asks first is spared
        what it takes to read one."""
        return self._full and self._is_crowd(RANK[priority], tenant, weight)

    def _join(self, rank: int, tenant: str, weight: float) -> Turn:
        share = self._share(rank, tenant)
        share.weight = weight
        if self._full:
            if self._is_crowd(rank, tenant, weight):
                raise busy()
            self._refuse_one()
        turn = Turn(rank, share, asyncio.get_running_loop().create_future())
        if not share.active:
            others = (one.time for one in self._shares[rank].values() if one.active)
            share.time = max(share.time, min(others, default=self._time[rank]))
        share.waiting.append(turn)
        self.waiting += 1
        if self.running < self._places:
            self._next()
        return turn

    def _share(self, rank: int, tenant: str) -> Share:
        shares = self._shares[rank]
        share = shares.setdefault(tenant, Share(tenant))
        shares.move_to_end(tenant)
        if len(shares) > KNOWN:
            idle = next((name for name, one in shares.items() if not one.active and one is not share), None)
            if idle is not None:
                del shares[idle]
        return share

    def _next(self) -> None:
        """Give a free place to whose turn it is."""
        for rank, shares in enumerate(self._shares):
            waiting = [share for share in shares.values() if share.waiting]
            if not waiting:
                continue
            share = min(waiting, key=lambda one: one.next)
            if share.waiting[0].come.done():  # its client gave up a moment ago
                share.waiting.popleft()
                self.waiting -= 1
                return self._next()
            turn = share.waiting.popleft()
            turn.priority = self._priority(rank, share)
            turn.charged = share.lately
            share.charged += turn.charged
            share.running += 1
            self.waiting -= 1
            self.running += 1
            turn.come.set_result(None)
            return

    def _priority(self, rank: int, share: Share) -> int:
        active = (one.next for one in self._shares[rank].values() if one.active)
        ahead = share.next - min(active, default=share.next)
        return rank * SPREAD + min(SPREAD - 1, max(0, int(ahead)))

    @property
    def _full(self) -> bool:
        return self.running >= self._places and self.waiting >= self._room

    def _is_crowd(self, rank: int, tenant: str, weight: float) -> bool:
        """Whether the tenant, with one request more, would have the most waiting for its weight in the lowest class."""
        lowest = self._lowest()
        if lowest != rank:
            return lowest < rank
        own = self._shares[rank].get(tenant)
        others = (len(one.waiting) / one.weight for one in self._shares[rank].values() if one is not own)
        return (len(own.waiting) + 1 if own else 1) / weight > max(others, default=0.0)

    def _refuse_one(self) -> None:
        """Of another tenant than the one that comes, which is not the crowd."""
        crowd = max(self._shares[self._lowest()].values(), key=lambda one: len(one.waiting) / one.weight)
        turn = crowd.waiting.pop()
        self.waiting -= 1
        if not turn.come.done():
            turn.come.set_exception(busy())

    def _lowest(self) -> int:
        """The lowest class in which somebody waits; -1: nobody does."""
        waiting = (rank for rank, shares in enumerate(self._shares) if any(one.waiting for one in shares.values()))
        return max(waiting, default=-1)

    def _leave(self, turn: Turn) -> None:
        if turn in turn.share.waiting:
            turn.share.waiting.remove(turn)
            self.waiting -= 1
        elif turn.come.done() and not turn.come.cancelled() and turn.come.exception() is None:
            # Its place came in the same moment as it gave up.
            turn.used = 0
            self._end(turn)

    def _end(self, turn: Turn) -> None:
        share = turn.share
        used = turn.charged if turn.used is None else turn.used
        share.charged -= turn.charged
        share.time += used / share.weight
        if used:
            share.lately += LATELY * (used - share.lately)
        share.running -= 1
        self._time[turn.rank] = max(self._time[turn.rank], share.time)
        self.running -= 1
        if self.running < self._places:
            self._next()


def busy() -> Refusal:
    """Of a request that finds no place."""
    return Refusal("The server is busy; try again.", status=429, code="overloaded", retry_after_s=1.0)
