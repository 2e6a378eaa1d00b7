"""vLLM's scheduler, which ends a hop with the very token with which its run is over.

A replica that sees it in its own process can only abort the hop: by then the engine is a token or two further, and what
is aborted is no session's any more. Here, where tokens and entropies come back from the workers, the same `Run` is
asked before more is planned.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from router.hop import Hop
from router.run import Run
from router.vocabulary import Vocabulary

HOP, THINK_TAGS = "hop", "think_tags"


def carried(hop: Hop) -> dict[str, Any]:
    """A hop as its request's `extra_args`; of its prefix only the steps that a run looks back on."""
    back = 4 * (hop.open_tokens + hop.last_step_tokens)
    tail = hop.prefix[-back:] if back else b""
    return {HOP: pickle.dumps(replace(hop, prefix=tail, trace={}))}


class RunScheduler(Scheduler):
    """Ends requests that carry a hop. They get a token at a time, as nothing drafts where there are sessions, and its
    entropy as `deployments.glimpses` has the workers tell it."""

    def __init__(self, vllm_config: VllmConfig, **parts: Any) -> None:
        super().__init__(vllm_config, **parts)
        model, told = vllm_config.model_config, vllm_config.additional_config
        assert isinstance(told, dict)
        self._marks = Vocabulary.load(model.model, revision=model.revision, think_tags=told[THINK_TAGS]).marks
        self._runs: WeakKeyDictionary[Request, tuple[SamplingParams, Run | None]] = WeakKeyDictionary()

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        self._output = model_runner_output
        return super().update_from_output(scheduler_output, model_runner_output)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        before = request.status
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, is_stale)
        run = None if stopped else self._run(request)
        if run is not None:
            [token] = new_token_ids
            if run.take(token, self._entropy(request) if run.wants_entropy else None, 0.0) is not None:
                request.status, stopped = RequestStatus.FINISHED_STOPPED, True
        if stopped and is_stale and request.resumable:
            # It was preempted since this token was planned, and stands in a queue, where a session can't wait for its
            # next turn. It writes on until the replica aborts it.
            request.status, stopped = before, False
            request.max_tokens += 1
            if request.sampling_params is not None:
                self._runs[request] = request.sampling_params, None
        return new_token_ids, stopped

    def _run(self, request: Request) -> Run | None:
        """That of the request's turn; a session has another in each."""
        params = request.sampling_params
        if params is None or not params.extra_args or HOP not in params.extra_args:
            return None
        begun = self._runs.get(request)
        if begun is None or begun[0] is not params:
            begun = self._runs[request] = params, Run(pickle.loads(params.extra_args[HOP]), self._marks, 0.0)
        return begun[1]

    def _entropy(self, request: Request) -> float | None:
        """Of the request's newest token, where it asked for it."""
        told = self._output.logprobs
        if told is None or request.sampling_params is None or request.sampling_params.num_logprobs is None:
            return None
        place = self._output.req_id_to_index[request.request_id]
        return float(told.slice_request(place, 1).logprobs[0, 0])


class AsyncRunScheduler(RunScheduler, AsyncScheduler):
    """The same where the next iteration is planned before this one's tokens are known."""


def scheduler(vllm_config: VllmConfig, **parts: Any) -> RunScheduler:
    """For `scheduler_cls`, which may be anything that makes one; `additional_config` has the pair's think tags."""
    kind = AsyncRunScheduler if vllm_config.scheduler_config.async_scheduling else RunScheduler
    return kind(vllm_config, **parts)
