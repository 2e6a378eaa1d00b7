"""The router's service with its callers' policies, limits and accounts around it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from opentelemetry import trace

from router.request import Event, Finished, ModelUsage, Pair, Refusal, Request
from router.tenancy.fairness import Turn
from router.tenancy.ledger import Entry, tokens_of
from router.tenancy.permission import permitted
from router.tenancy.spending import Bill, cost_nano
from router.tenancy.tenancy import Tenancy
from router.tenancy.tenant import ANYONE, Caller
from router.transcript import Transcript

log = logging.getLogger(__name__)


class Router(Protocol):
    """What is needed of a `router.service.StepRouter`."""

    pair: Pair

    async def begin(self, request: Request) -> Transcript: ...

    def run(self, page: Transcript) -> AsyncGenerator[Event]: ...

    async def ready(self) -> str | None: ...


class Tenanted:
    """A `router.request.Service` in which a request is permitted, admitted, has its turn, and is accounted for."""

    def __init__(self, router: Router, tenancy: Tenancy) -> None:
        self._router, self._tenancy = router, tenancy

    @property
    def pair(self) -> Pair:
        return self._router.pair

    async def ready(self) -> str | None:
        return await self._router.ready()

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        """See `router.request.Service`."""
        caller, received = request.caller or ANYONE, datetime.now(UTC)
        policy, queue = caller.policy, self._tenancy.queue
        async with self._tenancy.limits.running(caller):
            by_token = self.pair.handover != "text"
            page = await self._router.begin(permitted(request, policy, by_token=by_token))
            place = queue.turn(caller.tenant, policy.priority, policy.weight, deadline=page.task.deadline)
            async with self._charged(page, caller), place as turn:
                page.task = replace(page.task, priority=turn.priority)
                async with aclosing(self._account(page, request, caller, turn, received)) as events:
                    async for event in events:
                        yield event

    @asynccontextmanager
    async def _charged(self, page: Transcript, caller: Caller) -> AsyncGenerator[None]:
        """Takes what the request may come to from its tenant's minute and month, and gives back what it did not use.
        Raises a `Refusal` if so much is not left."""
        most, tenancy = self._most(page), self._tenancy
        taken = await tenancy.limits.take(caller, most.tokens)
        try:
            await tenancy.reserve(caller, most)
            try:
                yield
            finally:
                tenancy.settle(caller, most, self._bill(page))
        finally:
            tenancy.limits.settle(caller, taken, self._bill(page).tokens)

    async def _account(
        self, page: Transcript, request: Request, caller: Caller, turn: Turn, received: datetime
    ) -> AsyncGenerator[Event]:
        """The request's events. Its entry is in the journal before the last of them, or when it ends otherwise."""
        started, status, written = datetime.now(UTC), "client_gone", False

        def entry() -> Entry:
            return self._entry(page, request, caller, status, (received, started, datetime.now(UTC)))

        try:
            async with aclosing(self._router.run(page)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        status, written = event.finish_reason, True
                        await self._tenancy.keep(entry())
                    yield event
        except Refusal as refusal:
            status = refusal.code or "refused"
            raise
        except Exception:
            status = "error"
            raise
        finally:
            turn.used = page.committed_tokens
            if not written:
                self._tenancy.keep_at_once(entry())

    def _most(self, page: Transcript) -> Bill:
        """What a request may come to: its prompt for each model that may read it, and all that it may write by the
        dearest of them."""
        prompts, tokens = page.prefix.prompt_tokens, page.task.budget.tokens
        prices = self._tenancy.prices
        read = {model: ModelUsage(prompt_tokens=count) for model, count in prompts.items()}
        written = max(cost_nano(prices, {model: ModelUsage(completion_tokens=tokens)}) for model in prompts)
        return Bill(sum(prompts.values()) + tokens, cost_nano(prices, read) + written)

    def _bill(self, page: Transcript) -> Bill:
        tokens = sum(used.prompt_tokens + used.completion_tokens for used in page.usage.values())
        return Bill(tokens, cost_nano(self._tenancy.prices, page.usage))

    def _entry(
        self,
        page: Transcript,
        request: Request,
        caller: Caller,
        status: str,
        times: tuple[datetime, datetime, datetime],
    ) -> Entry:
        received, started, finished = times
        context = trace.get_current_span().get_span_context()
        return Entry(
            id=request.id,
            tenant=caller.tenant,
            key=caller.key,
            model=request.routing.model,
            pair=page.task.pair,
            **tokens_of(page.usage),
            discarded_tokens=page.discarded_tokens,
            large_share=page.large_share,
            cost_nano=cost_nano(self._tenancy.prices, page.usage),
            status=status[:40],
            received_at=received,
            started_at=started,
            finished_at=finished,
            trace=f"{context.trace_id:032x}" if context.is_valid else None,
        )
