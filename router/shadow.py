"""Proof on one's own traffic: a share of the routed requests is asked of the large model as well, unseen.

It happens after the client has its reply, with the large pool's leave only: such a run begins when the pool is idle,
comes last in its engines' queues, and is given up as soon as a live request wants the pool. It is on nobody's bill and
in no metric of live requests. What is kept of it is whether both came to the same answer, and what each cost; never
what they said.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random
from typing import Protocol

from router.answers import extract
from router.hop import LAST
from router.request import Event, Finished, Model, ModelUsage, Pair, Request, Routing, Service, Text
from router.tenancy.permission import permitted
from router.tenancy.tenant import ANYONE
from router.transcript import Transcript

log = logging.getLogger(__name__)

LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A routed request beside the large model alone, on one question.

    agree: whether both came to the same answer: the same number where there is one, else the same text. Seconds are
    from the request to its last token; the large model's are those of an idle pool that has read the prompt before, so
    they flatter it. Usage is what each read and wrote.
    """

    id: str
    tenant: str
    pair: str
    at: datetime
    threshold: float
    token_threshold: float | None
    agree: bool
    routed_s: float
    large_s: float
    routed: Mapping[Model, ModelUsage]
    large: ModelUsage


class Router(Protocol):
    """What is needed of a `router.service.StepRouter`."""

    async def begin(self, request: Request) -> Transcript: ...

    def run(self, page: Transcript) -> AsyncGenerator[Event]: ...


class Shadowed:
    """A service whose routed requests are now and then asked of the large model too.

    share: of them, 0..1. idle: whether the large pool has nothing to do, asked before a run; busy: whether a live
    request wants it, asked all along. keep: what becomes of a comparison. One run at a time.
    """

    def __init__(
        self,
        service: Service,
        router: Router,
        *,
        share: float,
        idle: Callable[[], Awaitable[bool]],
        busy: Callable[[], bool],
        keep: Callable[[Comparison], Awaitable[None]],
        seed: int | None = None,
    ) -> None:
        self._service, self._router, self._share = service, router, share
        self._idle, self._busy, self._keep = idle, busy, keep
        self._dice = Random(seed)
        self._running: asyncio.Task[None] | None = None

    @property
    def pair(self) -> Pair:
        return self._service.pair

    async def ready(self) -> str | None:
        return await self._service.ready()

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        """See `router.request.Service`."""
        chosen = request.routing.mode == "routed" and self._dice.random() < self._share
        said: list[str] = []
        began = time.monotonic()
        async with aclosing(self._service.write(request)) as events:
            async for event in events:
                if chosen and isinstance(event, Text) and event.voice == "content":
                    said.append(event.text)
                if chosen and isinstance(event, Finished):
                    self._follow(request, "".join(said), event, time.monotonic() - began)
                yield event

    def _follow(self, request: Request, said: str, finished: Finished, seconds: float) -> None:
        free = self._running is None or self._running.done()
        if free and finished.finish_reason == "stop" and finished.degraded is None:
            work = self._compare(request, said, finished, seconds)
            # A context of its own: it is no part of the request's trace, nor of what is observed of it.
            self._running = asyncio.get_running_loop().create_task(work, context=contextvars.Context())

    async def _compare(self, request: Request, said: str, finished: Finished, seconds: float) -> None:
        try:
            if not await self._idle():
                return
            alone = await self._alone(request)
            if alone is not None:
                text, told, took = alone
                compared = Comparison(
                    id=request.id,
                    tenant=request.tenant,
                    pair=finished.pair,
                    at=datetime.now(UTC),
                    threshold=finished.threshold or 0.0,
                    token_threshold=finished.token_threshold,
                    agree=same(said, text),
                    routed_s=seconds,
                    large_s=took,
                    routed=finished.usage,
                    large=told.usage.get("large", ModelUsage()),
                )
                await self._keep(compared)
        except Exception as error:
            log.warning("a shadow run failed (%s: %s)", type(error).__name__, error)

    async def _alone(self, request: Request) -> tuple[str, Finished, float] | None:
        """What the large model says, how it ended, and after how many seconds; None if it was in the way."""
        # What bounds the tenant's requests bounds this one, or the two would not be alike.
        bounded = permitted(request, (request.caller or ANYONE).policy)
        asked = replace(
            bounded,
            id=f"shadow-{request.id}",
            routing=Routing(mode="large"),
            # In small pieces, so that it can be given up in between.
            streaming=True,
            timeout_s=LONGEST_S,
        )
        page = await self._router.begin(asked)
        page.task = replace(page.task, priority=LAST)
        said: list[str] = []
        began = time.monotonic()
        async with aclosing(self._router.run(page)) as events:
            async for event in events:
                if self._busy():
                    return None
                if isinstance(event, Text) and event.voice == "content":
                    said.append(event.text)
                if isinstance(event, Finished):
                    return "".join(said), event, time.monotonic() - began
        return None


def same(first: str, second: str) -> bool:
    """Whether two replies come to the same answer."""
    one, other = extract(first), extract(second)
    if one is None or other is None:
        return " ".join(first.split()) == " ".join(second.split())
    return one == other
