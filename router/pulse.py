"""Signs of life from a replica that writes a hop.

A replica that is killed is noticed at once: its connections end. One whose machine loses its power or its network just
falls silent, and gRPC would wait minutes for it. So while there is nothing to tell, a replica says that it is there,
and a router that hears nothing for long takes the hop up elsewhere. Most hops are over before there is need to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from router.hop import PULSE, Chunk

FIRST_S = 1.0
EVERY_S = 5.0
SILENT_S = 30.0
"""As long as Ray takes to give up a machine that does not answer."""


async def beating(
    chunks: AsyncGenerator[Chunk], *, first_s: float = FIRST_S, every_s: float = EVERY_S
) -> AsyncGenerator[Chunk]:
    """The chunks; and a `PULSE` whenever none comes for `every_s`, or at the beginning for `first_s`."""
    coming: asyncio.Future[Chunk | None] | None = None
    patience_s = first_s
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(chunks, None))
            await asyncio.wait((coming,), timeout=patience_s)
            patience_s = every_s
            if not coming.done():
                yield PULSE
                continue
            chunk, coming = coming.result(), None
            if chunk is None:
                return
            yield chunk
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await chunks.aclose()
