"""A vLLM worker that computes nothing: it waits as long as a GPU would take and writes a chain of tokens
(loadtest/recorded.py). As an engine's `worker_cls`: `loadtest.paced_worker.Worker`.

All around the forward pass stays vLLM's own: its server, its tokenizer, its scheduler, its KV cache's bookkeeping. The
pool's `env` says what an iteration takes: ITERATION_MS, and more for each token read or written (ITERATION_TOKEN_MS)
and for each that these look back on (ITERATION_CONTEXT_MS).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, LogprobsLists, ModelRunnerOutput
from vllm.v1.worker.cpu_worker import CPUWorker

from deployments.glimpses import GlimpsingSampler
from loadtest.recorded import CHAIN, PACE

IMPOSSIBLE = -40.0
"""The logprob of a token that does not follow."""
NOTHING = (0,)


@dataclass(slots=True)
class Text:
    """A request's: how many tokens it has, the last of them, and how many logprobs a token were asked for."""

    tokens: int
    last: int
    logprobs: int | None


class Script:
    """What follows a token: the first of its successors, which are equally likely."""

    def __init__(self, successors: Mapping[int, Sequence[int]], unknown: int) -> None:
        """unknown: what follows a token without a successor."""
        self._successors, self._unknown = successors, (unknown,)
        self._texts: dict[str, Text] = {}

    def context(self, requests: Sequence[str]) -> int:
        """How many tokens they have."""
        return sum(self._texts[request].tokens for request in requests)

    def written(self, asked: SchedulerOutput) -> tuple[list[str], list[tuple[int, ...]]]:
        """Requests of an iteration, and what may follow in each; nothing where a prompt is not read to its end."""
        for request in asked.finished_req_ids:
            self._texts.pop(request, None)
        requests, following = [], []
        for request, computed in self._begun(asked):
            text = self._texts[request]
            whole = computed + asked.num_scheduled_tokens[request] >= text.tokens
            after = tuple(self._successors.get(text.last, self._unknown)) if whole else ()
            if whole:
                text.tokens, text.last = text.tokens + 1, after[0]
            requests.append(request)
            following.append(after)
        return requests, following

    def logprobs(self, requests: Sequence[str]) -> int | None:
        """The most that any of them asked for."""
        return max((n for n in (self._texts[request].logprobs for request in requests) if n is not None), default=None)

    def _begun(self, asked: SchedulerOutput) -> Iterator[tuple[str, int]]:
        """Each request of the iteration, and how many of its tokens are computed."""
        for new in asked.scheduled_new_reqs:
            prompt, params = new.prompt_token_ids, new.sampling_params
            assert prompt is not None
            assert params is not None
            self._texts[new.req_id] = Text(len(prompt), prompt[-1], params.logprobs)
            yield new.req_id, new.num_computed_tokens
        known = asked.scheduled_cached_reqs
        yield from zip(known.req_ids, known.num_computed_tokens, strict=True)


@cache
def likeliest(after: tuple[int, ...], count: int) -> tuple[list[int], list[float]]:
    """The drawn token and the `count` likeliest ones, and their logprobs; shapes (count + 1,)."""
    others = [token for token in range(count + len(after)) if token not in after]
    ids = [*after, *others][:count]
    chance = -math.log(len(after))
    return [after[0], *ids], [chance, *(chance if token in after else IMPOSSIBLE for token in ids)]


def logprobs(following: Sequence[tuple[int, ...]], count: int, *, entropies: bool) -> LogprobsLists:
    """A row for each request: the likeliest tokens, or the entropy where the drawn token's logprob would stand
    (deployments/glimpses.py). The rows of those that write nothing yet are not looked at."""
    rows = [likeliest(after or NOTHING, count) for after in following]
    ids = np.array([row[0] for row in rows], dtype=np.int32)
    values = np.array([row[1] for row in rows], dtype=np.float32)
    if entropies:
        ids, values = ids[:, :1], -values[:, :1]
    return LogprobsLists(ids, values, np.ones(len(rows), dtype=np.int32))


class Pace:
    """When iterations are over, in seconds of one clock."""

    def __init__(self, iteration_s: float, token_s: float, context_s: float) -> None:
        self._iteration_s, self._token_s, self._context_s = iteration_s, token_s, context_s
        self._over = 0.0

    def over(self, now: float, tokens: int, context: int, *, follows: bool) -> float:
        """The end of an iteration of so many tokens, which look back on `context` ones, that is asked for now. One that
        follows another begins when that is over, which may be a while ago: on a GPU it is planned by then (vLLM's async
        scheduling, which is for GPUs)."""
        took = self._iteration_s + self._token_s * tokens + self._context_s * context
        self._over = max(now, self._over + took) if follows else now + took
        return self._over


class Worker(CPUWorker):
    """Waits where vLLM's own computes."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        told = json.loads(Path(self.model_config.model, CHAIN).read_text())
        ends = self.model_config.hf_config.eos_token_id
        self._script = Script({int(token): after for token, after in told.items()}, ends)
        self._pace = Pace(*(float(os.environ[name]) / 1000.0 for name in PACE))

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        requests, following = self._script.written(scheduler_output)
        if not requests:
            return EMPTY_MODEL_RUNNER_OUTPUT
        count = self._script.logprobs(requests)
        glimpsing = isinstance(self.model_runner.sampler, GlimpsingSampler)
        written = ModelRunnerOutput(
            req_ids=requests,
            req_id_to_index={request: n for n, request in enumerate(requests)},
            sampled_token_ids=[list(after[:1]) for after in following],
            logprobs=None if count is None else logprobs(following, count, entropies=glimpsing),
        )
        tokens, context = scheduler_output.total_num_scheduled_tokens, self._script.context(requests)
        now, follows = time.monotonic(), bool(scheduler_output.scheduled_cached_reqs.req_ids)
        time.sleep(self._pace.over(now, tokens, context, follows=follows) - now)
        return written
