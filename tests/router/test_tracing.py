"""Spans leave a process by either protocol, for a real receiver."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from deployments import launcher
from deployments.plan import read_plan
from deployments.progress import StartError
from loadtest.receiver import receiving
from router import tracing


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """An OTLP receiver over HTTP: its address, and the names of the spans it was sent."""
    names: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/v1/traces"
            names.extend(
                s.name for resource in sent.resource_spans for scope in resource.scope_spans for s in scope.spans
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", names
    finally:
        server.shutdown()
        server.server_close()


def send(name: str) -> None:
    provider = TracerProvider()
    for processor in tracing.exporters():
        provider.add_span_processor(processor)
    provider.get_tracer("test").start_span(name).end()
    provider.shutdown()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_processors", [])


def test_over_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        send("by gRPC")
        (trace,) = receiver.traces
        assert [span.name for span in receiver.trace(trace)] == ["by gRPC"]


def test_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening() as (endpoint, names):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        send("by HTTP")
        assert names == ["by HTTP"]


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_a_protocol_that_is_not_spoken_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(ValueError, match="grpc or http/protobuf"):
        tracing.endpoint()
    profile = Path(launcher.__file__).parent / "profiles" / "pocket.yaml"
    with pytest.raises(StartError, match="grpc or http/protobuf"):
        read_plan(profile)


def test_nowhere_if_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert tracing.exporters() == []
    assert not tracing.active()
