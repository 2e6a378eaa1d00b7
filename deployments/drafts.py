"""What drafting needs on a CPU that vLLM does not do there.

Its CPU build spreads the requests' temperatures, top_p and top_k over the drafted tokens into a copy, and goes on with
memory that nobody wrote to (`_expand_kernel_impl` in vllm/utils/cpu_triton_utils.py): whoever samples gets noise, or
ends the engine. And its top_k for CPUs ends the engine where no token was drafted. Greedy requests never come there.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample import rejection_sampler

constrained = rejection_sampler.apply_sampling_constraints


def expanded(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: float = 0, replace_to: float = 0
) -> torch.Tensor:
    """x: shape (requests,). cu_num_tokens: their drafted tokens, cumulated, of the same shape. Returns shape
    (num_tokens,): each value as often as its request has tokens, `replace_to` in the place of `replace_from`."""
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return values.repeat_interleave(counts, output_size=num_tokens)


def constrained_if_any(logits: torch.Tensor, cu_num_draft_tokens: torch.Tensor, sampling_metadata: Any) -> torch.Tensor:
    """logits: of the drafted tokens, shape (tokens, vocabulary), of which there may be none."""
    return constrained(logits, cu_num_draft_tokens, sampling_metadata) if len(logits) else logits


class Drafts:
    """Part of what is added to each of vLLM's workers."""

    def mend_drafting(self) -> None:
        """Before anything is sampled."""
        rejection_sampler.expand_batch_to_tokens = expanded
        rejection_sampler.apply_sampling_constraints = constrained_if_any
