"""What a pool's engines are started with."""

from __future__ import annotations

import os
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs

from deployments.config import PoolConfig, is_cpu_build
from deployments.scheduler import THINK_TAGS
from router import tracing
from router.glimpse import TOP
from router.request import Model

WORKER, SCHEDULER = "deployments.worker.Worker", "deployments.scheduler.scheduler"
"""As names, because vLLM imports them in processes of its own."""


def engine_args(pool: PoolConfig, role: Model, think_tags: tuple[str, str] | None = None) -> AsyncEngineArgs:
    """What the engine of a pool's replica is started with."""
    options: dict[str, Any] = {
        "enable_prefix_caching": True,
        "max_logprobs": TOP,
        "logprobs_mode": "raw_logprobs",
        "scheduling_policy": "priority",
        "worker_extension_cls": WORKER,
    }
    if is_cpu_build():
        # vLLM draws a token after every chunk of a prompt and then winds the request's generator back, which PyTorch's
        # CPU generator cannot: a seeded request whose prompt comes in chunks would end the engine, and the next one.
        options["enable_chunked_prefill"] = False
    if pool.draft is not None:
        options["speculative_config"] = pool.draft.speculative_config
    if tracing.active():
        # vLLM sends its spans through the process's own provider, Serve's, and reads the protocol under this name only.
        os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = tracing.protocol()
        options["otlp_traces_endpoint"] = tracing.endpoint()
    options |= pool.engine
    if pool.sessions:
        options["scheduler_cls"] = SCHEDULER
        options["additional_config"] = options.get("additional_config", {}) | {THINK_TAGS: think_tags}
        for places in {"max_num_seqs", "max_num_queued_reqs"} & options.keys():
            options[places] += pool.sessions
    return AsyncEngineArgs(
        model=pool.path,
        revision=pool.revision,
        dtype=pool.dtype,  # type: ignore[arg-type]
        max_model_len=pool.max_model_len,  # type: ignore[arg-type]
        tensor_parallel_size=pool.tensor_parallel,
        served_model_name=role,  # what its metrics are labelled with
        **options,
    )
