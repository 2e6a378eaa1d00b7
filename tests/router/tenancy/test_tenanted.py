"""Policies, limits and accounts around a router whose models recite a text."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from recited import router as reciting
from sqlalchemy import Engine

from router.request import Finished, Refusal, Request, Routing
from router.tenancy.comparisons import Comparisons
from router.tenancy.delivery import Delivery
from router.tenancy.fairness import FairQueue
from router.tenancy.gate import Gate
from router.tenancy.journal import Journal, read
from router.tenancy.ledger import Entry, Ledger
from router.tenancy.limits import Limits
from router.tenancy.settings import Price
from router.tenancy.spending import Budgets
from router.tenancy.tenancy import Accounts, Tenancy
from router.tenancy.tenant import Caller, Policy
from router.tenancy.tenanted import Tenanted

SCRIPT = "One.\n\nTwo.\n\nThree.\n\n</think>\n\nThe answer.<end>"
PRICES = {"small": Price(1.0, 0.5, 2.0), "large": Price(10.0, 5.0, 20.0)}


@pytest.fixture
async def tenancy(database: Engine, tmp_path: Path) -> Tenancy:
    ledger, journal = Ledger(database), Journal(tmp_path / "journal")
    accounts = Accounts(
        ledger,
        Budgets(ledger, delivered=lambda: 0.0),
        journal,
        Delivery(journal, ledger, 1.0),
        Comparisons(database, PRICES),
    )
    return Tenancy(Gate(None), Limits(), FairQueue(4, 8, 5.0), PRICES, accounts)  # type: ignore[arg-type]


def asked(mode: str = "routed", *, id: str = "r1", tenant: str = "acme", policy: Any = None, **fields: Any) -> Request:
    caller = Caller(tenant, "0123456789ab", Policy.model_validate(policy or {}))
    routing = fields.pop("routing", None) or Routing(mode=mode)  # type: ignore[arg-type]
    return Request(id=id, messages=[{"role": "user"}], routing=routing, tenant=tenant, caller=caller, **fields)


async def finished(service: Tenanted, request: Request) -> Finished:
    events = [event async for event in service.write(request)]
    assert isinstance(events[-1], Finished)
    return events[-1]


async def journaled(tenancy: Tenancy) -> list[Entry]:
    assert tenancy.accounts is not None
    await tenancy.accounts.journal.close_segment()
    return [entry for segment in tenancy.accounts.journal.segments() for entry in read(segment)]


async def test_a_finished_request_is_journaled_before_its_last_event(tenancy: Tenancy) -> None:
    service, _ = reciting(SCRIPT, hard=frozenset({1}))
    with TracerProvider().get_tracer("test").start_as_current_span("root") as span:
        async with aclosing(Tenanted(service, tenancy).write(asked())) as events:
            async for event in events:
                if isinstance(event, Finished):
                    (entry,) = await journaled(tenancy)
                    end = event
    assert (entry.id, entry.tenant, entry.key, entry.model, entry.status) == (
        "r1",
        "acme",
        "0123456789ab",
        "glimpse",
        "stop",
    )
    small, large = end.usage["small"], end.usage["large"]
    assert entry.small_completion_tokens == small.completion_tokens > 0
    assert entry.large_completion_tokens == large.completion_tokens > 0
    assert entry.large_share == end.large_token_share
    assert entry.cost_nano == 1000 * (2 + 2 * small.completion_tokens + 20 + 20 * large.completion_tokens)
    assert entry.received_at <= entry.started_at <= entry.finished_at  # type: ignore[operator]
    assert entry.trace == f"{span.get_span_context().trace_id:032x}"


async def test_a_client_that_leaves_pays_for_what_was_written(tenancy: Tenancy) -> None:
    service, pools = reciting(SCRIPT, chunk=1)
    async with aclosing(Tenanted(service, tenancy).write(asked(streaming=True))) as events:
        await anext(events)
    (entry,) = await journaled(tenancy)
    assert entry.status == "client_gone"
    assert 0 < entry.small_completion_tokens < 10
    assert pools["small"].closed == len(pools["small"].hops)


async def test_a_request_that_fails_half_way_is_in_the_account(
    tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, pools = reciting(SCRIPT, hard=frozenset({1}))

    async def broken(hop: object) -> Any:
        raise Refusal("The request's deadline has passed.", status=504, code="deadline")
        yield

    monkeypatch.setattr(pools["large"], "write", broken)
    with pytest.raises(Refusal):
        await finished(Tenanted(service, tenancy), asked())
    (entry,) = await journaled(tenancy)
    assert (entry.status, entry.large_completion_tokens) == ("deadline", 0)
    assert entry.small_completion_tokens > 0


async def test_what_is_refused_before_a_token_has_no_account(tenancy: Tenancy) -> None:
    service, _ = reciting(SCRIPT)
    with pytest.raises(Refusal):
        await finished(Tenanted(service, tenancy), asked("small", policy={"models": ["glimpse"]}))
    assert await journaled(tenancy) == []


async def test_a_disk_that_is_full_refuses_rather_than_loses(tenancy: Tenancy, monkeypatch: pytest.MonkeyPatch) -> None:
    service, _ = reciting(SCRIPT)

    def full(entry: Entry) -> None:
        raise OSError("no space")

    assert tenancy.accounts is not None
    monkeypatch.setattr(tenancy.accounts.journal, "write", full)
    with pytest.raises(Refusal) as refused:
        await finished(Tenanted(service, tenancy), asked())
    assert (refused.value.status, refused.value.code) == (503, "accounts_unavailable")


async def test_models_that_are_not_allowed(tenancy: Tenancy) -> None:
    service, _ = reciting(SCRIPT)
    tenanted = Tenanted(service, tenancy)
    for mode, status in (("small", 403), ("large", 403), ("routed", None)):
        try:
            await finished(tenanted, asked(mode, policy={"models": ["glimpse"]}))
            assert status is None
        except Refusal as refusal:
            assert (refusal.status, refusal.param, refusal.code) == (status, "model", "model_not_allowed")  # noqa: PT017


@pytest.mark.parametrize(
    ("body", "policy", "means"),
    [(None, None, 1.0), (None, 0.5, 0.5), (2.0, 0.5, 2.0), (0.0, 0.5, 0.0)],
)
async def test_the_body_wins_over_the_tenant_which_wins_over_the_profile(
    tenancy: Tenancy, body: float | None, policy: float | None, means: float
) -> None:
    service, _ = reciting(SCRIPT)
    request = asked(policy={"threshold": policy}, routing=Routing(threshold=body))
    assert (await finished(Tenanted(service, tenancy), request)).threshold == means


@pytest.mark.parametrize(("body", "policy", "means"), [(None, None, None), (None, 0.5, 0.5), (2.0, 0.5, 2.0)])
async def test_so_it_does_with_the_token_threshold(
    tenancy: Tenancy, body: float | None, policy: float | None, means: float | None
) -> None:
    service, _ = reciting(SCRIPT)
    request = asked(policy={"token_threshold": policy}, routing=Routing(token_threshold=body))
    assert (await finished(Tenanted(service, tenancy), request)).token_threshold == means


@pytest.mark.parametrize(
    ("body", "policy", "spent"), [(None, 0.1, True), (0.9, 0.1, True), (0.05, 0.9, True), (None, None, False)]
)
async def test_the_lower_share_holds(tenancy: Tenancy, body: float | None, policy: float | None, spent: bool) -> None:
    service, _ = reciting("One.\n\nTwo.\n\n" * 8 + "</think>End.<end>", hard=frozenset(range(16)))
    request = asked(policy={"max_large_share": policy}, routing=Routing(max_large_share=body))
    end = await finished(Tenanted(service, tenancy), request)
    bound = min(body or 1.0, policy or 1.0)
    assert end.large_share_spent is spent
    assert end.large_token_share <= bound + 10 / end.completion_tokens


@pytest.mark.parametrize("mode", ["large", "random"])
async def test_a_bound_on_the_share_is_not_got_round(tenancy: Tenancy, mode: str) -> None:
    service, _ = reciting(SCRIPT)
    request = asked(mode, policy={"max_large_share": 0.2}, routing=Routing(mode=mode, random_share=1.0))  # type: ignore[arg-type]
    with pytest.raises(Refusal) as refused:
        await finished(Tenanted(service, tenancy), request)
    assert refused.value.status == 403


async def test_context_and_output_are_bounded(tenancy: Tenancy) -> None:
    service, _ = reciting("word " * 200 + "</think>End.<end>")
    tenanted = Tenanted(service, tenancy)
    assert (await finished(tenanted, asked(policy={"max_output": 40}))).completion_tokens <= 40
    assert (await finished(tenanted, asked(policy={"max_context": 42}))).completion_tokens <= 40
    for policy in ({"max_output": 40}, {"max_context": 40}):
        with pytest.raises(Refusal) as refused:
            await finished(tenanted, asked(policy=policy, max_tokens=41))
        assert (refused.value.status, refused.value.param) == (400, "max_tokens")


async def test_tokens_are_reserved_and_settled(tenancy: Tenancy) -> None:
    service, _ = reciting(SCRIPT)
    tenanted = Tenanted(service, tenancy)
    policy = {"tokens_per_minute": 2000, "monthly_tokens": 1000}
    # Where one minute ends and the next begins what is left is an estimate.
    if (left_s := 60.0 - time.time() % 60.0) < 5.0:
        await asyncio.sleep(left_s)
    used = 0
    for n in range(3):
        request = asked(id=f"r{n}", policy=policy)
        end = await finished(tenanted, request)
        used += end.prompt_tokens + end.completion_tokens
    assert request.caller is not None
    # They are settled in the background.
    for _ in range(100):
        await asyncio.sleep(0.05)
        await tenancy.limits._note_tokens(request.caller)
        remaining = int(request.caller.standing.headers["x-ratelimit-remaining-tokens"])
        if remaining == 2000 - used:
            break
    assert remaining == 2000 - used
    with pytest.raises(Refusal) as refused:
        await finished(tenanted, replace(asked(policy=policy | {"monthly_tokens": used + 10}), id="r9"))
    assert refused.value.code == "insufficient_quota"
    await asyncio.sleep(0.01)
    await tenancy.limits._note_tokens(request.caller)
    assert int(request.caller.standing.headers["x-ratelimit-remaining-tokens"]) == 2000 - used, "given back at once"


async def test_the_turn_s_priority_reaches_every_hop(tenancy: Tenancy) -> None:
    service, pools = reciting(SCRIPT, hard=frozenset({1}))
    await finished(Tenanted(service, tenancy), asked(policy={"priority": "low"}))
    priorities = {hop.priority for pool in pools.values() for hop in pool.hops}
    assert len(priorities) == 1
    await finished(Tenanted(service, tenancy), asked(policy={"priority": "high"}))
    assert pools["small"].hops[-1].priority < priorities.pop()


async def test_a_tenants_hops_carry_its_name_and_no_one_elses_conversation(tenancy: Tenancy) -> None:
    service, pools = reciting(SCRIPT)
    tenanted = Tenanted(service, tenancy)
    for tenant in ("acme", "other"):
        await finished(tenanted, asked(tenant=tenant, conversation="mine"))
    hops = pools["small"].hops
    assert {hop.tenant for hop in hops} == {"acme", "other"}
    assert len({hop.conversation for hop in hops}) == 2
