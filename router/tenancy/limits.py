"""Requests and tokens a minute, and requests at a time, counted for all routers in Redis or for one in memory.

Requests are a true moving window. Of tokens there are far too many to keep one by one, so they are a sliding-window
counter: this minute's count and the last one's, the latter weighted by how much of it still lies within 60 s. Tokens
are taken when a request is admitted, for all that it may come to, and what it did not use is given back at its end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from uuid import uuid4

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from router.metrics import metrics
from router.request import Refusal
from router.tenancy.leases import Leases, LocalLeases, RedisLeases
from router.tenancy.tenant import Caller

log = logging.getLogger(__name__)

T = TypeVar("T")

WINDOW_S = 60
REDIS_S = 0.5
"""An answer that takes longer counts as none: a request should not wait for its counting."""

CONNECTIONS = 10_000
"""More than a router takes requests at a time."""

CLOCK_S = 0.05
"""How far apart Redis' clock and a router's reading of it may be."""

GONE_S = 1.0
"""What is left of last minute's count then is next to nothing, and the count may be gone by the time it is changed."""

PAUSE_S = 1.0
"""How long Redis is left alone once it did not answer."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Tokens taken from a window, and when."""

    tokens: int
    at: float


class Limits:
    """Counts callers' requests and tokens against their policies.

    url: of Redis; None counts in memory. down: whether requests pass uncounted while Redis is away, or get a 503.
    """

    def __init__(self, url: str | None = None, *, down: Literal["open", "closed"] = "open") -> None:
        self._down, self._resting_until = down, 0.0
        self._leases: Leases
        storage: Any
        if url is None:
            storage, self._leases = MemoryStorage(), LocalLeases()
        else:
            options = {
                "socket_timeout": REDIS_S,
                "socket_connect_timeout": REDIS_S,
                # Of its own accord the client fails where more than a hundred answers are waited for.
                "max_connections": CONNECTIONS,
            }
            storage = RedisStorage(
                f"async+{url}", wrap_exceptions=True, implementation="redispy", key_prefix="glimprouter", **options
            )
            self._leases = RedisLeases(storage.bridge.get_connection())
        self._storage = storage
        self._requests, self._tokens = MovingWindowRateLimiter(storage), SlidingWindowCounterRateLimiter(storage)

    async def request(self, caller: Caller, asks: bool) -> None:
        """Count a request (or, if it asks no model for anything, only note the standing). Raises a `Refusal`."""
        await self._note_tokens(caller)
        await self._asked(self._request, caller, asks)

    @asynccontextmanager
    async def running(self, caller: Caller) -> AsyncIterator[None]:
        """Holds one of the caller's requests at a time. Raises a `Refusal` if it has no more."""
        most = caller.policy.concurrent_requests
        if most is None:
            yield
            return
        lease = uuid4().hex
        keeping: asyncio.Task[None] | None = None
        try:
            held = await self._asked(self._leases.take, caller.tenant, lease, most)
            if held is False:
                message = f"Only {most} requests at a time are allowed for this key's tenant; wait for one to end."
                raise Refusal(message, status=429, code="concurrency_limit_exceeded", retry_after_s=1.0)
            keeping = asyncio.create_task(self._keep(caller.tenant, lease))
            yield
        finally:
            # Whether it was taken is not known where nobody waited for the answer; to give back another does no harm.
            if keeping is not None:
                keeping.cancel()
            _in_background(self._quietly(self._leases.give_back(caller.tenant, lease)))

    async def take(self, caller: Caller, tokens: int) -> Taken | None:
        """Take what a request may come to from its tenant's minute. Raises a `Refusal` if so much is not left."""
        limit = caller.policy.tokens_per_minute
        if limit is None:
            return None
        if tokens > limit:
            raise Refusal(
                f"This request may come to {tokens:,} tokens and only {limit:,} a minute are allowed: "
                "shorten it, or set max_tokens.",
                status=413,
                param="max_tokens",
                code="tokens_limit_exceeded",
            )
        item = RateLimitItemPerMinute(limit)
        hit = await self._asked(lambda: self._tokens.hit(item, *_of(caller, "tokens"), cost=tokens))
        at = time.time()
        await self._note_tokens(caller)
        if hit is False:
            wait = await self._asked(self._wait_for, item, _of(caller, "tokens"), tokens)
            message = f"The limit of {limit:,} tokens a minute is reached."
            raise Refusal(message, status=429, code="rate_limit_exceeded", retry_after_s=wait or 1.0)
        return Taken(tokens, at) if hit else None

    def settle(self, caller: Caller, taken: Taken | None, used: int) -> None:
        """Give back what was taken and not used, in the background."""
        if taken is not None and used != taken.tokens:
            _in_background(self._quietly(self._give_back(caller, taken, taken.tokens - used)))

    async def _request(self, caller: Caller, asks: bool) -> None:
        limit = caller.policy.requests_per_minute
        if limit is None:
            return
        item, key = RateLimitItemPerMinute(limit), _of(caller, "requests")
        admitted = not asks or await self._requests.hit(item, *key)
        reset, left = await self._requests.get_window_stats(item, *key)
        wait = max(0.0, reset - time.time())
        _note(caller, "requests", limit, left, wait)
        if not admitted:
            message = f"The limit of {limit:,} requests a minute is reached."
            raise Refusal(message, status=429, code="rate_limit_exceeded", retry_after_s=wait)

    async def _note_tokens(self, caller: Caller) -> None:
        limit = caller.policy.tokens_per_minute
        if limit is None:
            return
        stats = await self._asked(
            self._tokens.get_window_stats, RateLimitItemPerMinute(limit), *_of(caller, "tokens"), may_fail=True
        )
        if stats is not None:
            _note(caller, "tokens", limit, min(limit, stats.remaining), max(0.0, stats.reset_time - time.time()))

    async def _give_back(self, caller: Caller, taken: Taken, tokens: int) -> None:
        item, key = RateLimitItemPerMinute(caller.policy.tokens_per_minute or 1), _of(caller, "tokens")
        _, last_left_s, _, this_left_s = await self._storage.get_sliding_window(item.key_for(*key), WINDOW_S)
        began = time.time() + this_left_s - 2 * WINDOW_S - CLOCK_S
        if not this_left_s:
            return  # nobody has taken any for so long that both minutes are forgotten
        if taken.at >= began:
            await self._tokens.hit(item, *key, cost=-tokens)
        elif taken.at >= began - WINDOW_S and last_left_s > GONE_S:
            # Last minute's weigh less and less, and what is given back of them has to do so as well.
            await self._storage.incr(self._last_minute(item.key_for(*key)), WINDOW_S, amount=-tokens)

    def _last_minute(self, key: str) -> str:
        """Under which name the storage counts it."""
        if isinstance(self._storage, MemoryStorage):
            return self._storage.sliding_window_keys(key, WINDOW_S, time.time())[0]
        return str(self._storage._previous_window_key(key))

    async def _wait_for(self, item: Any, key: tuple[str, str], tokens: int) -> float:
        """Seconds until so many tokens are free, if nobody takes more."""
        last, last_left_s, this, this_left_s = await self._storage.get_sliding_window(item.key_for(*key), WINDOW_S)
        room = item.amount - tokens
        if this <= room:
            # The last minute's share has to shrink to what is left of the room.
            return float(last_left_s - WINDOW_S * (room - this) / last) if last else 1.0
        return float(this_left_s - WINDOW_S + WINDOW_S * (1 - room / this))

    async def _keep(self, tenant: str, lease: str) -> None:
        while True:
            await asyncio.sleep(self._leases.renew_s)
            await self._quietly(self._leases.renew(tenant, lease))

    async def _asked(self, ask: Callable[..., Awaitable[T]], *arguments: Any, may_fail: bool = False) -> T | None:
        """The answer; None while Redis is away and requests pass uncounted."""
        if time.monotonic() >= self._resting_until:
            try:
                return await ask(*arguments)
            except (StorageError, OSError, TimeoutError) as error:
                self._resting_until = time.monotonic() + PAUSE_S
                metrics().uncounted.inc()
                log.warning("limits can't be counted (%s); requests pass if %s", type(error).__name__, self._down)
        if self._down == "open" or may_fail:
            return None
        message = "Limits can't be counted at present; try again."
        raise Refusal(message, status=503, code="limits_unavailable", retry_after_s=2.0)

    async def _quietly(self, work: Awaitable[object]) -> None:
        try:
            await work
        except (StorageError, OSError, TimeoutError) as error:
            log.warning("limits can't be counted (%s)", type(error).__name__)


def _of(caller: Caller, what: str) -> tuple[str, str]:
    return caller.tenant, what


def _note(caller: Caller, what: str, limit: int, left: int, reset_s: float) -> None:
    caller.standing.headers |= {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(max(0, left)),
        f"x-ratelimit-reset-{what}": f"{reset_s:.3f}s",
    }


_background: set[asyncio.Task[None]] = set()


def _in_background(work: Any) -> None:
    # A cancelled request can't wait for its own settlement; and the loop keeps only weak references to tasks.
    task = asyncio.get_running_loop().create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)
