"""What an engine says of itself, beside what is asked of it."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class TokenCount(StatLoggerBase):
    """The engine's own count of the tokens it generated and of those it prefilled, as vLLM's metrics have it;
    kv_use: of its KV cache, 0..1, and queued: requests that found no place, when it last told."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.generated = self.prefilled = 0
        self.kv_use = 0.0
        self.queued = 0

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        if iteration_stats is not None:
            self.generated += iteration_stats.num_generation_tokens
            self.prefilled += iteration_stats.prompt_token_stats.computed
        if scheduler_stats is not None:
            self.kv_use = scheduler_stats.kv_cache_usage
            self.queued = scheduler_stats.num_waiting_reqs

    def log_engine_initialized(self) -> None:
        pass
