"""The seams at which requests are observed, so that nothing between them needs to know.

`Observer` stands around the API (status, times), `Observed` around the service (what was asked, steps, the account),
`Watch` around each call of a pool. They meet in the request's `router.observation.Observation`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from opentelemetry.context import attach, detach
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.hop import Chunk, End, Ending, Hop, unpack
from router.leftovers import unwanted
from router.metrics import metrics
from router.observation import OPERATIONS, Observation, current, refused, shows_text
from router.request import Event, Model, Pair, Refusal, Request, Service, StepWritten
from router.tracing import carried, tracer

TRACE_HEADER = "x-trace-id"


class Observer:
    """Observes requests for text from beginning to end, and stamps `x-trace-id` on their responses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = None
        if scope["type"] == "http" and scope["method"] == "POST":
            operation = OPERATIONS.get(scope["path"].removeprefix(scope.get("root_path", "")))
        if operation is None:
            await self._app(scope, receive, send)
            return
        seen = Observation.begin(scope, operation)
        token = current.set(seen)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                MutableHeaders(scope=message)[TRACE_HEADER] = seen.trace_id
            await send(message)

        under = attach(set_span_in_context(seen.span))
        try:
            await self._app(scope, receive, noting)
        finally:
            detach(under)
            current.reset(token)
            seen.end()


class Observed:
    """A service whose events are counted as they pass."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def pair(self) -> Pair:
        return self._service.pair

    async def ready(self) -> str | None:
        return await self._service.ready()

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        seen = current.get()
        if seen is not None:
            seen.request, seen.pair = request, self.pair.fingerprint
        try:
            async with aclosing(self._service.write(request)) as events:
                async for event in events:
                    if seen is not None:
                        seen.saw(event)
                    yield event
        except Refusal as refusal:
            refused(refusal)
            raise
        except Exception:
            if seen is not None:
                seen.failed = True
            raise


class Watch:
    """Watches one attempt at a hop; `hop` is what to send, with the span as its trace.

    attempt: 0, or how many replicas were lost before. replaces: the attempt before, which was lost or not heard of.
    """

    def __init__(self, model: Model, hop: Hop, *, attempt: int = 0, replaces: Watch | None = None) -> None:
        self.hop, self.steps = hop, list[StepWritten]()
        self._model, self._attempt = model, attempt
        self._seen = current.get()
        self._span: Span | None = None
        self._began = time.perf_counter()
        self._ended: float | None = None
        self._told: int | None = None
        self._end: End | None = None
        self._cached = self._tokens = self._unwanted = 0
        # What has no observation is a shadow run's, and in no metric of live requests.
        if self._seen is not None and replaces is not None and attempt > replaces._attempt:
            metrics().resumed_hops.inc(tags={"pool": model})
        if self._seen is not None:
            self._seen.hop_steps = self.steps
            if hop.gate is not None:
                self._seen.threshold = hop.gate
            if self._seen.traced:
                self._begin_span(self._seen, replaces)

    @property
    def _kind(self) -> str:
        if not self.hop.thinking:
            return "answer"
        return "token" if self.hop.max_tokens == 1 else "step" if self.hop.max_steps == 1 else "run"

    def _begin_span(self, seen: Observation, replaces: Watch | None) -> None:
        self._began_ns = time.time_ns()
        before = replaces.context if replaces else None
        span = self._span = tracer().start_span(
            "run small" if self._model == "small" else "step large",
            set_span_in_context(seen.span),
            SpanKind.CLIENT,
            {
                "gen_ai.operation.name": seen.operation,
                "gen_ai.request.model": self._model,
                "glimpse.hop": self._kind,
                "glimpse.attempt": self._attempt,
                "glimpse.prefix.tokens": self.hop.prefix_tokens,
                "tenant.id": self.hop.tenant,
            },
            [Link(before, {"glimpse.link": "replaces"})] if before else None,
            self._began_ns,
        )
        if self.hop.gate is not None:
            span.set_attribute("glimpse.threshold", self.hop.gate)
        if self.hop.token_gate is not None:
            span.set_attribute("glimpse.token_threshold", self.hop.token_gate)
        self.hop = replace(self.hop, trace=carried(span))

    @property
    def context(self) -> SpanContext | None:
        return self._span.get_span_context() if self._span else None

    def took(self, chunk: Chunk) -> None:
        if unwanted.get():
            self._unwanted += chunk.tokens
        else:
            self._tokens += chunk.tokens
        self._cached = chunk.cached_tokens
        if self._seen is not None and not unwanted.get():
            # Where a guess is looked at, another hop was under way in between.
            self._seen.hop_steps = self.steps
        if self.hop.guess is not None and self._told is None and chunk.thought:
            self._told = unpack(chunk.thought)[0]
        if chunk.end is not None:
            self._end, self._ended = chunk.end, time.perf_counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        seconds = (self._ended or time.perf_counter()) - self._began
        if self._seen is not None:
            self._seen.spent(self._model, "completion", self._tokens)
            if self._end is not None:
                metrics().hop_seconds.observe(seconds, {"pool": self._model, "hop": self._kind})
                self._seen.spent(self._model, "discarded", self._end.discarded_tokens + self._unwanted)
        if self._span is not None:
            self._end_span(self._span, seconds, kind)

    def _end_span(self, span: Span, seconds: float, kind: type[BaseException] | None) -> None:
        self._tell_steps(span, seconds)
        span.set_attributes({"glimpse.prefix.cached_tokens": self._cached, "gen_ai.usage.output_tokens": self._tokens})
        if (end := self._end) is not None:
            span.set_attributes(
                {
                    "glimpse.replica": end.replica,
                    "glimpse.ending": end.ending.value,
                    "glimpse.engine_ms": end.engine_ms,
                    "glimpse.discarded_tokens": end.discarded_tokens + self._unwanted,
                }
            )
            if (guess := self.hop.guess) is not None:
                told = "right" if self._told == guess.token else "wrong"
                span.set_attributes({"glimpse.entropy": guess.entropy, "glimpse.guess": told})
            if end.ending in (Ending.GLIMPSE, Ending.TOKEN) and end.glimpse is not None:
                span.set_attributes({"glimpse.entropy": end.glimpse, "glimpse.decision": "large"})
        elif kind is not None:
            span.set_attribute("error.type", kind.__name__)
            if issubclass(kind, Exception):
                span.set_status(Status(StatusCode.ERROR))
        span.end(self._began_ns + int(seconds * 1e9))

    def _tell_steps(self, span: Span, seconds: float) -> None:
        """The replica tells how long each step took; between hop and engine lies the way there, half of the rest."""
        wrote_s = self._end.engine_ms / 1000.0 if self._end else sum(s.duration_ms for s in self.steps) / 1000.0
        at, ends = self._began_ns + int(max(0.0, seconds - wrote_s) / 2 * 1e9), self._began_ns + int(seconds * 1e9)
        within = set_span_in_context(span)
        for step in self.steps:
            told = tracer().start_span("glimpse.step", within, start_time=at, attributes=self._step(step))
            at += int(step.duration_ms * 1e6)
            # A step may have begun in hops before this one.
            at = min(at, ends)
            told.end(at)

    def _step(self, step: StepWritten) -> dict[str, Any]:
        told: dict[str, Any] = {
            "glimpse.step.index": step.index,
            "glimpse.decision": step.model,
            "gen_ai.usage.output_tokens": step.tokens,
        }
        if step.entropy is not None:
            told["glimpse.entropy"] = step.entropy
        if self._seen and self._seen.threshold is not None:
            told["glimpse.threshold"] = self._seen.threshold
        if shows_text():
            told["glimpse.step.text"] = step.text
        return told
