"""One vLLM engine in a Serve replica; both pools are made of these.

A hop comes in as token IDs and goes out as token IDs, whole or in chunks coalesced over time.
Which steps to write is decided here, token by token, by `router.run.Run`; this file drives the engine for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
import uuid
from array import array
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from ray import serve
from vllm import SamplingParams
from vllm.exceptions import GracefulHTTPError
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

from deployments.config import PoolConfig, is_cpu_build
from deployments.engine_args import WORKER, engine_args
from deployments.glimpses import candidates, entropy_at
from deployments.logs import sheltered
from deployments.scheduler import carried
from deployments.sessions import Sessions, comes_back, may_wait
from deployments.token_count import TokenCount
from router.glimpse import TOP, entropy
from router.hop import Chunk, End, Ending, Hop, HopLost, QueueFull, ReadAhead, StrangePair, unpack
from router.pulse import beating
from router.request import Model, Sampling
from router.run import Run
from router.steps import Mark
from router.vocabulary import Vocabulary

logger = logging.getLogger("ray.serve")

COALESCE_S = 0.05
"""Tokens of a streamed hop are sent together over this many seconds, for a reader twenty times a second: one message
a token costs most of the rate."""

MESSAGES_PER_S = 200
"""Of all streams of a replica together: with many, each waits longer between its messages, and the cores that they
would cost go to the tokens."""

HEARTBEAT_S = 0.1
"""How often the engine core is checked on; a dead one takes its replica with it."""

COUNTED = 4096
"""Requests whose tokens are remembered, for whoever checks the accounts."""

OVER = (Ending.THOUGHT, Ending.REPEAT, Ending.BUDGET, Ending.TEXT, Ending.LIMIT, Ending.STOP)
"""How a hop ends after whose request has no more thinking to do."""

SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p")


class Engine:
    """A replica of one pool.

    role: which pool. pair: fingerprint that every hop must carry.
    """

    async def __init__(  # type: ignore[misc]
        self, role: Model, pool: PoolConfig, pair: str, think_tags: tuple[str, str] | None
    ) -> None:
        self._role, self._pair = role, pair
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._marks = Vocabulary.load(pool.path, revision=pool.revision, think_tags=think_tags).marks
        self._counts: list[TokenCount] = []
        with sheltered():
            self._engine = AsyncLLM.from_engine_args(
                engine_args(pool, role, think_tags), stat_loggers=[self._count, RayPrometheusStatLogger]
            )
        if pool.drafts and is_cpu_build():
            await self._engine.collective_rpc("mend_drafting")
        self._glimpse_logprobs = await glimpse_logprobs(self._engine)
        self._context_tokens = self._engine.model_config.max_model_len
        # A glimpse may name an ID that the output matrix has and the tokenizer has not, never the other way round.
        known = self._engine.model_config.get_vocab_size()
        self._breaks = [i for i in self._marks.breaks if i < known]
        own = self._engine.model_config.get_diff_sampling_param()
        self._defaults = {name: own[name] for name in SAMPLING_FIELDS if name in own}
        self._defaults |= pool.sampling.model_dump(exclude_none=True)
        # Reading ahead must never make a live hop wait for its place in the batch.
        self._room = (self._engine.vllm_config.scheduler_config.max_num_seqs - pool.sessions) // 2
        self._places = pool.max_ongoing_requests
        self._sessions = Sessions(self._engine, pool.sessions) if pool.sessions else None
        self._hops = self._streams = 0
        self._generated: OrderedDict[str, int] = OrderedDict()
        self._guessing: WeakValueDictionary[str, Run] = WeakValueDictionary()
        await self._warm_up()
        self._heartbeat = asyncio.create_task(self._exit_with_engine_core())

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        """A hop in one piece, or, if it streams, in chunks, one every 50 ms or more; the reply's first token at once.
        Between them, signs of life."""
        self._streams += hop.streaming
        try:
            async with aclosing(beating(self._drive(hop))) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._streams -= hop.streaming

    async def prefill(self, hop: Hop) -> ReadAhead | None:
        """Read the prefix into the KV cache ahead of the hop that will need it, if there is room for such work."""
        if hop.pair != self._pair or self._running > self._room:
            return None
        run = Run(replace(hop, thinking=False, tokens=1, answers=False), self._marks, 0.0)
        generated = cached = 0
        async with aclosing(self._generate(hop, run, unpack(hop.prefix).tolist())) as outputs:
            async for output in outputs:
                generated += len(output.outputs[0].token_ids)
                cached = output.num_cached_tokens or 0
        return ReadAhead(generated, cached)

    async def describe(self) -> dict[str, Any]:
        """What the router asks before it is ready: role, pair, context in tokens."""
        return {"role": self._role, "pair": self._pair, "context_tokens": self._context_tokens}

    async def account(self) -> dict[str, Any]:
        """The engine's own counts since start, warm-up left out: tokens generated, tokens prefilled (those found cached
        are not), hops written; and requests that are still running."""
        return {
            "replica": self._replica,
            "generated_tokens": sum(count.generated for count in self._counts) - self._warm_up_generated,
            "prefilled_tokens": sum(count.prefilled for count in self._counts) - self._warm_up_prefilled,
            "hops": self._hops,
            "running_requests": self._running,
            "pid": os.getpid(),
            "engine_pids": [core.pid for core in self._engine.engine_core.resources.engine_manager.processes],
        }

    async def generated(self, requests: Sequence[str]) -> dict[str, int]:
        """Tokens that this engine generated for each of these requests, kept or not; of the latest few thousand."""
        return {request: self._generated[request] for request in requests if request in self._generated}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve passes on to `deployments.autoscaling`."""
        requests = self._running
        # An idle engine says nothing more: what it said before an abort would keep its pool from ever going to zero.
        kv_use = self._kv_use if requests else 0.0
        return {
            "requests": float(requests),
            "kv_use": kv_use,
            "queued_tokens": float(self._engine.get_num_queued_tokens()),
        }

    async def check_health(self) -> None:
        await self._engine.check_health()

    @property
    def _running(self) -> int:
        """Requests that the engine is at work on, or has in its queue."""
        waiting = 0 if self._sessions is None else len(self._sessions)
        return self._engine.get_num_unfinished_requests() - waiting

    @property
    def _kv_use(self) -> float:
        """Of the KV cache, 0..1, when the engine last told."""
        return max((count.kv_use for count in self._counts), default=0.0)

    async def _drive(self, hop: Hop) -> AsyncGenerator[Chunk]:
        if hop.pair != self._pair:
            raise StrangePair(f"this {self._role} replica serves pair {self._pair}, the hop began on {hop.pair}")
        began = time.perf_counter()
        run = Run(hop, self._marks, began)
        self._hops += 1
        # A request's next hop comes before the last one's end where that one guessed wrong.
        if (left := self._guessing.pop(hop.request, None)) is not None:
            left.ending = Ending.LEFT
        if hop.guesses:
            self._guessing[hop.request] = run
        cached: int | None = None
        generated, flushed = 0, -math.inf if hop.opening else began
        prefix = unpack(hop.prefix)
        if len(prefix) >= self._context_tokens:
            # A body that was handed over as text may be longer here than where it was written.
            run.cut(Ending.LIMIT, began)
        # A second turn is needed only where the engine stopped by itself at a delimiter that ends no step.
        while run.ending is None:
            over = False
            async with aclosing(self._generate(hop, run, prefix.tolist() + run.written.tolist())) as outputs:
                async for output in outputs:
                    piece = output.outputs[0]
                    generated += len(piece.token_ids)
                    # A second turn would find what the first one read.
                    cached = output.num_cached_tokens or 0 if cached is None else cached
                    if run.ending is None:
                        for chunk in self._taken(run, piece, cached):
                            flushed = time.perf_counter()
                            yield chunk
                        if run.ending is None and piece.finish_reason is not None:
                            self._stopped_early(hop, run, piece)
                    if run.ending is not None and piece.finish_reason is None and not over:
                        # The last output then tells how much was generated past the end.
                        over = True
                        await self._engine.abort(output.request_id)
                    now = time.perf_counter()
                    if hop.streaming and run.ending is None and now - flushed >= coalesced_s(self._streams):
                        flushed = now
                        yield run.drain(cached_tokens=cached)
        end = End(
            ending=run.ending,
            glimpse=run.glimpse,
            open_ms=run.open_ms,
            discarded_tokens=generated - run.kept,
            engine_ms=(time.perf_counter() - began) * 1000.0,
            replica=self._replica,
            load=self._running / self._places,
            watched=tuple(run.watched),
        )
        if self._sessions is not None and run.ending in OVER:
            await self._sessions.forget(hop.request)
        yield run.drain(cached_tokens=cached or 0, end=end)

    async def _generate(self, hop: Hop, run: Run, prompt: list[int]) -> AsyncGenerator[RequestOutput]:
        if len(self._generated) > COUNTED:
            self._generated.popitem(last=False)
        try:
            async with aclosing(self._outputs(hop, self._params(hop, run, prompt), prompt)) as outputs:
                async for output in outputs:
                    tokens = len(output.outputs[0].token_ids)
                    self._generated[hop.request] = self._generated.get(hop.request, 0) + tokens
                    yield output
        except (EngineDeadError, EngineGenerateError) as error:
            raise HopLost(f"the {self._role} engine of replica {self._replica} died") from error
        except GracefulHTTPError as error:  # vLLM's `max_num_queued_reqs` and `max_num_queued_tokens`
            raise QueueFull(str(error)) from error

    def _outputs(self, hop: Hop, params: SamplingParams, prompt: list[int]) -> AsyncGenerator[RequestOutput]:
        id, salt = f"{hop.request or 'hop'}-{uuid.uuid4().hex[:12]}", hop.tenant or None
        if self._sessions is not None and params.extra_args is not None and may_wait(hop, params):
            return self._sessions.write(hop.request, id, prompt, params, salt=salt, priority=hop.priority)
        inputs, trace = tokens_input(prompt, cache_salt=salt), hop.trace or None
        return self._engine.generate(inputs, params, id, trace_headers=trace, priority=hop.priority)

    def _params(self, hop: Hop, run: Run, prompt: Sequence[int]) -> SamplingParams:
        asked = {name: getattr(hop.sampling, name) for name in SAMPLING_FIELDS}
        drawn = {"temperature": 1.0} | self._defaults | {k: v for k, v in asked.items() if v is not None}
        gated = hop.gate is not None or hop.token_gate is not None
        glimpses = not run.answering and (gated or hop.glimpses)
        ends = self._ends_by_itself(hop, run, glimpses=glimpses)
        return SamplingParams(
            **drawn,
            # Drawn on with the same, a second turn or a hop that was lost would draw the same noise again.
            seed=None if hop.sampling.seed is None else (hop.sampling.seed + len(prompt)) % 2**63,
            max_tokens=run.tokens_left,
            logprobs=self._glimpse_logprobs if glimpses else None,
            flat_logprobs=glimpses,
            stop=list(hop.sampling.stop) or None,
            stop_token_ids=self._breaks if run.one_step and not ends else None,
            extra_args=carried(hop) if ends else None,
            detokenize=bool(hop.sampling.stop),
            output_kind=RequestOutputKind.DELTA,
            # Made for this one call: vLLM need not copy it to the bottom.
            skip_clone=True,
        )

    def _ends_by_itself(self, hop: Hop, run: Run, *, glimpses: bool) -> bool:
        """Whether the engine ends the hop where its run is over (deployments/scheduler.py)."""
        seen = not (glimpses and self._glimpse_logprobs)
        return self._sessions is not None and comes_back(hop) and seen and not (run.written or hop.sampling.stop)

    def _taken(self, run: Run, piece: CompletionOutput, cached: int) -> Iterator[Chunk]:
        """Has the run take the tokens; a chunk for each that it guesses."""
        now = time.perf_counter()
        logprobs: Any = piece.logprobs
        for i, token in enumerate(piece.token_ids):
            glimpse = None
            if run.wants_entropy and logprobs:
                glimpse = entropy(candidates(logprobs, i)) if self._glimpse_logprobs else entropy_at(logprobs, i)
            if run.take(token, glimpse, now) is not None:
                return
            if run.guess is not None:
                yield run.drain(cached_tokens=cached)

    def _stopped_early(self, hop: Hop, run: Run, piece: CompletionOutput) -> None:
        if isinstance(piece.stop_reason, str):
            # White space before the answer's first word is not shown, so it can't be what the client meant either.
            blank = run.answering and not hop.plain and all(self._marks[t] & Mark.BLANK for t in run.written)
            if not blank:
                run.cut(Ending.STOP, time.perf_counter())
        elif piece.finish_reason == "length":
            run.cut(Ending.LIMIT, time.perf_counter())
        elif piece.stop_reason is None and piece.finish_reason == "stop":
            run.cut(Ending.TEXT, time.perf_counter())
        elif piece.finish_reason not in ("stop", None):
            raise HopLost(f"the {self._role} engine of replica {self._replica} gave up ({piece.finish_reason})")

    async def _warm_up(self) -> None:
        """The first calls compile for seconds; no client should pay for that."""
        began = time.perf_counter()
        for gate in (3.0, None):
            prompt = [i % 97 + 1 for i in range(64)]
            hop = Hop(
                pair=self._pair,
                prefix=array("i", prompt).tobytes(),
                sampling=Sampling(temperature=0.0),
                gate=gate,
                thinking_tokens=8,
                tokens=8,
                request="warm-up",
            )
            async with aclosing(self._drive(hop)) as chunks:
                async for _ in chunks:
                    pass
        await self._engine.reset_prefix_cache()
        self._warm_up_generated = sum(count.generated for count in self._counts)
        self._warm_up_prefilled = sum(count.prefilled for count in self._counts)
        self._hops = 0
        logger.info(
            "%s engine warm after %.1f s; entropies %s",
            self._role,
            time.perf_counter() - began,
            f"from its {TOP} highest logprobs" if self._glimpse_logprobs else "taken inside",
        )

    async def _exit_with_engine_core(self) -> None:
        # Serve's health checks would need half a minute, and affinity would keep sending hops here all the while.
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._sessions is not None:
                for count in self._counts:
                    self._sessions.prune(count)
            if self._engine.errored:
                logger.error("%s engine core died; its replica follows", self._role)
                os._exit(1)

    def _count(self, vllm_config: Any, engine_index: int = 0) -> TokenCount:
        count = TokenCount(vllm_config, engine_index)
        self._counts.append(count)
        return count

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.shutdown()


async def glimpse_logprobs(engine: AsyncLLM) -> int:
    """How many logprobs a token a request has to ask for where the gate is to see: none, where the engine takes the
    entropy itself from now on and tells that."""
    ours = engine.vllm_config.parallel_config.worker_extension_cls == WORKER
    return 0 if ours and all(await engine.collective_rpc("glimpse_in_engine")) else TOP


def coalesced_s(streams: int) -> float:
    """Seconds between two messages of one stream, where a replica has so many."""
    return max(COALESCE_S, streams / MESSAGES_PER_S)
