"""The API as it is served, through the real service and pools; only the replicas are played."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import httpx
from ray.exceptions import ActorDiedError
from recited import DEFAULTS, END, MARKS, PROMPT, Bytes, tokens
from test_pools import Handle

from router.api.routes import build
from router.hop import Chunk, End, Hop
from router.pools import ServedPool
from router.run import Run
from router.service import StepRouter
from router.telemetry import Observed

SECRET = "Perlhuhn"
TEXT = "".join(f"Step {n}.\n\n" for n in range(30)) + f"</think>{SECRET}<end>"
HARD = frozenset({3, 4, 11, 29})
STEPS = 31
"""The end of the thinking is a step of its own."""
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"

Script = Callable[[Hop], AsyncGenerator[Chunk]]


def reciting(hard: frozenset[int] = frozenset(), text: str = TEXT, unsure: str = TEXT) -> Script:
    """A replica that recites the text; to it the tokens of `unsure` in the steps in `hard` have 2 nats, all others
    none."""
    script, delimiter = tokens(text), tokens("\n\n")[0]
    doubts = set(tokens(unsure))

    async def write(hop: Hop) -> AsyncGenerator[Chunk]:
        began = time.perf_counter()
        run = Run(hop, MARKS, began)
        at = hop.prefix_tokens - PROMPT
        while run.ending is None:
            token = script[at] if at < len(script) else END
            uncertain = script[:at].count(delimiter) // 2 in hard and token in doubts
            run.take(token, 2.0 if uncertain else 0.0, time.perf_counter())
            at += 1
            if run.guess or (hop.streaming and run.ending is None and len(run.written) % 3 == 0):
                yield run.drain(cached_tokens=0)
        engine_ms = (time.perf_counter() - began) * 1000.0
        discarded = at + PROMPT - hop.prefix_tokens - run.kept
        end = End(run.ending, run.glimpse, discarded_tokens=discarded, engine_ms=engine_ms)
        yield run.drain(cached_tokens=0, end=end)

    return write


class Served:
    """The API over pools whose replicas recite; each call of a pool gets the pool's next script."""

    def __init__(self) -> None:
        self.recite = {"small": reciting(HARD), "large": reciting()}
        self.handles = {model: Handle(script) for model, script in self.recite.items()}
        served: Any = {model: ServedPool(model, handle, attempts=3) for model, handle in self.handles.items()}
        words: Any = {"small": Bytes(), "large": Bytes()}
        service = Observed(StepRouter("p", words, served, 1000, DEFAULTS))
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(build(lambda: service)), base_url="http://router")

    def loses(self, model: str, after: int) -> None:
        """The pool's first replica is lost after so many chunks."""

        async def lost(hop: Hop) -> AsyncGenerator[Chunk]:
            left = after
            async for chunk in self.recite[model](hop):
                if not left:
                    break
                left -= 1
                yield chunk
            raise ActorDiedError()

        self.handles[model].scripts = (lost, self.recite[model])

    async def ask(self, headers: Mapping[str, str] | None = None, **fields: object) -> httpx.Response:
        said = {"model": "glimpse", "messages": [{"role": "user", "content": SECRET}], "stream": True} | fields
        return await self.client.post("/v1/chat/completions", json=said, headers=dict(headers or {}))


def sent(sampled: bool) -> dict[str, str]:
    return {"traceparent": f"00-{TRACE}-{CALLER}-0{sampled:d}"}
