"""Glimpses taken where the logits are: one number a token, the entropy, in the place of twenty logprobs.

An engine that is asked for logprobs normalises over the whole vocabulary, ranks the drawn token in it, and sends 21
pairs for each token through two processes. Of all that the gate needs the entropy over the 20 likeliest tokens, and
only their logits go into it: a constant that is added to all of them makes no difference.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from vllm.logprobs import FlatLogprobs
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.sampler import Sampler

from router.glimpse import TOP


def entropies(logits: torch.Tensor) -> torch.Tensor:
    """logits: shape (n, vocabulary). Shape (n,), in nats: what `router.glimpse.entropy` makes of each row's top."""
    top = torch.topk(logits, min(TOP, logits.shape[-1]), dim=-1).values
    return torch.special.entr(top.softmax(dim=-1, dtype=torch.float32)).sum(dim=-1)


class GlimpsingSampler(Sampler):
    """Hands out entropies for logprobs: of each token one, where the drawn token's logprob would stand."""

    @staticmethod
    def compute_logprobs(logits: torch.Tensor) -> torch.Tensor:
        return entropies(logits)

    @staticmethod
    def gather_logprobs(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
        ids = token_ids.unsqueeze(-1).to(torch.int32)
        return LogprobsTensors(ids, logprobs.unsqueeze(-1), torch.zeros_like(ids).squeeze(-1))


SECOND = "vllm.v1.worker.gpu."
"""Where vLLM's second model runner is, the one for GPUs; its samplers score tokens by a function."""
SAMPLERS = ("sample.sampler", "spec_decode.rejection_sampler")
SCORES = "compute_topk_scores"


def scores(
    logits: torch.Tensor,
    num_logprobs: int,
    sampled_token_ids: torch.Tensor,
    cu_num_logits: list[int] | torch.Tensor | None = None,
    **_: Any,
) -> LogprobsTensors:
    """In that function's place: entropies for logprobs, as from `GlimpsingSampler`."""
    told = (sampled_token_ids.unsqueeze(-1), entropies(logits).unsqueeze(-1), torch.zeros_like(sampled_token_ids))
    if isinstance(cu_num_logits, torch.Tensor):
        return LogprobsTensors(*told, cu_num_generated_tokens_tensor=cu_num_logits)
    return LogprobsTensors(*told, cu_num_generated_tokens=cu_num_logits)


class Glimpses:
    """Part of what is added to each of vLLM's workers."""

    model_runner: Any

    def glimpse_in_engine(self) -> bool:
        """From now on requests with `logprobs=0` get entropies. False where the worker samples in a way that is not
        known here, and nothing has changed."""
        sampler = getattr(self.model_runner, "sampler", None)
        if type(sampler) is Sampler:
            sampler.__class__ = GlimpsingSampler
            return True
        modules = [sys.modules.get(SECOND + name) for name in SAMPLERS]
        if type(sampler).__module__ != SECOND + SAMPLERS[0] or not all(hasattr(module, SCORES) for module in modules):
            return False
        for module in modules:
            setattr(module, SCORES, scores)
        return True


def entropy_at(logprobs: FlatLogprobs, position: int) -> float:
    """The entropy in the place of a position's logprob."""
    return logprobs.logprobs[logprobs.start_indices[position]]


def candidates(logprobs: FlatLogprobs, position: int) -> list[float]:
    """Logprobs of the most likely tokens at a position, `TOP` at most, best first or not.

    The sampled token comes first, and again at its rank if that is among them. vLLM merges the outputs that pile up
    while nobody reads them, and from a merged one the repetition is gone.
    """
    first, end = logprobs.start_indices[position], logprobs.end_indices[position]
    sampled, rank = logprobs.token_ids[first], logprobs.ranks[first]
    extra = sampled in logprobs.token_ids[first + 1 : end] or (rank is not None and rank > TOP)
    return logprobs.logprobs[first + extra : end]
