"""A pool over a Serve deployment: hops go out through its handle, lost ones are taken up where they broke off."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from router.hop import Chunk, Hop, HopLost, StrangePair
from router.request import Model, Refusal

logger = logging.getLogger("ray.serve")

GONE = (ActorDiedError, ActorUnavailableError, WorkerCrashedError, NodeDiedError, HopLost)
"""What a caller sees when the replica that was writing is no more."""

PAUSE_S = 0.05
"""Before a lost hop is tried again; doubled each time, so that Serve can notice which replica is gone."""


class ServedPool:
    """The replicas of one model behind a Serve handle.

    attempts: replicas tried for one hop before the request fails with 503.
    """

    def __init__(self, model: Model, handle: DeploymentHandle, *, attempts: int) -> None:
        self._model, self._attempts = model, attempts
        self._handle: Any = handle
        self._stream: Any = handle.options(stream=True)

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        """The hop's chunks. A hop whose replica is lost goes on elsewhere from what was passed on already, so the
        caller sees neither a gap nor a repeat."""
        deadline, resumed = time.monotonic() + hop.timeout_s, 0
        while True:
            try:
                async with aclosing(self._attempt(hop, deadline)) as chunks:
                    async for chunk in chunks:
                        hop = hop.after(chunk)
                        yield chunk if chunk.end is None else replace(chunk, end=replace(chunk.end, resumed=resumed))
                return
            except GONE as error:
                resumed += 1
                logger.warning("%s hop of %s lost (%s)", self._model, hop.request, type(error).__name__)
                if resumed >= self._attempts:
                    message = f"The {self._model} model's replicas keep failing; try again."
                    raise Refusal(message, status=503, code="no_capacity", retry_after_s=1.0) from error
                await asyncio.sleep(PAUSE_S * 2**resumed)
            except RayTaskError as error:
                # The exception a replica raised arrives wrapped; its cause is the one that was meant.
                raise _told(error.cause, self._model) from error
            except BackPressureError as error:
                message = f"The {self._model} model is overloaded."
                raise Refusal(message, status=503, code="overloaded", retry_after_s=1.0) from error
            except TimeoutError as error:
                raise Refusal("The request's deadline has passed.", status=504, code="deadline") from error

    async def ask(self, method: str, *, timeout_s: float = 5.0) -> Any:
        """One plain call to any replica, for readiness and accounts."""
        async with asyncio.timeout(timeout_s):
            return await getattr(self._handle, method).remote()

    async def _attempt(self, hop: Hop, deadline: float) -> AsyncGenerator[Chunk]:
        left = deadline - time.monotonic()
        if hop.streaming:
            chunks = self._stream.stream.remote(hop)
            try:
                while True:
                    async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    yield chunk
            finally:
                # Leaving the loop does not stop the replica; this does, and costs nothing once it is done.
                chunks.cancel()
        else:
            response = self._handle.write.remote(hop)
            try:
                async with asyncio.timeout(left):
                    chunk = await response
            except BaseException:
                response.cancel()
                raise
            yield chunk


def _told(cause: BaseException | None, model: Model) -> Exception:
    if isinstance(cause, StrangePair):
        message = "The model pair changed while the request was being served; send it again."
        return Refusal(message, status=503, code="pair_changed", retry_after_s=1.0)
    return RuntimeError(f"the {model} pool failed: {cause!r}")
