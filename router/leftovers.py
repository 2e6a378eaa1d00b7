"""What is left of a hop when a guess in it was wrong.

It is read to its end beside the request, so that all that its engine wrote in vain is counted. That end comes soon: the
replica leaves such a hop as soon as the request's next one is there; where none is to come, an empty one is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from router.hop import Chunk
from router.request import Model, Refusal
from router.transcript import Transcript

if TYPE_CHECKING:
    from router.loop import Pool

PATIENCE_S = 5.0
"""How long a request that has come to its end waits for it."""

unwanted: ContextVar[bool] = ContextVar("unwanted", default=False)
"""Whether what a hop tells is only counted."""


class Leftovers:
    """The hops of one request that were left when a guess of theirs was wrong. A request that comes to its end waits
    for them, up to `PATIENCE_S`; one that fails or is given up cancels them."""

    def __init__(self, page: Transcript, pools: Mapping[Model, Pool]) -> None:
        self._page, self._pools = page, pools
        self._reading: dict[AsyncGenerator[Chunk], asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        reading = list(self._reading.values())
        if not reading:
            return
        tasks = list(reading)
        if kind is None:
            tasks.append(asyncio.create_task(self._call_off()))
            await asyncio.wait(reading, timeout=PATIENCE_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self, chunks: AsyncGenerator[Chunk]) -> None:
        """Closes a hop, unless it was left."""
        if chunks not in self._reading:
            await chunks.aclose()

    def leave(self, chunks: AsyncGenerator[Chunk]) -> None:
        """Reads a hop to its end in the background; all of it is discarded."""
        self._page.hops += 1
        task = self._reading[chunks] = asyncio.create_task(self._read(chunks))
        task.add_done_callback(lambda _: self._reading.pop(chunks))

    async def _call_off(self) -> None:
        """Sends an empty hop, at which the replica leaves the one that guessed wrong. Only the small model guesses."""
        self._page.hops += 1
        nothing = replace(self._page.ahead("small"), thinking=False, tokens=0)
        with suppress(Refusal):
            async with aclosing(self._pools["small"].write(nothing)) as chunks:
                async for _ in chunks:
                    pass

    async def _read(self, chunks: AsyncGenerator[Chunk]) -> None:
        unwanted.set(True)
        # A hop that nobody wants any more may as well come to nothing.
        with suppress(Refusal):
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._page.discarded_tokens += chunk.tokens + (chunk.end.discarded_tokens if chunk.end else 0)
