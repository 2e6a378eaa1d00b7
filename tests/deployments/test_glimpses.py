from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from vllm.v1.sample.sampler import Sampler

from deployments.glimpses import Glimpses, GlimpsingSampler, entropies, ranking
from router.glimpse import MAX_ENTROPY, TOP, entropy


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


def test_the_second_model_runner_tells_entropies_to_who_asks_for_no_likeliest_tokens() -> None:
    ranked = ranking(lambda *args, **kwargs: "ranked")  # type: ignore[arg-type, return-value]
    logits, sampled = torch.randn(3, 50), torch.tensor([4, 5, 6])
    assert ranked(logits, 20, sampled, None) == "ranked"
    assert ranked(logits, 0, sampled, None, max_per_req_token_ids=2) == "ranked"
    told = ranked(logits, 0, sampled, [0, 1, 3], logits_mode=False)
    assert told.logprob_token_ids.tolist() == [[4], [5], [6]]
    assert told.logprobs[:, 0].tolist() == entropies(logits).tolist()
    assert told.cu_num_generated_tokens == [0, 1, 3]
    on_device = ranked(logits, 0, sampled, torch.tensor([0, 1, 3]))
    assert on_device.cu_num_generated_tokens is None
    assert on_device.cu_num_generated_tokens_tensor.tolist() == [0, 1, 3]


def test_a_worker_that_samples_in_its_own_way_is_left_alone() -> None:
    worker = Glimpses()
    worker.model_runner = SimpleNamespace(sampler=object())
    assert not worker.glimpse_in_engine()
    worker.model_runner = SimpleNamespace()
    assert not worker.glimpse_in_engine()
    worker.model_runner = SimpleNamespace(sampler=Sampler())
    assert worker.glimpse_in_engine()
    assert isinstance(worker.model_runner.sampler, GlimpsingSampler)
