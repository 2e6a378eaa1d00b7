from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from loadtest.paced_worker import Pace, Script, logprobs
from router.glimpse import TOP, entropy

CHAIN = {1: (2,), 2: (3, 4), 3: (5,), 4: (5,), 5: (6,)}
END = 99


def iteration(
    scheduled: Mapping[str, int],
    *,
    new: Mapping[str, list[int]] | None = None,
    computed: Mapping[str, int] | None = None,
    finished: Iterable[str] = (),
    asked: int | None = None,
) -> Any:
    """What vLLM's scheduler tells a worker: `scheduled` tokens of each request, the prompts of `new` ones, and how many
    tokens of the others are `computed`."""
    known = computed or {}
    return SimpleNamespace(
        finished_req_ids=set(finished),
        num_scheduled_tokens=dict(scheduled),
        scheduled_new_reqs=[
            SimpleNamespace(
                req_id=request,
                prompt_token_ids=prompt,
                num_computed_tokens=0,
                sampling_params=SimpleNamespace(logprobs=asked),
            )
            for request, prompt in (new or {}).items()
        ],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(known), num_computed_tokens=list(known.values())),
    )


def test_a_request_writes_the_chain_from_its_prompts_last_token_on() -> None:
    script = Script(CHAIN, END)
    assert script.written(iteration({"a": 3}, new={"a": [7, 8, 1]})) == (["a"], [(2,)])
    assert script.written(iteration({"a": 1}, computed={"a": 3})) == (["a"], [(3, 4)])
    assert script.written(iteration({"a": 1}, computed={"a": 4})) == (["a"], [(5,)])
    assert script.context(["a"]) == 6


def test_a_prompt_that_is_read_in_pieces_writes_after_the_last_one() -> None:
    script = Script(CHAIN, END)
    assert script.written(iteration({"a": 2}, new={"a": [7, 8, 1]})) == (["a"], [()])
    assert script.written(iteration({"a": 1}, computed={"a": 2})) == (["a"], [(2,)])


def test_requests_beside_each_other_go_their_own_ways() -> None:
    script = Script(CHAIN, END)
    script.written(iteration({"a": 1}, new={"a": [1]}))
    both = iteration({"b": 1, "a": 1}, new={"b": [5]}, computed={"a": 1})
    assert script.written(both) == (["b", "a"], [(6,), (3, 4)])


def test_a_request_that_had_to_make_room_goes_on_where_it_was() -> None:
    script = Script(CHAIN, END)
    script.written(iteration({"a": 2}, new={"a": [8, 1]}))
    assert script.written(iteration({"a": 2}, computed={"a": 0})) == (["a"], [()])
    assert script.written(iteration({"a": 1}, computed={"a": 2})) == (["a"], [(3, 4)])


def test_a_name_can_be_used_again() -> None:
    script = Script(CHAIN, END)
    script.written(iteration({"a": 1}, new={"a": [1]}))
    assert script.written(iteration({"a": 1}, new={"a": [5]}, finished=["a"])) == (["a"], [(6,)])


def test_a_text_that_belongs_to_no_chain_ends() -> None:
    assert Script(CHAIN, END).written(iteration({"a": 1}, new={"a": [50]})) == (["a"], [(END,)])


def test_what_most_logprobs_a_request_asks_for_all_get() -> None:
    script = Script(CHAIN, END)
    script.written(iteration({"a": 1}, new={"a": [1]}))
    assert script.logprobs(["a"]) is None
    script.written(iteration({"b": 1}, new={"b": [1]}, asked=TOP))
    assert script.logprobs(["a", "b"]) == TOP


@pytest.mark.parametrize("after", [(3,), (3, 4, 5, 6, 7, 8, 9, 10)])
def test_the_likeliest_tokens_have_the_entropy_of_those_that_follow(after: tuple[int, ...]) -> None:
    told = logprobs([(), after], TOP, entropies=False).slice_request(1, 1)
    ids, values = told.logprob_token_ids[0].tolist(), told.logprobs[0].tolist()
    assert ids[0] == after[0]
    assert len(set(ids[1:])) == TOP
    assert set(after) <= set(ids[1:])
    assert entropy(values[1:]) == pytest.approx(math.log(len(after)), abs=1e-6)
    inside = logprobs([(), after], 0, entropies=True).slice_request(1, 1)
    assert inside.logprob_token_ids.tolist() == [[after[0]]]
    assert inside.logprobs.tolist() == [[pytest.approx(math.log(len(after)), abs=1e-6)]]


def test_an_iteration_takes_its_time_from_when_the_one_before_is_over() -> None:
    pace = Pace(iteration_s=0.01, token_s=0.0006, context_s=0.00001)
    assert pace.over(5.0, 10, 400, follows=False) == pytest.approx(5.02)
    assert pace.over(5.024, 10, 400, follows=True) == pytest.approx(5.04), "planned while the one before was computed"
    assert pace.over(5.08, 10, 400, follows=True) == pytest.approx(5.08), "planned too late: no more to wait for"
    assert pace.over(5.09, 10, 400, follows=True) == pytest.approx(5.1), "and nothing is made up for"
    assert pace.over(6.0, 10, 400, follows=False) == pytest.approx(6.02), "with nothing to do in between"
