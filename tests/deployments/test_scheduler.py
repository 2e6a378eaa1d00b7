"""Where the scheduler ends a hop; that vLLM asks it is tests/e2e's business."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import RequestStatus

from deployments.scheduler import RunScheduler, carried
from router.hop import Hop
from router.request import Sampling
from router.run import Run
from router.steps import Marks

A, B, STOP, NEWLINE, BLANK, CLOSE, END = range(7)
MARKS = Marks.of([b"a", b"b", b".\n\n", b"\n", b" ", b"</think>", b""], close=CLOSE, ends=[END])
SURE, UNSURE = 0.25, 1.5


class Asked:
    """A request of vLLM's, as far as it is looked at."""

    def __init__(self, id: str, params: SamplingParams) -> None:
        self.request_id, self.sampling_params, self.status = id, params, RequestStatus.RUNNING
        self.resumable, self.max_tokens = True, params.max_tokens


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> RunScheduler:
    return made(monkeypatch)


def made(monkeypatch: pytest.MonkeyPatch, *, ends: bool = False) -> RunScheduler:
    """Without an engine. ends: vLLM's own part ends every request."""
    monkeypatch.setattr(Scheduler, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(Scheduler, "update_from_output", lambda *_: {})
    monkeypatch.setattr(Scheduler, "_update_request_with_output", lambda _, __, ids, ___: (ids, ends))
    monkeypatch.setattr("deployments.scheduler.Vocabulary.load", lambda *_, **__: SimpleNamespace(marks=MARKS))
    model = SimpleNamespace(model="m", revision=None)
    config: Any = SimpleNamespace(model_config=model, additional_config={"think_tags": None})
    return RunScheduler(config)


def params(hop: Hop | None) -> SamplingParams:
    return SamplingParams(logprobs=0, max_tokens=100, extra_args=None if hop is None else carried(hop))


def hop(*prefix: int, **fields: Any) -> Hop:
    limits = {"thinking_tokens": 40, "tokens": 60, "step_tokens": 20} | fields
    return Hop(pair="p", prefix=array("i", prefix).tobytes(), sampling=Sampling(), **limits)


def drawn(scheduler: RunScheduler, asked: dict[Asked, tuple[int, float]], *, is_stale: bool = False) -> list[bool]:
    """An iteration in which each request gets a token, of such an entropy; which of them end with it. is_stale: they
    were preempted meanwhile."""
    column = np.array([[entropy] for _, entropy in asked.values()], dtype=np.float32)
    output: Any = SimpleNamespace(
        logprobs=LogprobsLists(np.zeros_like(column, dtype=np.int32), column, np.zeros(len(asked), dtype=np.int32)),
        req_id_to_index={request.request_id: place for place, request in enumerate(asked)},
    )
    scheduler.update_from_output(None, output)  # type: ignore[arg-type]
    return [
        scheduler._update_request_with_output(request, [token], is_stale)[1]  # type: ignore[arg-type]
        for request, (token, _) in asked.items()
    ]


tokens = st.lists(
    st.tuples(st.sampled_from([A, A, B, STOP, NEWLINE, BLANK, CLOSE, END]), st.sampled_from([SURE, UNSURE]))
)


@given(
    tokens,
    st.builds(
        hop,
        st.sampled_from([A, B]),
        gate=st.sampled_from([None, 1.0]),
        token_gate=st.sampled_from([None, 1.0]),
        guesses=st.integers(0, 2),
        ungated_steps=st.integers(0, 1),
        max_steps=st.integers(1, 3),
        max_tokens=st.integers(1, 12),
        step_tokens=st.integers(2, 6),
        answers=st.booleans(),
    ),
)
def test_a_hop_ends_where_its_run_is_over(written: list[tuple[int, float]], asked: Hop) -> None:
    with pytest.MonkeyPatch.context() as patch:
        of, request, run = made(patch), Asked("r", params(asked)), Run(asked, MARKS, 0.0)
        for token, entropy in written:
            ending = run.take(token, entropy if run.wants_entropy else None, 0.0)
            assert drawn(of, {request: (token, entropy)}) == [ending is not None]
            if ending is not None:
                assert request.status is RequestStatus.FINISHED_STOPPED
                return
            run.drain(cached_tokens=0)


def test_each_request_has_its_own_entropy(scheduler: RunScheduler) -> None:
    sure, unsure, other = (Asked(id, params(hop(A, gate=1.0))) for id in "abc")
    assert drawn(scheduler, {sure: (A, SURE), unsure: (A, UNSURE), other: (B, SURE)}) == [False, True, False]


def test_a_session_has_a_run_for_each_turn(scheduler: RunScheduler) -> None:
    request = Asked("r", params(hop(A, max_tokens=2)))
    assert [drawn(scheduler, {request: (A, SURE)}) for _ in range(2)] == [[False], [True]]
    request.sampling_params = params(hop(A, A, A, max_tokens=2))
    assert [drawn(scheduler, {request: (A, SURE)}) for _ in range(2)] == [[False], [True]]


def test_a_request_that_was_preempted_meanwhile_is_left_to_the_replica(
    scheduler: RunScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In vLLM's queue a session would wait for its next turn where nobody finds it."""
    request = Asked("r", params(hop(A, max_tokens=2)))
    assert drawn(scheduler, {request: (A, SURE)}) == [False]
    assert drawn(scheduler, {request: (A, SURE)}, is_stale=True) == [False]
    assert drawn(scheduler, {request: (A, SURE)}) == [False]
    assert request.status is RequestStatus.RUNNING
    capped = Asked("capped", params(hop(A, max_tokens=1)))
    assert drawn(made(monkeypatch, ends=True), {capped: (A, SURE)}, is_stale=True) == [False], "nor by vLLM's own bound"
    assert (capped.status, capped.max_tokens) == (RequestStatus.RUNNING, 101)
    request.sampling_params = params(hop(A, A, A, max_tokens=1))
    assert drawn(scheduler, {request: (A, SURE)}) == [True]


def test_what_stood_before_the_hop_counts(scheduler: RunScheduler) -> None:
    """A step that is begun is cut at its length, and two that are the same are a circle."""
    begun = Asked("begun", params(hop(A, B, A, open_tokens=2, step_tokens=3, max_steps=1)))
    assert drawn(scheduler, {begun: (A, UNSURE)}) == [True]
    step = [A, B] * 4 + [STOP]
    circle = Asked("circle", params(hop(*step, last_step_tokens=len(step))))
    assert [drawn(scheduler, {circle: (token, SURE)})[0] for token in step] == [False] * 8 + [True]


def test_other_requests_are_vllms_own_business(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Asked("plain", params(None))
    assert drawn(made(monkeypatch), {plain: (END, UNSURE)}) == [False]
    ended = Asked("ended", params(hop(A, gate=1.0)))
    assert drawn(made(monkeypatch, ends=True), {ended: (A, SURE)}) == [True]
    assert ended.status is RequestStatus.RUNNING, "vLLM says how it ended"


def test_only_the_end_of_a_long_prefix_is_carried() -> None:
    long = hop(*[A] * 5000, B, A, open_tokens=1, last_step_tokens=2)
    assert len(carried(long)["hop"]) < 1500
