"""Requests that an engine holds on to between two of their hops, as sessions of vLLM (its "resumable" requests).

To begin a request anew costs more the longer its prefix is: its tokens cross to the engine's core, are hashed block by
block and looked up in the cache, and those in a block that is not full are computed again. A session goes on from its
last token: only what is new crosses, and is computed.

While it waits it has a place in the engine and its part of the KV cache. So few may, the one that has waited longest is
given up for another, and a hop begins anew where its session is gone or stood at another text.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field

from vllm import SamplingParams
from vllm.engine.protocol import StreamingInput
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from deployments.token_count import TokenCount
from router.hop import Hop

IDLE_S = 30.0
"""After so long a request is thought to be over, or to have gone elsewhere."""

CROWDED = 0.5
"""Of the KV cache: beyond it no session waits."""


@dataclass(eq=False)
class Session:
    """One request in the engine. logprobs: how many a token it gets, if any; read: tokens that it has computed, which
    are all but the last one that it drew; since: when it began to wait, in seconds."""

    outputs: AsyncGenerator[RequestOutput]
    turns: asyncio.Queue[StreamingInput]
    logprobs: int | None
    read: array[int] = field(default_factory=lambda: array("i"))
    since: float = 0.0


class Sessions:
    """Those of one engine, of which `most` may wait."""

    def __init__(self, engine: AsyncLLM, most: int) -> None:
        self._engine, self._most = engine, most
        self._waiting: OrderedDict[str, Session] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._crowded = False

    def __len__(self) -> int:
        """How many wait: the engine counts them as unfinished, and is not at work on them."""
        return len(self._waiting)

    async def write(
        self, request: str, id: str, prompt: list[int], params: SamplingParams, *, salt: str | None, priority: int
    ) -> AsyncGenerator[RequestOutput]:
        """Writes on from `prompt`, the whole of it, until the engine stops by itself. id: the session's, if one begins.

        Closing the generator before that gives the session up. Raises what `AsyncLLM.generate` does.
        """
        whole = array("i", prompt)
        session = self._resumed(request, whole, params) or self._begun(id, params, priority)
        known = len(session.read)
        session.turns.put_nowait(StreamingInput(tokens_input(prompt[known:], cache_salt=salt), params))
        waits = False
        try:
            async for output in session.outputs:
                piece = output.outputs[0]
                whole.extend(piece.token_ids)
                # vLLM tells this of a session's first turn only.
                output.num_cached_tokens = known or output.num_cached_tokens
                if waits := piece.finish_reason in ("stop", "length"):
                    session.read = whole[:-1]
                    self._wait(request, session)
                yield output
                if piece.finish_reason is not None:
                    return
        finally:
            if not waits:
                await session.outputs.aclose()

    async def forget(self, request: str) -> None:
        """Gives up a request's, if one waits: nothing more is to come."""
        if (session := self._waiting.pop(request, None)) is not None:
            await self._give_up(session)

    def prune(self, count: TokenCount | None = None) -> None:
        """Gives up what has waited too long, and everything where others want the room, or where it is for no one."""
        old = time.monotonic() - IDLE_S
        self._crowded = count is not None and (bool(count.queued) or count.kv_use > CROWDED)
        for request, session in list(self._waiting.items()):
            if count is None or count.queued or count.kv_use > CROWDED or session.since < old:
                self._give_up(self._waiting.pop(request))

    def _begun(self, id: str, params: SamplingParams, priority: int) -> Session:
        turns: asyncio.Queue[StreamingInput] = asyncio.Queue()
        return Session(self._engine.generate(_each(turns), params, id, priority=priority), turns, params.logprobs)

    def _resumed(self, request: str, prompt: array[int], params: SamplingParams) -> Session | None:
        session = self._waiting.pop(request, None)
        if session is None:
            return None
        read = len(session.read)
        # vLLM's front end holds on to what a session's first turn asked for; logprobs that it does not expect end it.
        if session.logprobs == params.logprobs and read < len(prompt) and session.read == prompt[:read]:
            return session
        self._give_up(session)
        return None

    def _wait(self, request: str, session: Session) -> None:
        if self._crowded:
            # Resumed before the next look at the engine, it could wait for room that only it would give.
            self._give_up(session)
            return
        session.since = time.monotonic()
        # A hop that was asked for twice has had two.
        if (other := self._waiting.pop(request, None)) is not None:
            self._give_up(other)
        self._waiting[request] = session
        if len(self._waiting) > self._most:
            self._give_up(self._waiting.popitem(last=False)[1])

    def _give_up(self, session: Session) -> asyncio.Task[None]:
        async def close() -> None:
            with suppress(Exception):  # an engine that is dead has no sessions
                await session.outputs.aclose()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task


def comes_back(hop: Hop) -> bool:
    """Whether its request is likely to ask for more."""
    return hop.thinking and (hop.max_steps == 1 or hop.gate is not None or hop.token_gate is not None)


def may_wait(hop: Hop, params: SamplingParams) -> bool:
    """Whether a hop that the engine ends by itself may be a session's: vLLM neither begins a session's noise anew, nor
    has a span for each turn there."""
    return (params.seed is None or params.temperature == 0.0) and not hop.trace


async def _each(turns: asyncio.Queue[StreamingInput]) -> AsyncGenerator[StreamingInput]:
    while True:
        yield await turns.get()
