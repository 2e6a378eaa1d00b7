"""Where spans go, and who decides which requests have any.

Serve makes the process's TracerProvider, with its own spans around ours. It does not pass on that a request is *not*
sampled, so every process would throw the dice again. So Serve is given a ratio of 0, at which it only follows a
parent that is sampled, and the dice are thrown once, by the router, where the root span begins.

All of it is said by OpenTelemetry's own environment variables: OTEL_EXPORTER_OTLP_ENDPOINT (without it nothing is
traced), OTEL_EXPORTER_OTLP_PROTOCOL (grpc or http/protobuf), OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG (by
default every request), OTEL_SERVICE_NAME, OTEL_BSP_* and the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SERVE_ENVIRONMENT = {
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "router.tracing:exporters",
    "RAY_SERVE_TRACING_SAMPLING_RATIO": "0",
    "OTEL_SERVICE_NAME": "glimprouter",
}
"""What Serve's processes need before they start, where spans are to be sent at all."""

_W3C = TraceContextTextMapPropagator()
_processors: list[SpanProcessor] = []


def exporters() -> list[SpanProcessor]:
    """Serve calls this once in each of its processes that is to trace (`exporter_import_path`)."""
    if endpoint() is not None:
        _processors.append(BatchSpanProcessor(_exporter()))
    return list(_processors)


def endpoint() -> str | None:
    """Where spans are sent; None: nowhere. Raises ValueError where they can't be."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    own, shared = (os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") for name in ("TRACES_ENDPOINT", "ENDPOINT"))
    if not (own or shared):
        return None
    over_http = protocol() == "http/protobuf"
    return own or (f"{str(shared).rstrip('/')}/v1/traces" if over_http else shared)


def protocol() -> str:
    """`grpc` or `http/protobuf`. Raises ValueError for another."""
    named = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if named not in (None, "", "grpc", "http/protobuf"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {named}; it can be grpc or http/protobuf")
    return named or "grpc"


def active() -> bool:
    """Whether this process sends spans."""
    return bool(_processors)


@cache
def tracer() -> trace.Tracer:
    """The router's own, whose sampler decides for all. Where nothing is traced it still gives requests an id."""
    provider = TracerProvider() if active() else TracerProvider(sampler=ALWAYS_OFF)
    for processor in _processors:
        provider.add_span_processor(processor)
    return provider.get_tracer("glimprouter")


def parent_of(headers: Mapping[str, str]) -> Context:
    """What a request's root span hangs under: Serve's span if it is of the client's trace, else the client's."""
    given = _W3C.extract(headers, Context())
    current = get_current()
    if _trace_id(given) and _trace_id(current) == _trace_id(given):
        return current
    return given


def carried(span: trace.Span) -> dict[str, str]:
    """The span as headers, for another process."""
    headers: dict[str, str] = {}
    _W3C.inject(headers, trace.set_span_in_context(span, Context()))
    return headers


@contextmanager
def within(headers: Mapping[str, str]) -> Iterator[None]:
    """Lets the spans begun in the block hang under the one in `headers`, if there is one."""
    if not headers:
        yield
        return
    token = attach(_W3C.extract(headers, Context()))
    try:
        yield
    finally:
        detach(token)


def _trace_id(context: Context) -> int:
    return trace.get_current_span(context).get_span_context().trace_id


def _exporter() -> SpanExporter:
    if protocol() == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return Grpc()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http()
