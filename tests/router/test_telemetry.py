"""A request's trace, metrics and line of log, through the real API, service and pools; only the replicas are played."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any, ClassVar

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from played import CALLER, HARD, SECRET, STEPS, TEXT, TRACE, Served, reciting, sent
from recited import DEFAULTS
from test_pools import hang

from router import metrics, pools, tracing
from router.hop import Chunk, Hop


class Recorded:
    """A metric that remembers: the sum of what it was told, and how often, by its labels."""

    made: ClassVar[dict[str, Recorded]] = {}

    def __init__(self, name: str, description: str, *rest: Any) -> None:
        self.labels = next((one for one in rest if isinstance(one, tuple)), ())
        self.sums: dict[tuple[str, ...], float] = defaultdict(float)
        self.counts: dict[tuple[str, ...], int] = defaultdict(int)
        Recorded.made[name] = self

    def inc(self, value: float = 1.0, tags: Mapping[str, str] | None = None) -> None:
        assert set(tags or {}) == set(self.labels)
        key = tuple((tags or {})[label] for label in self.labels)
        self.sums[key] += value
        self.counts[key] += 1

    observe = set = inc


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Recorded]]:
    monkeypatch.setattr(metrics, "Counter", Recorded)
    monkeypatch.setattr(metrics, "Histogram", Recorded)
    monkeypatch.setattr(metrics, "Gauge", Recorded)
    monkeypatch.setattr(Recorded, "made", {})
    metrics.metrics.cache_clear()
    metrics.metrics()
    yield Recorded.made
    metrics.metrics.cache_clear()


class Traces:
    def __init__(self, sampler: Sampler) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = provider.get_tracer("test")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._kept.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start_time)

    @property
    def root(self) -> ReadableSpan:
        (root,) = (span for span in self.spans if span.parent is None or span.parent.is_remote)
        return root


def record(monkeypatch: pytest.MonkeyPatch, sampler: Sampler) -> Traces:
    traces = Traces(sampler)
    for module in ("router.observation", "router.telemetry"):
        monkeypatch.setattr(f"{module}.tracer", lambda: traces.tracer)
    return traces


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Traces:
    return record(monkeypatch, ParentBased(ALWAYS_ON))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, counted: dict[str, Recorded]) -> Served:
    monkeypatch.setattr(pools, "PAUSE_S", 0.0)
    return Served()


async def test_a_request_is_one_tree(served: Served, traces: Traces) -> None:
    reply = await served.ask(sent(sampled=True))
    assert reply.headers["x-trace-id"] == TRACE
    assert {f"{span.context.trace_id:032x}" for span in traces.spans} == {TRACE}
    assert f"{traces.root.parent.span_id:016x}" == CALLER
    assert (traces.root.name, traces.root.kind.name) == ("chat glimpse", "SERVER")
    hops = traces.named("run small") + traces.named("step large")
    assert [len(traces.named(name)) for name in ("run small", "step large")] == [5, 5]
    for hop in hops:
        assert hop.kind.name == "CLIENT"
        assert hop.parent.span_id == traces.root.context.span_id
        assert traces.root.start_time <= hop.start_time <= hop.end_time <= traces.root.end_time
    ids = {hop.context.span_id: hop for hop in hops}
    steps = traces.named("glimpse.step")
    assert sorted(step.attributes["glimpse.step.index"] for step in steps) == list(range(STEPS))
    for step in steps:
        hop = ids[step.parent.span_id]
        hard = step.attributes["glimpse.step.index"] in HARD
        assert step.attributes["glimpse.decision"] == ("large" if hard else "small")
        assert step.attributes["glimpse.entropy"] == (2.0 if hard else 0.0)
        assert step.attributes["glimpse.threshold"] == DEFAULTS.threshold
        assert hop.name == ("step large" if hard else "run small")
        assert hop.start_time <= step.start_time <= step.end_time <= hop.end_time


async def test_each_hop_carries_its_own_span_to_its_replica(served: Served, traces: Traces) -> None:
    await served.ask()
    carried = [hop.trace["traceparent"] for handle in served.handles.values() for hop in handle.hops]
    spans = [*traces.named("run small"), *traces.named("step large")]
    assert sorted(header.split("-")[1:3] for header in carried) == sorted(
        [f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"] for span in spans
    )


async def test_a_resumed_hop_is_linked_to_the_one_it_replaces(
    served: Served, traces: Traces, counted: dict[str, Recorded]
) -> None:
    served.loses("small", after=2)
    await served.ask()
    lost, resumed = traces.named("run small")[:2]
    assert not lost.status.is_ok
    assert lost.attributes["error.type"] == "ActorDiedError"
    assert [link.context.span_id for link in resumed.links] == [lost.context.span_id]
    assert (lost.attributes["glimpse.attempt"], resumed.attributes["glimpse.attempt"]) == (0, 1)
    assert sorted(s.attributes["glimpse.step.index"] for s in traces.named("glimpse.step")) == list(range(STEPS))
    assert traces.root.attributes["glimpse.resumed_hops"] == 1
    assert counted["glimpse_resumed_hops_total"].sums == {("small",): 1}


async def test_a_hop_that_is_asked_again_keeps_its_attempt_and_is_not_counted_as_lost_twice(
    served: Served, traces: Traces, counted: dict[str, Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's next replica takes long to start."""
    monkeypatch.setattr(pools, "SILENT_S", 0.05)
    served.loses("small", after=2)
    served.handles["small"].scripts = (served.handles["small"].scripts[0], hang, *served.handles["small"].scripts[1:])
    await served.ask()
    lost, waited, resumed = traces.named("run small")[:3]
    assert waited.attributes["error.type"] == "Unheard"
    assert [link.context.span_id for link in waited.links] == [lost.context.span_id]
    assert [link.context.span_id for link in resumed.links] == [waited.context.span_id]
    assert [hop.attributes["glimpse.attempt"] for hop in (lost, waited, resumed)] == [0, 1, 1]
    assert traces.root.attributes["glimpse.resumed_hops"] == 1
    assert counted["glimpse_resumed_hops_total"].sums == {("small",): 1}


async def test_an_unsampled_request_sends_nothing(served: Served, traces: Traces) -> None:
    reply = await served.ask(sent(sampled=False))
    assert reply.headers["x-trace-id"] == TRACE
    assert traces.spans == []
    assert [hop.trace for handle in served.handles.values() for hop in handle.hops if hop.trace] == []


async def test_the_dice_are_thrown_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    traces = record(monkeypatch, ParentBased(ALWAYS_OFF))
    assert (await served.ask()).headers["x-trace-id"] != TRACE
    assert traces.spans == []
    await served.ask(sent(sampled=True))
    assert len(traces.spans) == 1 + 10 + STEPS


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01"])
async def test_a_broken_traceparent_is_as_none(served: Served, traces: Traces, header: str) -> None:
    reply = await served.ask({"traceparent": header})
    assert reply.status_code == 200
    assert reply.headers["x-trace-id"] == f"{traces.root.context.trace_id:032x}" != TRACE


async def test_nobody_reads_the_text_in_a_trace_or_a_log(
    served: Served, traces: Traces, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "glimprouter.requests"):
        assert SECRET in (await served.ask(stream=False)).text
    assert len(caplog.messages) == 1
    assert not any(
        SECRET in text or "Step 4" in text for text in [*caplog.messages, *(s.to_json() for s in traces.spans)]
    )


async def test_text_is_in_the_trace_if_that_is_switched_on(
    served: Served, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    await served.ask()
    assert SECRET in traces.root.attributes["gen_ai.input.messages"]
    assert "Step 4.\n\n" in [step.attributes["glimpse.step.text"] for step in traces.named("glimpse.step")]


async def test_a_request_is_one_line_of_json(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "glimprouter.requests"):
        replies = [await served.ask(), await served.ask(stream=False), await served.ask(temperature=9)]
    lines = [json.loads(message) for message in caplog.messages]
    assert [line["code"] for line in lines] == [200, 200, 400]
    assert [line["trace_id"] for line in lines] == [reply.headers["x-trace-id"] for reply in replies]
    assert [line["steps"] for line in lines] == [STEPS, STEPS, 0]
    usage = replies[1].json()["usage"]
    assert lines[1]["completion_tokens"] == usage["completion_tokens"]
    assert lines[1]["id"] == replies[1].json()["id"]
    assert lines[1]["request_id"] == replies[1].headers["x-request-id"]
    assert lines[1]["escalations"] == len(HARD)


async def test_metrics_are_the_reply_summed(served: Served, counted: dict[str, Recorded]) -> None:
    reply = (await served.ask(stream=False, model="glimpse-1.0", glimpse={"include_steps": True})).json()
    steps, usage = reply["glimpse"]["steps"], reply["usage"]["by_model"]
    assert counted["glimpse_requests_total"].sums == {("anonymous", "glimpse", "200"): 1}
    by_model = {model: [s for s in steps if s["model"] == model] for model in ("small", "large")}
    assert counted["glimpse_steps_total"].sums == {(model,): len(of) for model, of in by_model.items()}
    assert counted["glimpse_step_seconds"].counts == {(model,): len(of) for model, of in by_model.items()}
    assert counted["glimpse_entropy_nats"].counts[()] == STEPS
    assert counted["glimpse_entropy_nats"].sums[()] == pytest.approx(2.0 * len(HARD))
    assert sum(counted["glimpse_hop_seconds"].counts.values()) == reply["glimpse"]["hops"] == 10
    assert counted["glimpse_hop_seconds"].counts[("large", "step")] == len(HARD)
    assert counted["glimpse_hop_seconds"].counts[("large", "answer")] == 1
    tokens_total = counted["glimpse_tokens_total"].sums
    for model in ("small", "large"):
        assert tokens_total[("anonymous", model, "completion")] == usage[model]["completion_tokens"]
        assert tokens_total[("anonymous", model, "prompt")] == usage[model]["prompt_tokens"]
    assert counted["glimpse_request_seconds"].counts[()] == 1
    assert counted["glimpse_time_to_first_token_seconds"].counts[()] == 1


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("ep", "EP")], ids=["right", "wrong"])
@pytest.mark.parametrize("stream", [False, True])
async def test_guesses_are_in_the_trace_and_what_they_cost_in_the_metrics(
    served: Served, traces: Traces, counted: dict[str, Recorded], text: str, stream: bool
) -> None:
    served.handles["small"].scripts = (reciting(HARD, unsure="e."),)
    served.handles["large"].scripts = (reciting(text=text),)
    reply = await served.ask(
        stream=stream,
        stream_options={"include_usage": True} if stream else None,
        glimpse={"threshold": 3.0, "token_threshold": 1.0, "include_steps": True},
    )
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line and "[DONE]" not in line]
    told = {k: v for event in map(json.loads, events) for k, v in event.items() if k in ("usage", "glimpse") and v}
    runs, asked = traces.named("run small"), traces.named("step large")
    assert len(runs) + len(asked) == told["glimpse"]["hops"]
    guesses = [hop.attributes["glimpse.guess"] for hop in asked if "glimpse.guess" in hop.attributes]
    wrong = 0 if text == TEXT else len(HARD)
    assert (guesses.count("right"), guesses.count("wrong")) == (2 * len(HARD) - wrong, wrong)
    at = {span.context.span_id: span for span in [*runs, *asked]}
    steps = traces.named("glimpse.step")
    assert sorted(step.attributes["glimpse.step.index"] for step in steps) == list(range(STEPS))
    for step in steps:
        hop = at[step.parent.span_id]
        assert hop.start_time <= step.start_time <= step.end_time <= hop.end_time
    tokens_total = counted["glimpse_tokens_total"].sums
    discarded = 0.0
    for model, used in told["usage"]["by_model"].items():
        assert tokens_total[("anonymous", model, "completion")] == used["completion_tokens"]
        discarded += tokens_total[("anonymous", model, "discarded")]
    # Each guess, and what was written after a wrong one: "p", a blank, a digit or two, the guess of ".", a blank line.
    after = sum(len(f"p {step}.\n\n") for step in HARD) if wrong else 0
    assert discarded == told["glimpse"]["discarded_tokens"] == len(guesses) + after


async def test_a_request_that_is_refused_for_want_of_room_is_shed(served: Served, counted: dict[str, Recorded]) -> None:
    for model in ("small", "large"):
        served.loses(model, after=0)
        served.handles[model].scripts = served.handles[model].scripts[:1]
    assert (await served.ask(stream=False)).status_code == 503
    assert counted["glimpse_requests_total"].sums == {("anonymous", "glimpse", "503"): 1}
    assert counted["glimpse_shed_total"].sums == {("no_capacity",): 1}
    assert counted["glimpse_request_seconds"].counts == {}


async def test_a_stream_that_breaks_off_counts_as_what_broke_it(served: Served, counted: dict[str, Recorded]) -> None:
    served.loses("large", after=0)
    served.handles["large"].scripts = served.handles["large"].scripts[:1]
    reply = await served.ask()
    assert reply.status_code == 200
    assert "no_capacity" in reply.text
    assert counted["glimpse_requests_total"].sums == {("anonymous", "glimpse", "503"): 1}


async def test_a_client_that_hangs_up_counts_as_gone(
    served: Served, traces: Traces, counted: dict[str, Recorded]
) -> None:
    begun = asyncio.Event()

    async def hang(hop: Hop) -> AsyncGenerator[Chunk]:
        begun.set()
        await asyncio.sleep(60)
        yield Chunk()

    served.handles["small"].scripts = (hang,)
    asked = asyncio.create_task(served.ask())
    await begun.wait()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert counted["glimpse_requests_total"].sums == {("anonymous", "glimpse", "499"): 1}
    (hop,) = traces.named("run small")
    assert hop.parent.span_id == traces.root.context.span_id


def test_tenants_are_as_many_as_a_dashboard_can_hold(counted: dict[str, Recorded]) -> None:
    named = {metrics.metrics().tenant(f"tenant-{n}") for n in range(1000)}
    assert len(named) == metrics.MOST_TENANTS + 1
    assert metrics.metrics().tenant("tenant-0") == "tenant-0"
    assert metrics.metrics().tenant("tenant-999") == "other"


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4317"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "http://c:4318/v1/traces",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:4317"},
            "http://t:4317",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_spans_go_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], endpoint: str | None
) -> None:
    for name in ("ENDPOINT", "PROTOCOL", "TRACES_ENDPOINT", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing.endpoint() == endpoint


def test_an_unknown_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")
    with pytest.raises(ValueError, match="grpc or http/protobuf"):
        tracing.protocol()
