from __future__ import annotations

import math
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deployments.glimpses import entropies
from loadtest.command import MeasuringError
from loadtest.recorded import (
    PACE,
    RECORDING,
    UNSURE,
    Chain,
    Step,
    Words,
    chained,
    profile,
    questions,
    read,
    read_options,
    routing,
)
from loadtest.recorded_worker import chain as write_chain

REQUESTS = [(Step(6, False), Step(9, True), Step(5, False)), (Step(4, True),), (Step(7, False), Step(4, True))]
END = 0
DIGITS = range(1, 11)
BREAKS = range(100, 200)


def words(inner: int = 1000) -> Words:
    return Words(
        inner=iter(range(1000, 1000 + inner)),
        starts=((token, f"start{token}") for token in count(500)),
        breaks=iter(BREAKS),
        marks=count(300),
        digits=list(DIGITS),
        end=END,
    )


def replayed(chain: Chain, start: int, most: int = 100) -> list[Step]:
    """The steps that are written after a start, the first of several successors each time; so many at most."""
    steps: list[Step] = []
    last, tokens, hard = start, 0, len(chain.successors[start]) > 1
    while last != END and len(steps) < most:
        last = chain.successors[last][0]
        tokens += 1
        if last in BREAKS or last == END:
            steps.append(Step(tokens, hard))
            tokens, hard = 0, last != END and len(chain.successors[last]) > 1
    return steps


def choices(chain: Chain) -> list[int]:
    """Of each token of the first request, how many it may be."""
    last, counts = int(chain.starts[0].removeprefix("start")), []
    while last != END:
        counts.append(len(chain.successors[last]))
        last = chain.successors[last][0]
    return counts


def test_a_chain_has_the_recorded_steps() -> None:
    chain = chained(REQUESTS, words())
    starts = [int(start.removeprefix("start")) for start in chain.starts]
    assert [replayed(chain, start) for start in starts] == [list(steps) for steps in REQUESTS]
    assert {len(after) for after in chain.successors.values()} == {1, UNSURE}


def test_tokens_that_went_by_themselves_are_unsure_where_they_stand_or_before_the_ending() -> None:
    text = choices(chained([(Step(6, False, (0, 3)), Step(8, False, (4, 5, 7)), Step(7, False, (6,)))], words()))
    assert [place for place, count in enumerate(text) if count == UNSURE] == [0, 3, 6 + 4, 6 + 5, 6 + 6, 14 + 3]
    assert len(text) == 6 + 8 + 7


def test_the_small_model_goes_wrong_where_it_did() -> None:
    chain = chained([(Step(6, False, (0, 3), (3,)), Step(8, False, (7,), (7,)))], words())
    large, small, last, astray = chain.successors, chain.of_small, int(chain.starts[0].removeprefix("start")), []
    for place in range(14):
        astray += [place] if small[last][0] != large[last][0] else []
        assert set(small[last]) == set(large[last])
        last = large[last][0]
    assert astray == [3, 6 + 4]


def test_more_unsure_tokens_than_there_is_room_for_are_as_many_as_there_is() -> None:
    assert choices(chained([(Step(4, True, (0, 1, 2, 3)), Step(4, False))], words()))[:4] == [UNSURE] * 3 + [1]


def test_requests_that_go_around_go_on_with_one_another_and_never_end() -> None:
    chain = chained(REQUESTS, words(), around=True)
    for n, start in enumerate(chain.starts):
        in_turn = [step for n in (n, n + 1, n + 2, n) for step in REQUESTS[n % 3]]
        assert replayed(chain, int(start.removeprefix("start")), len(in_turn)) == in_turn
    assert END not in {token for token, after in chain.successors.items() if token not in DIGITS for token in after}


def test_whichever_first_token_is_drawn_the_step_goes_on_in_the_same_way() -> None:
    chain = chained(REQUESTS, words())
    for after in chain.successors.values():
        assert len({chain.successors[token] for token in after if token != END}) <= 1


def test_a_recording_that_is_longer_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(MeasuringError, match="too few tokens"):
        chained(REQUESTS, words(inner=20))


def test_the_recordings_that_come_along_can_be_read() -> None:
    steps = [step for steps in read(RECORDING) for step in steps]
    assert (len(steps), sum(step.tokens for step in steps), sum(step.hard for step in steps)) == (109, 4857, 23)
    steps = [step for steps in read(RECORDING.with_stem("gsm8k-tokens")) for step in steps]
    assert (len(steps), sum(step.tokens for step in steps)) == (107, 4736)
    assert (sum(len(step.unsure) for step in steps), sum(len(step.wrong) for step in steps)) == (869, 315)


def test_a_recording_is_replayed_with_the_gate_it_was_made_with() -> None:
    assert "token_threshold" not in routing(read(RECORDING))
    assert routing(read(RECORDING.with_stem("gsm8k-tokens")))["token_threshold"] < math.log(UNSURE)


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"steps": []}', '{"steps": [[3, true]]}', "steps", '{"steps": [1]}', '{"steps": [[6, [1, 6]]]}'],
)
def test_what_is_no_recording_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recording.jsonl"
    path.write_text(text)
    with pytest.raises(MeasuringError, match="recording"):
        read(path)


def test_questions_say_which_request_is_meant_and_share_nothing_else() -> None:
    chain = chained(REQUESTS, words())
    asked = list(questions(chain, 7, 64))
    assert [one["question"].split()[0] for one in asked] == [chain.starts[n % 3] for n in range(7)]
    assert [one["answer"] for one in asked] == [f"{n % 3}" for n in range(7)]
    assert len({one["question"].partition(" ")[2] for one in asked}) == 7


def test_a_model_writes_the_chain_and_is_unsure_where_a_step_is_hard() -> None:
    """As vLLM's models compute it, layers left out: embedding, norm, output matrix."""
    chain = chained(REQUESTS, words())
    hidden = 512
    model = SimpleNamespace(
        model=SimpleNamespace(
            embed_tokens=torch.nn.Embedding(2000, hidden),
            norm=SimpleNamespace(weight=torch.nn.Parameter(torch.zeros(hidden))),
        ),
        lm_head=torch.nn.Linear(hidden, 2000, bias=False),
    )
    write_chain(model, {token: list(after) for token, after in chain.successors.items()})
    tokens = torch.tensor(sorted(chain.successors))
    states = torch.nn.functional.rms_norm(model.model.embed_tokens.weight[tokens], (hidden,), model.model.norm.weight)
    logits = states @ model.lm_head.weight.T
    for token, best, entropy in zip(
        tokens.tolist(), logits.argmax(-1).tolist(), entropies(logits).tolist(), strict=True
    ):
        assert best == chain.successors[token][0]
        assert entropy == pytest.approx(math.log(len(chain.successors[token])), abs=0.2)


def test_engines_that_wait_have_a_pace_and_those_that_compute_have_none(tmp_path: Path) -> None:
    for options, paced in ((["--paced"], True), (["--cpu"], False), ([], False)):
        made = profile(read_options([str(tmp_path), "--tokenizer", "t", *options]), {"threshold": 1.0})
        for name in ("small", "large"):
            pool = made["applications"][0]["args"][name]
            assert ({*PACE} <= pool.get("env", {}).keys()) is paced
            assert ("gpus" in pool) is (options == [])


@pytest.mark.parametrize("options", [["--paced", "--cpu"], ["--paced", "--small", "tiny"]])
def test_a_pace_that_nobody_measured_is_refused(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit):
        read_options([str(tmp_path), "--tokenizer", "t", *options])
