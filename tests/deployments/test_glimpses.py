from __future__ import annotations

import itertools
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from vllm.logprobs import FlatLogprobs
from vllm.v1.sample.sampler import Sampler

from deployments.glimpses import SAMPLERS, SCORES, SECOND, Glimpses, GlimpsingSampler, candidates, entropies, scores
from router.glimpse import MAX_ENTROPY, TOP, entropy

WEIGHTS = [1 / 2**rank for rank in range(1, TOP + 1)]
RANKED = [math.log(weight) for weight in WEIGHTS]


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 30.0])
@pytest.mark.parametrize("vocabulary", [5, TOP, 2368])
def test_entropies_are_those_of_the_top_logprobs(spread: float, vocabulary: int) -> None:
    logits = spread * torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    top = torch.topk(logits.log_softmax(-1), min(TOP, vocabulary), dim=-1).values
    assert entropies(logits).tolist() == pytest.approx([entropy(row) for row in top.tolist()], abs=1e-5)


def test_impossible_tokens_add_nothing() -> None:
    logits = torch.full((1, 100), -math.inf)
    logits[0, :2] = 7.0
    assert entropies(logits).tolist() == pytest.approx([math.log(2)])


def test_no_entropy_is_above_the_highest_threshold() -> None:
    assert entropies(torch.zeros(1, 1000)).item() <= MAX_ENTROPY + 1e-6


def test_each_token_gets_one_number() -> None:
    logits = torch.randn(3, 50)
    told = GlimpsingSampler.gather_logprobs(GlimpsingSampler.compute_logprobs(logits), 0, torch.tensor([4, 5, 6]))
    ids, values, ranks, _ = told.tolists()
    assert ids.tolist() == [[4], [5], [6]]
    assert values[:, 0].tolist() == entropies(logits).tolist()
    assert ranks.shape == (3,)


def test_the_second_model_runner_hands_out_entropies_whatever_lies_beside_them() -> None:
    logits, sampled = torch.randn(3, 50), torch.tensor([4, 5, 6])
    told = scores(logits, 0, sampled, [0, 1, 3], logits_mode=False)
    assert told.logprob_token_ids.tolist() == [[4], [5], [6]]
    assert told.logprobs[:, 0].tolist() == entropies(logits).tolist()
    assert told.cu_num_generated_tokens == [0, 1, 3]
    on_device = scores(logits, 0, sampled, torch.tensor([0, 1, 3]))
    assert on_device.cu_num_generated_tokens is None
    assert on_device.cu_num_generated_tokens_tensor.tolist() == [0, 1, 3]


def second(monkeypatch: pytest.MonkeyPatch, *, known: bool) -> tuple[Glimpses, list[ModuleType]]:
    """A worker whose sampler is the second model runner's, and the modules of its samplers."""
    modules = [ModuleType(SECOND + name) for name in SAMPLERS]
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
        if known:
            setattr(module, SCORES, None)
    worker = Glimpses()
    worker.model_runner = SimpleNamespace(sampler=type("Sampler", (), {"__module__": modules[0].__name__})())
    return worker, modules


def test_the_second_model_runners_samplers_are_both_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, modules = second(monkeypatch, known=True)
    assert worker.glimpse_in_engine()
    assert all(getattr(module, SCORES) is scores for module in modules)


def test_a_second_model_runner_that_scores_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, modules = second(monkeypatch, known=False)
    assert not worker.glimpse_in_engine()
    assert not any(hasattr(module, SCORES) for module in modules)


def test_a_worker_that_samples_in_its_own_way_is_left_alone() -> None:
    worker = Glimpses()
    worker.model_runner = SimpleNamespace(sampler=object())
    assert not worker.glimpse_in_engine()
    worker.model_runner = SimpleNamespace()
    assert not worker.glimpse_in_engine()
    worker.model_runner = SimpleNamespace(sampler=Sampler())
    assert worker.glimpse_in_engine()
    assert isinstance(worker.model_runner.sampler, GlimpsingSampler)


def told_of(sampled_rank: int) -> FlatLogprobs:
    """What vLLM tells of one position: the sampled token, then those of rank 1 to 20. A token's ID is its rank."""
    sampled = RANKED[sampled_rank - 1] if sampled_rank <= TOP else -40.0
    one = FlatLogprobs()
    ranks = [sampled_rank, *range(1, TOP + 1)]
    one.append_fast(ranks, [sampled, *RANKED], itertools.chain(ranks), [None] * len(ranks))
    return one


@pytest.mark.parametrize("sampled_rank", [1, 2, TOP, TOP + 1, 500])
def test_the_entropy_is_the_same_however_many_outputs_were_merged(sampled_rank: int) -> None:
    merged = told_of(3)
    for _ in range(2):
        merged.extend(told_of(sampled_rank))
    alone = candidates(told_of(sampled_rank), 0)
    assert sorted(alone) == sorted(RANKED)
    for position in (1, 2):
        assert sorted(candidates(merged, position)) == sorted(alone)
        assert entropy(candidates(merged, position)) == pytest.approx(entropy(RANKED))
