from __future__ import annotations

import asyncio
import time

import pytest
from entries import entry
from sqlalchemy import Engine

from router.request import ModelUsage, Refusal
from router.tenancy.database import connect
from router.tenancy.ledger import Ledger
from router.tenancy.settings import Price
from router.tenancy.spending import Bill, Budgets, cost_nano
from router.tenancy.tenant import Caller, Policy

TENTH = Bill(100, 1000)


def caller(tenant: str = "acme", **policy: object) -> Caller:
    return Caller(tenant, "k", Policy.model_validate(policy))


@pytest.fixture
def budgets(database: Engine) -> Budgets:
    return Budgets(Ledger(database), delivered=lambda: 0.0)


def test_costs_are_exact() -> None:
    prices = {"small": Price(0.05, 0.01, 0.1), "large": Price(1.0, 0.25, 4.0)}
    usage = {"small": ModelUsage(1000, 400, 200), "large": ModelUsage(1001, 0, 10)}
    expected = 800 * 50 + 200 * 10 + 400 * 100 + 991 * 1000 + 10 * 250
    assert cost_nano(prices, usage) == expected  # type: ignore[arg-type]
    assert cost_nano({}, usage) == 0  # type: ignore[arg-type]


async def test_a_budget_of_tokens_is_never_overrun(budgets: Budgets) -> None:
    who = caller(monthly_tokens=1000)
    results = await asyncio.gather(*(budgets.reserve(who, TENTH) for _ in range(15)), return_exceptions=True)
    refused = [one for one in results if isinstance(one, Refusal)]
    assert len(refused) == 5
    assert {(one.status, one.code) for one in refused} == {(429, "insufficient_quota")}
    assert all(one.retry_after_s is not None and 0 < one.retry_after_s <= 31 * 86400 for one in refused)
    for _ in range(10):
        budgets.settle(who, TENTH, Bill(50, 0))
    await budgets.reserve(who, Bill(500, 0))
    with pytest.raises(Refusal, match="0 tokens left"):
        await budgets.reserve(who, Bill(1, 0))


async def test_what_requests_under_way_hold_is_free_in_a_moment(budgets: Budgets) -> None:
    who = caller(monthly_tokens=1000)
    await budgets.reserve(who, Bill(900, 0))
    with pytest.raises(Refusal, match="under way") as refused:
        await budgets.reserve(who, Bill(200, 0))
    assert refused.value.retry_after_s == 1.0


async def test_days_long_past_are_not_added_up_again(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, asked = Ledger(database), []
    spent = ledger.spent
    monkeypatch.setattr(ledger, "spent", lambda *days: (asked.append(days), spent(*days))[1])
    monkeypatch.setattr("router.tenancy.spending.FRESH_S", 0.0)
    budgets = Budgets(ledger, delivered=lambda: 0.0)
    for _ in range(3):
        await budgets.reserve(caller(monthly_tokens=1000), TENTH)
    assert [len(days) for days in asked] == [3, 2, 2, 2]


async def test_a_budget_of_money(budgets: Budgets) -> None:
    who = caller(monthly_cost=0.000002)
    await budgets.reserve(who, TENTH)
    await budgets.reserve(who, TENTH)
    with pytest.raises(Refusal, match="budget"):
        await budgets.reserve(who, TENTH)
    await budgets.reserve(caller("other", monthly_cost=1), TENTH)
    await budgets.reserve(caller("unbounded"), Bill(10**12, 10**12))


async def test_what_the_ledger_holds_counts(budgets: Budgets, database: Engine) -> None:
    Ledger(database).add([entry("a"), entry("b")])
    with pytest.raises(Refusal):
        await budgets.reserve(caller(monthly_tokens=96 + 99), TENTH)
    await budgets.reserve(caller("acme", monthly_tokens=96 + 100), TENTH)


async def test_what_just_finished_is_not_forgotten_when_the_ledger_is_read_again(
    budgets: Budgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.tenancy.spending.FRESH_S", 0.0)
    who = caller(monthly_tokens=100)
    await budgets.reserve(who, TENTH)
    budgets.settle(who, TENTH, Bill(100, 0))
    with pytest.raises(Refusal):
        await budgets.reserve(who, Bill(1, 0))


async def test_what_finished_counts_once_it_was_delivered_by_the_ledger_alone(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.tenancy.spending.FRESH_S", 0.0)
    delivered = 0.0
    budgets, who = Budgets(Ledger(database), delivered=lambda: delivered), caller(monthly_tokens=100)
    await budgets.reserve(who, TENTH)
    budgets.settle(who, TENTH, Bill(96, 0))
    with pytest.raises(Refusal, match="4 tokens left"):
        await budgets.reserve(who, Bill(5, 0))
    Ledger(database).add([entry("a")])
    with pytest.raises(Refusal, match="0 tokens left"):
        await budgets.reserve(who, Bill(1, 0))
    delivered = time.monotonic()
    await budgets.reserve(who, Bill(4, 0))


async def test_while_the_database_is_away_what_was_known_holds(
    budgets: Budgets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.tenancy.spending.FRESH_S", 0.0)
    who = caller(monthly_tokens=150)
    await budgets.reserve(who, TENTH)
    monkeypatch.setattr(budgets, "_ledger", Ledger(connect("postgresql://me@127.0.0.1:1/none")))
    with pytest.raises(Refusal) as refused:
        await budgets.reserve(who, TENTH)
    assert refused.value.code == "insufficient_quota"
    with pytest.raises(Refusal) as refused:
        await budgets.reserve(caller("stranger", monthly_tokens=150), TENTH)
    assert refused.value.status == 503
