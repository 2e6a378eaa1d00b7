"""A stand-in for the engine, paced like a GPU: it writes made-up steps at a given rate and costs next to nothing.

Everything around it is the real system, so what a request costs then is what routing costs, and what limits the rate
is the router. As a profile's `import_path`: `loadtest.paced:build`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.serve import Application

from deployments.app import application
from deployments.config import PoolConfig
from router.hop import Chunk, End, Ending, Hop
from router.pulse import beating
from router.request import Model
from router.run import Run
from router.steps import Marks
from router.vocabulary import Vocabulary

COALESCE_S = 0.05
SURE, UNSURE = 0.1, 2.5
"""Nats; between them lies every threshold that one would set."""


class Script:
    """What the stand-in writes: steps of `step_tokens`; in a gated hop `easy_steps` of them, then one it is unsure
    of. No two steps in a row are the same. An answer is one step long."""

    def __init__(self, marks: Marks, *, step_tokens: int, easy_steps: int) -> None:
        self._step_tokens, self._easy_steps = step_tokens, easy_steps
        special = marks.ends | {marks.close}
        self._words = [i for i, mark in enumerate(marks.of_token) if not mark and i not in special][:97]
        self._break, self._end = marks.breaks[0], min(marks.ends)

    def token(self, hop: Hop, written: int) -> tuple[int, float | None]:
        """The token after `written` others of this hop, and the entropy at it where a step begins."""
        place = written % self._step_tokens
        if not hop.thinking and written >= self._step_tokens:
            return self._end, None
        if place == self._step_tokens - 1 and hop.thinking:
            return self._break, None
        word = self._words[(hop.prefix_tokens + 7 * written) % len(self._words)]
        if place:
            return word, None
        return word, UNSURE if hop.gate is not None and written >= self._easy_steps * self._step_tokens else SURE


async def drive(hop: Hop, marks: Marks, script: Script, token_s: float, *, chunked: bool) -> AsyncGenerator[Chunk]:
    """The hop, at a token every `token_s` seconds; whole, or in chunks like the engine's."""
    run = Run(hop, marks, time.perf_counter())
    written, owed = 0, 0.0
    while run.ending is None:
        token, entropy = script.token(hop, written)
        run.take(token, entropy, time.perf_counter())
        written, owed = written + 1, owed + token_s
        if chunked and owed >= COALESCE_S:
            await asyncio.sleep(owed)
            owed = 0.0
            if run.ending is None:
                yield run.drain(cached_tokens=hop.prefix_tokens)
        elif run.guess is not None:
            yield run.drain(cached_tokens=hop.prefix_tokens)
    await asyncio.sleep(owed)
    yield run.drain(cached_tokens=hop.prefix_tokens, end=End(run.ending or Ending.LIMIT, run.glimpse, replica="paced"))


class Paced:
    """In the place of `deployments.engine.Engine`. The pool's `env` says how it writes: PACED_TOKEN_MS,
    PACED_STEP_TOKENS, PACED_EASY_STEPS."""

    def __init__(self, role: Model, pool: PoolConfig, pair: str, think_tags: tuple[str, str] | None) -> None:
        self._role, self._pair = role, pair
        self._context_tokens = pool.max_model_len or 65536
        self._marks = Vocabulary.load(pool.path, revision=pool.revision, think_tags=think_tags).marks
        self._script = Script(
            self._marks,
            step_tokens=int(os.environ["PACED_STEP_TOKENS"]),
            easy_steps=int(os.environ["PACED_EASY_STEPS"]),
        )
        self._token_s = float(os.environ["PACED_TOKEN_MS"]) / 1000.0
        self._replica = serve.get_replica_context().replica_id.unique_id

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        written = drive(hop, self._marks, self._script, self._token_s, chunked=hop.streaming)
        async with aclosing(beating(written)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def prefill(self, hop: Hop) -> None:
        """It reads nothing ahead."""

    async def describe(self) -> dict[str, Any]:
        return {"role": self._role, "pair": self._pair, "context_tokens": self._context_tokens}


def stand_in(application: dict[str, Any], *, token_ms: float, step_tokens: int, easy_steps: int) -> None:
    """Changes an application of a profile in place, so that both pools are stand-ins that write like this."""
    application["import_path"] = "loadtest.paced:build"
    args = application["args"]
    for name in ("small", "large"):
        written = {"TOKEN_MS": token_ms, "STEP_TOKENS": step_tokens, "EASY_STEPS": easy_steps}
        env = args[name].get("env", {}) | {f"PACED_{what}": str(value) for what, value in written.items()}
        # The profile's pools may share what they hold.
        args[name] = args[name] | {"max_ongoing_requests": 512, "env": env}


def build(args: dict[str, Any]) -> Application:
    """The application with the stand-in for both engines."""
    return application(args, Paced)
