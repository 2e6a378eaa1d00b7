"""A vLLM worker that can load models which write a chain of tokens (loadtest/recorded.py). As an engine's `worker_cls`:
`loadtest.recorded_worker.Worker`, with the `load_format` `recorded`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
from vllm.platforms import current_platform

from loadtest.recorded import CHAIN, FORMAT

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Base
else:
    from vllm.v1.worker.gpu_worker import Worker as Base  # type: ignore[assignment]

SURE = 40.0
"""The logit of a token that follows; that of all others is about 0."""
LIKELIER = 0.01
"""Of it, what the first of several that may follow has more, so that it is the one that is drawn."""


class Worker(Base):  # type: ignore[misc, valid-type]
    """vLLM's own; the loader below is known wherever this is imported."""


@register_model_loader(FORMAT)
class Loader(DummyModelLoader):
    """Random weights for the layers, so small that they change nothing of what passes through, and the chain around."""

    def load_weights(self, model: Any, model_config: Any) -> None:
        super().load_weights(model, model_config)
        told = json.loads(Path(model_config.model, CHAIN).read_text())
        chain(model, {int(token): after for token, after in told.items()})


def chain(model: Any, successors: dict[int, list[int]]) -> None:
    """Embeddings in random directions, each of which the output matrix reads as the tokens that follow."""
    embeddings, head = model.model.embed_tokens.weight.data, model.lm_head.weight.data
    hidden = embeddings.shape[1]
    tokens = torch.tensor(sorted(successors), device=head.device)
    directions = torch.randn(len(tokens), hidden, generator=torch.Generator().manual_seed(1)).to(head)
    embeddings[tokens] = directions
    model.model.norm.weight.data.fill_(1.0)
    # After the last norm every state has a length of sqrt(hidden).
    read = SURE * torch.nn.functional.normalize(directions, dim=1) / hidden**0.5
    head.zero_()
    for state, token in zip(read, tokens.tolist(), strict=True):
        head[successors[token]] += state
        head[successors[token][0]] += LIKELIER * state
