"""Stops work for clients that are gone.

Servers differ in what they do when a client hangs up: some cancel the handler, some only say `http.disconnect`, and
Ray Serve does either, depending on a request header. So the word is listened for here, and a cancelled handler is
taken as the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def until_gone(work: Coroutine[None, None, T], receive: Receive) -> T:
    """What `work` returns. If the client hangs up first, `work` is cancelled, and has ended, before ClientDisconnect
    is raised. Only for requests whose body has been read: what comes after it is thrown away."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_hang_up(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
