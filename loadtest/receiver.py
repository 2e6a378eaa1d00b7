"""An OTLP receiver: a gRPC server that keeps every span it is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

from loadtest.command import environment


@dataclass(frozen=True)
class Span:
    """Times are nanoseconds since the epoch."""

    trace: str
    id: str
    parent: str
    name: str
    began: int
    ended: int
    failed: bool
    links: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        return (self.ended - self.began) / 1e6


class Receiver(services.TraceServiceServicer):
    """Keeps spans. endpoint: where they are to be sent."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        self.endpoint = ""

    def Export(self, request: Any, context: Any) -> Any:
        with self._lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self._spans += [_read(span) for span in scope.spans]
        return messages.ExportTraceServiceResponse()

    @property
    def count(self) -> int:
        """Spans so far."""
        with self._lock:
            return len(self._spans)

    @property
    def traces(self) -> set[str]:
        with self._lock:
            return {span.trace for span in self._spans}

    def trace(self, id: str) -> list[Span]:
        """Every span of a trace that has come so far."""
        with self._lock:
            return [span for span in self._spans if span.trace == id]

    def complete(self, id: str, *, within_s: float = 20.0) -> list[Span]:
        """A trace's spans once each one's parent is there and nothing has been added for two seconds, or those that
        came by then."""
        until, seen, still = time.monotonic() + within_s, -1, 0.0
        while time.monotonic() < until:
            spans = self.trace(id)
            if len(spans) != seen:
                seen, still = len(spans), time.monotonic()
            elif spans and time.monotonic() - still > 2.0:
                break
            time.sleep(0.1)
        return self.trace(id)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port, for as long as the block lasts."""
    receiver, server = Receiver(), grpc.server(ThreadPoolExecutor(2))
    services.add_TraceServiceServicer_to_server(receiver, server)
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None)


@contextmanager
def traced_here(*, unasked: bool = True) -> Iterator[Receiver]:
    """The receiver of systems started meanwhile. unasked: they trace requests whose client did not ask for it."""
    with receiving() as receiver:
        telemetry = {
            "OTEL_SDK_DISABLED": "false",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_TRACES_SAMPLER": "parentbased_always_on" if unasked else "parentbased_always_off",
            "OTEL_BSP_SCHEDULE_DELAY": "1000",
        }
        with environment(**telemetry):
            yield receiver


def _read(span: Any) -> Span:
    return Span(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        failed=span.status.code == 2,
        links=tuple(link.span_id.hex() for link in span.links),
        attributes={one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes},
    )
