"""Prices, and monthly budgets.

What a tenant spent is read from the ledger now and then, for all routers; in between, each router adds what it
finished itself and what its running requests may yet come to. So a budget is exact for one router; of several, each
may give away what is left of it, until what the others' requests come to is in the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from router.request import Model, ModelUsage, Refusal
from router.tenancy.database import DatabaseError, answered
from router.tenancy.ledger import Ledger
from router.tenancy.settings import Price
from router.tenancy.tenant import Caller, Policy

log = logging.getLogger(__name__)

NANO = 10**9
FRESH_S = 5.0
EARLIER_S = 3600.0
"""How long what was spent before yesterday is believed: there may be millions of rows, and hardly one comes so late."""


def cost_nano(prices: Mapping[Model, Price], usage: Mapping[Model, ModelUsage]) -> int:
    """Billionths of the currency. Prompt tokens found in the cache cost `cached`, the others `prompt`."""
    total = 0.0
    for model, used in usage.items():
        price = prices.get(model, Price())
        total += price.prompt * (used.prompt_tokens - used.cached_tokens)
        total += price.cached * used.cached_tokens + price.completion * used.completion_tokens
    # Per million tokens, in billionths: a factor of a thousand.
    return round(total * 1000)


@dataclass(frozen=True, slots=True)
class Bill:
    """Tokens, and what they cost."""

    tokens: int = 0
    cost_nano: int = 0

    def __add__(self, other: Bill) -> Bill:
        return Bill(self.tokens + other.tokens, self.cost_nano + other.cost_nano)

    def __sub__(self, other: Bill) -> Bill:
        return Bill(self.tokens - other.tokens, self.cost_nano - other.cost_nano)


@dataclass(slots=True)
class Account:
    """A tenant's month as this router knows it: `read` from the ledger at `at`, `since` then by itself, and `running`
    at most."""

    month: date
    read: Bill
    at: float
    since: Bill = Bill()
    running: Bill = Bill()

    @property
    def most(self) -> Bill:
        return self.read + self.since + self.running


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a tenant spent in a month before a day, as read from the ledger at `at`."""

    before: date
    spent: Bill
    at: float


class Budgets:
    """Monthly budgets.

    ledger: what was spent. delivered: until when finished requests are in it, in seconds of the monotonic clock.
    """

    def __init__(self, ledger: Ledger, *, delivered: Callable[[], float]) -> None:
        self._ledger, self._delivered = ledger, delivered
        self._accounts: dict[str, Account] = {}
        self._finished: dict[str, list[tuple[float, Bill]]] = {}
        self._reading: dict[str, asyncio.Lock] = {}
        self._earlier: dict[str, Earlier] = {}

    async def reserve(self, caller: Caller, most: Bill) -> None:
        """Set aside what a request may come to. Raises a `Refusal` if the month's budget does not hold so much."""
        policy = caller.policy
        if not policy.budgeted:
            return
        account = await self._account(caller.tenant)
        over_tokens, over_cost = _over(policy, account.most + most)
        if over_tokens or over_cost:
            left = Bill(policy.monthly_tokens or 0, round((policy.monthly_cost or 0.0) * NANO)) - account.most
            room = f"{max(0, left.tokens):,} tokens" if over_tokens else f"{max(0, left.cost_nano) / NANO:g}"
            asked = f"{most.tokens:,} tokens" if over_tokens else f"{most.cost_nano / NANO:g}"
            # Requests under way hold what they may come to, and give most of it back.
            held = not any(_over(policy, account.read + account.since + most))
            raise Refusal(
                f"This month's budget has {room} left, and this request may come to {asked}"
                f"{': requests under way hold the rest' if held else ''}.",
                status=429,
                code="insufficient_quota",
                retry_after_s=1.0 if held else _until_next_month(),
            )
        account.running += most

    def settle(self, caller: Caller, most: Bill, used: Bill) -> None:
        """The end of a request for which `most` was set aside."""
        account = self._accounts.get(caller.tenant) if caller.policy.budgeted else None
        if account is not None:
            account.running -= most
            account.since += used
            self._finished.setdefault(caller.tenant, []).append((time.monotonic(), used))

    async def _account(self, tenant: str) -> Account:
        month = datetime.now(UTC).date().replace(day=1)
        async with self._reading.setdefault(tenant, asyncio.Lock()):
            known = self._accounts.get(tenant)
            if known is not None and known.month == month and time.monotonic() - known.at < FRESH_S:
                return known
            began, delivered = time.monotonic(), self._delivered()
            try:
                read = await self._spent(tenant, month)
            except DatabaseError as error:
                if known is not None:
                    log.warning("a budget could not be read: %s", error)
                    known.at = time.monotonic()  # or whoever waits for the lock would try again, one after the other
                    return known
                message = "Budgets can't be read at present; try again."
                raise Refusal(message, status=503, code="budgets_unavailable", retry_after_s=2.0) from error
            # What finished after that may be in the ledger already: counted twice for a moment rather than not at all.
            recent = [one for one in self._finished.get(tenant, []) if one[0] >= delivered]
            self._finished[tenant] = recent
            since = sum((bill for _, bill in recent), start=Bill())
            if known is None:
                known = self._accounts[tenant] = Account(month, read, began)
            known.month, known.read, known.at, known.since = month, read, began, since
            return known

    async def _spent(self, tenant: str, month: date) -> Bill:
        yesterday = max(month, datetime.now(UTC).date() - timedelta(days=1))
        earlier = self._earlier.get(tenant)
        if earlier is None or earlier.before != yesterday or time.monotonic() - earlier.at > EARLIER_S:
            spent = Bill(*await answered(self._ledger.spent, tenant, month, yesterday))
            earlier = self._earlier[tenant] = Earlier(yesterday, spent, time.monotonic())
        return earlier.spent + Bill(*await answered(self._ledger.spent, tenant, yesterday))


def _over(policy: Policy, bill: Bill) -> tuple[bool, bool]:
    """Whether it is more than a month's tokens, and more than a month's cost."""
    return (
        policy.monthly_tokens is not None and bill.tokens > policy.monthly_tokens,
        policy.monthly_cost is not None and bill.cost_nano > policy.monthly_cost * NANO,
    )


def _until_next_month() -> float:
    now = datetime.now(UTC)
    year, month = divmod(now.year * 12 + now.month, 12)
    return math.ceil((datetime(year, month + 1, 1, tzinfo=UTC) - now).total_seconds())
