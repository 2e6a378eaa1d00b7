"""A request as an operator sees it: a trace, metrics, a line of log. Never its text, unless asked to."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Self

from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.datastructures import Headers
from starlette.types import Scope

from router.metrics import metrics
from router.request import Event, Finished, Model, Refusal, Request, StepWritten, Text
from router.tracing import parent_of, tracer

log = logging.getLogger("glimprouter.requests")
"""One JSON object a line."""

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
"""GenAI's names for what these paths do."""

GONE = 499
"""nginx's code for a client that hung up: nobody reads it, but logs and metrics should not call it a failure."""

_MODEL: dict[Model, dict[str, str]] = {"small": {"model": "small"}, "large": {"model": "large"}}


def write_requests_to(folder: str, replica: str) -> None:
    """From now on this process logs its requests to a file beside Serve's logs: 100 MB, and as much again before."""
    handler = RotatingFileHandler(Path(folder) / f"requests_{replica}.jsonl", maxBytes=100_000_000, backupCount=1)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def shows_text() -> bool:
    """OpenTelemetry's own switch for prompts and completions in traces."""
    return os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").lower() == "true"


@dataclass(slots=True)
class Observation:
    """One request, as far as it has come.

    caller: the tenant whose key came with it. began: seconds of the performance counter. threshold: the last gate, in
    nats. hop_steps: those of the hop under way. traced: whether it has spans.
    """

    span: Span
    trace_id: str
    request_id: str
    operation: str
    began: float = field(default_factory=time.perf_counter)
    caller: str | None = None
    request: Request | None = None
    pair: str = ""
    status: int | None = None
    refusal: Refusal | None = None
    failed: bool = False
    finished: Finished | None = None
    first_token_s: float | None = None
    steps: int = 0
    threshold: float | None = None
    hop_steps: list[StepWritten] = field(default_factory=list)
    traced: bool = False

    @classmethod
    def begin(cls, scope: Scope, operation: str) -> Self:
        span = tracer().start_span(f"{operation} glimpse", parent_of(Headers(scope=scope)), SpanKind.SERVER)
        return cls(
            span=span,
            trace_id=f"{span.get_span_context().trace_id:032x}",
            request_id=str(scope.get("state", {}).get("request_id", "")),
            operation=operation,
            traced=span.is_recording(),
        )

    @property
    def model(self) -> str:
        """As in the API, but few: whatever the client wrote after `glimpse-` is left out."""
        return "unknown" if self.request is None else self.request.routing.model

    @property
    def tenant(self) -> str:
        return "unknown" if self._tenant is None else metrics().tenant(self._tenant or "anonymous")

    @property
    def _tenant(self) -> str | None:
        return self.request.tenant if self.request else self.caller

    @property
    def code(self) -> int:
        """The status, also where the headers were gone by the time things went wrong."""
        if self.refusal is not None:
            return self.refusal.status
        if self.failed:
            return 500
        if self.status is None or (self.status == 200 and self.finished is None):
            return GONE
        return self.status

    def saw(self, event: Event) -> None:
        match event:
            case Text():
                if self.first_token_s is None:
                    self.first_token_s = time.perf_counter() - self.began
                    metrics().first_token_seconds.observe(self.first_token_s)
            case StepWritten():
                self.steps += 1
                metrics().steps.inc(tags=_MODEL[event.model])
                metrics().step_seconds.observe(event.duration_ms / 1000.0, _MODEL[event.model])
                if event.entropy is not None:
                    metrics().entropy.observe(event.entropy)
                if self.traced:
                    self.hop_steps.append(event)
            case Finished():
                self.finished = event
                for model, used in event.usage.items():
                    self.spent(model, "prompt", used.prompt_tokens)
                    self.spent(model, "cached", used.cached_tokens)

    def spent(self, model: Model, kind: str, tokens: int) -> None:
        if tokens:
            metrics().tokens.inc(tokens, {"tenant": self.tenant, "model": model, "kind": kind})

    def end(self) -> None:
        seconds, code = time.perf_counter() - self.began, self.code
        metrics().requests.inc(tags={"tenant": self.tenant, "model": self.model, "code": str(code)})
        metrics().large_share_target.set(metrics().target)
        metrics().spared_share.set(metrics().spared())
        if self.finished is not None:
            metrics().request_seconds.observe(seconds)
        if code in (429, 503):
            metrics().shed.inc(tags={"reason": (self.refusal and self.refusal.code) or "overloaded"})
        account = self._account(code)
        if self.traced:
            self._end_span(account)
        log.info(json.dumps({"time": round(time.time(), 3), "duration_ms": round(seconds * 1000, 1)} | account))

    def _account(self, code: int) -> dict[str, Any]:
        told: dict[str, Any] = {
            "trace_id": self.trace_id,
            "request_id": self.request_id,
            "tenant": self._tenant,
            "model": self.model,
            "code": code,
            "error": self.refusal.code if self.refusal else None,
            "steps": self.steps,
        }
        if self.first_token_s is not None:
            told["first_token_ms"] = round(self.first_token_s * 1000, 1)
        if self.request is not None:
            told |= {"id": self.request.id, "pair": self.pair, "stream": self.request.streaming}
        if (done := self.finished) is not None:
            told |= {
                "finish_reason": done.finish_reason,
                "prompt_tokens": done.prompt_tokens,
                "cached_tokens": done.cached_tokens,
                "completion_tokens": done.completion_tokens,
                "reasoning_tokens": done.reasoning_tokens,
                "discarded_tokens": done.discarded_tokens,
                "threshold": done.threshold,
                "large_token_share": round(done.large_token_share, 4),
                "escalations": done.escalations,
                "hops": done.hops,
                "resumed_hops": done.resumed_hops,
            }
        return told

    def _end_span(self, account: Mapping[str, Any]) -> None:
        span, code = self.span, self.code
        span.update_name(f"{self.operation} {self.model}" if self.request else f"{self.operation} glimpse")
        named = {
            "gen_ai.operation.name": self.operation,
            "gen_ai.provider.name": "glimprouter",
            "gen_ai.request.model": self.model,
            "gen_ai.response.id": account.get("id"),
            "gen_ai.usage.input_tokens": account.get("prompt_tokens"),
            "gen_ai.usage.output_tokens": account.get("completion_tokens"),
            "http.response.status_code": code,
            "glimpse.threshold": account.get("threshold"),
            "glimpse.large_token_share": account.get("large_token_share"),
            "glimpse.escalations": account.get("escalations"),
            "glimpse.hops": account.get("hops"),
            "glimpse.resumed_hops": account.get("resumed_hops"),
            "glimpse.pair": account.get("pair"),
            "tenant.id": account["tenant"],
            "error.type": (account["error"] or str(code)) if code >= 400 else None,
        }
        span.set_attributes({name: value for name, value in named.items() if value is not None})
        if self.finished is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [self.finished.finish_reason])
        if shows_text() and self.request is not None:
            said = self.request.messages if self.request.messages is not None else self.request.prompt
            span.set_attribute("gen_ai.input.messages", json.dumps(said, default=str))
        if code >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


current: ContextVar[Observation | None] = ContextVar("observation", default=None)


def thrown_away(model: Model, tokens: int) -> None:
    """Tells the request's observation of tokens that were generated beside its hops."""
    if (seen := current.get()) is not None:
        seen.spent(model, "discarded", tokens)


def known(tenant: str) -> None:
    """Tells the request's observation whose it is."""
    if (seen := current.get()) is not None:
        seen.caller = tenant


def refused(refusal: Refusal) -> None:
    """Tells the request's observation why it gets nothing."""
    if (seen := current.get()) is not None:
        seen.refusal = refusal
