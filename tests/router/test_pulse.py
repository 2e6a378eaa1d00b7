from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from router.hop import PULSE, Chunk
from router.pulse import beating


def chunk(n: int) -> Chunk:
    return Chunk(thought=bytes([n]))


async def test_whoever_has_something_to_tell_says_just_that() -> None:
    async def writes() -> AsyncGenerator[Chunk]:
        for n in range(3):
            yield chunk(n)

    assert [one async for one in beating(writes())] == [chunk(0), chunk(1), chunk(2)]


async def test_whoever_has_nothing_to_tell_beats() -> None:
    async def writes() -> AsyncGenerator[Chunk]:
        await asyncio.sleep(0.5)
        yield chunk(0)

    told = [one async for one in beating(writes(), first_s=0.01, every_s=0.05)]
    assert 3 < told.count(PULSE) < 15
    assert [one for one in told if one != PULSE] == [chunk(0)]


async def test_the_first_beat_comes_sooner() -> None:
    """The router can't tell yet whether anybody has the hop."""

    async def writes() -> AsyncGenerator[Chunk]:
        await asyncio.sleep(0.1)
        yield chunk(0)

    told = [one async for one in beating(writes(), first_s=0.01, every_s=10.0)]
    assert told == [PULSE, chunk(0)]


async def test_an_error_comes_through() -> None:
    async def fails() -> AsyncGenerator[Chunk]:
        yield chunk(0)
        raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        async for _ in beating(fails()):
            pass


@pytest.mark.parametrize("cancelled", [False, True], ids=["left", "cancelled"])
async def test_whoever_writes_ends_with_its_listener(cancelled: bool) -> None:
    """Design rule 10."""
    ended = asyncio.Event()

    async def writes() -> AsyncGenerator[Chunk]:
        try:
            yield chunk(0)
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def listen() -> None:
        async with aclosing(beating(writes(), first_s=0.01, every_s=0.01)) as told:
            beats = 0
            async for one in told:
                beats += one == PULSE
                if beats == 3 and not cancelled:
                    return

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.1)
    if cancelled:
        listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    assert ended.is_set()
