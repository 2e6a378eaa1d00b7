from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from scripted import QUESTIONS

from loadtest.arrivals import SHAPES, Shape, arrivals
from loadtest.command import MeasuringError
from loadtest.traffic import Mix, Observed, Tenant, tenants
from loadtest.verdict import Bounds, Seen, broken


def count(shape: Shape, begin: float, end: float, seed: int = 1) -> int:
    times = arrivals(shape.at, shape.peak, random.Random(seed))
    return sum(begin <= t for t in itertools.takewhile(lambda t: t < end, times))


@pytest.mark.parametrize("kind", SHAPES)
def test_arrivals_follow_the_rate(kind: str) -> None:
    shape = Shape(kind, rate=10.0, duration_s=600.0)
    expected = sum(shape.at(t / 10) / 10 for t in range(6000))
    assert count(shape, 0, 600) == pytest.approx(expected, rel=0.06)


def test_a_burst_keeps_the_mean_and_comes_at_the_beginning_of_each_period() -> None:
    shape = Shape("burst", rate=10.0)
    assert count(shape, 0, 600) == pytest.approx(6000, rel=0.06)
    assert count(shape, 60, 66) == pytest.approx(300, rel=0.25)


def test_a_ramp_and_its_steps_end_at_the_full_rate() -> None:
    assert Shape("ramp", 10.0, duration_s=100).at(50) == 5.0
    assert Shape("ramp", 10.0, duration_s=100).at(500) == 10.0
    assert [Shape("step", 10.0, duration_s=100).at(t) for t in (0, 19, 20, 99, 500)] == [2.0, 2.0, 4.0, 10.0, 10.0]


def test_gaps_are_those_of_a_poisson_process() -> None:
    times = list(itertools.islice(arrivals(lambda t: 5.0, 5.0, random.Random(3)), 5000))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


def test_tenants_come_from_a_file_and_keys_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_KEY", "sk-acme")
    path = tmp_path / "tenants.yaml"
    path.write_text("- {name: acme, key: $ACME_KEY, weight: 3}\n- {name: zed, key: sk-zed}\n- name: open\n")
    assert tenants(path) == [Tenant("acme", "sk-acme", 3), Tenant("zed", "sk-zed"), Tenant("open")]


def test_without_a_file_there_is_one_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIMPROUTER_API_KEY", "sk-1")
    assert tenants(None) == [Tenant("anyone", "sk-1")]


@pytest.mark.parametrize(
    "text", ["a: 1", "- {nom: x}", "[]", "- {name: a, weight: 0}", "- {name: a, weight: -1}", "- ["]
)
def test_a_bad_list_of_tenants_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(text)
    with pytest.raises(MeasuringError, match=r"tenants\.yaml"):
        tenants(path)


def test_requests_are_mixed_in_the_wanted_shares() -> None:
    mix = Mix([Tenant("a", weight=3), Tenant("b", weight=1)], QUESTIONS, 0.25, 0.5, {"model": "glimpse"})
    dice = random.Random(5)
    drawn = [mix.draw(dice) for _ in range(4000)]
    assert sum(one.tenant.name == "a" for one in drawn) == pytest.approx(3000, rel=0.05)
    kinds = Counter(one.kind for one in drawn)
    assert kinds["chat, streamed"] == pytest.approx(500, rel=0.2)
    assert kinds["question, whole"] == pytest.approx(1500, rel=0.1)
    chat = next(one for one in drawn if one.kind == "chat, streamed")
    assert [message["role"] for message in chat.body["messages"]] == ["user", "assistant", "user"]  # type: ignore[attr-defined]
    assert chat.streamed
    assert chat.body["model"] == "glimpse"
    assert {one.answer for one in drawn} == {one.answer for one in QUESTIONS}


def event(delta: dict[str, str] | None = None, **fields: object) -> bytes:
    choices = [] if delta is None else [{"delta": delta}]
    return f"data: {json.dumps({'choices': choices, **fields})}\n".encode()


STEP = {"model": "large", "duration_ms": 12.5}
STREAM = [
    event({"role": "assistant", "content": ""}),
    event({"reasoning_content": "so"}),
    b": keep-alive\n",
    b"\n",
    event({"reasoning_content": "on"}),
    event({}, glimpse={"step": STEP}),
    event({"content": "4"}),
    event({}, glimpse={"escalations": 2, "large_token_share": 0.3}),
    event(usage={"completion_tokens": 9}),
    b"data: [DONE]\n",
]


def test_a_stream_tells_its_first_token_its_gaps_and_its_steps() -> None:
    seen = Observed()
    clock = iter([1.0, 1.25, 2.0])
    seen.streamed(STREAM, lambda: next(clock))
    assert seen.first_s == 1.0
    assert seen.gaps_s == [0.25, 0.75]
    assert seen.steps == [("large", 12.5)]
    assert (seen.escalations, seen.large_token_share, seen.tokens) == (2, 0.3, 9)
    assert seen.content == "4"
    assert seen.answer == 4
    assert seen.complete


def test_a_stream_that_breaks_off_is_not_complete() -> None:
    seen = Observed()
    seen.streamed(STREAM[:-1], lambda: 0.0)
    assert not seen.complete
    seen.streamed([event(error={"message": "the large pool failed"})], lambda: 0.0)
    assert seen.error == "the large pool failed"


def test_a_whole_reply_tells_the_same() -> None:
    seen = Observed()
    seen.whole(
        {
            "choices": [{"message": {"reasoning_content": "so on, 3", "content": "It is 4."}}],
            "glimpse": {"escalations": 1, "large_token_share": 0.2, "steps": [STEP]},
            "usage": {"completion_tokens": 5},
        }
    )
    assert seen.answer == 4
    assert (seen.steps, seen.escalations, seen.tokens, seen.first_s) == ([("large", 12.5)], 1, 5, None)
    assert seen.complete


REQUESTS = Seen("acme", "chat, streamed", count=100, failures=0, p95_s=8.0)
FIRST = Seen("glimpse", "time to first token", count=50, failures=0, p95_s=2.0)
REFUSED = Seen("refused", "429", count=25, failures=0, p95_s=0.1)


@pytest.mark.parametrize(
    ("seen", "bounds", "said"),
    [
        ([REQUESTS, FIRST, REFUSED], Bounds(), []),
        ([REQUESTS, FIRST], Bounds(p95_s=8.0, ttft_p95_s=2.0), []),
        ([REQUESTS], Bounds(p95_s=7.0), ["p95 of acme, chat, streamed is 8.00 s"]),
        ([REQUESTS, FIRST], Bounds(ttft_p95_s=1.0), ["p95 of the time to first token is 2.00 s"]),
        ([REQUESTS, REFUSED], Bounds(refused=0.1), ["25 of 125 requests were refused"]),
        ([REQUESTS, Seen("b", "x", 10, 3, 1.0)], Bounds(failed=0.01), ["3 of 110 requests failed"]),
        ([Seen("b", "x", 10, 10, 1.0)], Bounds(failed=1.0), ["nothing was answered"]),
        ([REFUSED], Bounds(), ["nothing was answered"]),
    ],
)
def test_each_broken_bound_is_a_line(seen: list[Seen], bounds: Bounds, said: list[str]) -> None:
    lines = broken(seen, bounds)
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))
