"""A pool over a Serve deployment: hops go out through its handle, lost ones are taken up where they broke off."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.context import _unset_request_context
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from router.hop import LAST, PULSE, Chunk, Hop, HopLost, QueueFull, ReadAhead, StrangePair
from router.leftovers import unwanted
from router.observation import thrown_away
from router.pulse import EVERY_S, SILENT_S
from router.request import Model, Refusal, Unavailable, overdue
from router.telemetry import Watch
from router.tracing import within

logger = logging.getLogger("ray.serve")

GONE = (ActorDiedError, ActorUnavailableError, WorkerCrashedError, NodeDiedError, ObjectLostError, AioRpcError, HopLost)
"""What a caller sees when the replica that was writing, or what it had answered, is no more: over gRPC
`ActorUnavailableError`, or gRPC's own error where a stream breaks off. What a replica raises arrives as it is over
gRPC, else as a `RayTaskError` that is of its own type as well."""

PAUSE_S = 0.05
"""Before a lost hop is tried again; doubled each time, so that Serve can notice which replica is gone."""

SERIALIZED = {"request_serialization": "pickle", "response_serialization": "pickle"}
"""Hops and chunks are plain data; Serve's default is made for functions and classes, and takes several times longer."""

LATELY_S = 5.0
"""How long what a replica told of its load counts."""

HEARD_S = 2 * EVERY_S
"""How long ago a pool that answers may have been heard of while it is at work."""

CONTROLLER_S = 2.0
"""How long Serve's controller may take to tell of a pool."""


class Unheard(Exception):
    """No replica was heard of: the hop waits for one, or the one that has it is no more."""


class Overdue(TimeoutError):
    """The request's deadline has passed."""


class ServedPool:
    """The replicas of one model behind a Serve handle.

    All hops of a conversation go to the replica that holds its prefix, as long as that one has room.

    attempts: replicas tried for one hop before the pool counts as unavailable. patience_s: so does a pool that has
    not begun to write after so many seconds; None waits to the deadline.
    """

    def __init__(
        self, model: Model, handle: DeploymentHandle, *, attempts: int, patience_s: float | None = None
    ) -> None:
        self._model, self._attempts, self._patience_s = model, attempts, patience_s
        self._handle: Any = handle
        self._live_hops, self._load, self._told_at = 0, 0.0, 0.0
        self._heard_at = -math.inf

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        """The hop's chunks. A hop whose replica is lost goes on elsewhere from what was passed on already, so the
        caller sees neither a gap nor a repeat."""
        live = hop.priority < LAST
        self._live_hops += live
        try:
            async with aclosing(self._written(hop)) as chunks:
                async for chunk in chunks:
                    if live and chunk.end is not None:
                        self._load, self._told_at = chunk.end.load, time.monotonic()
                    yield chunk
        finally:
            self._live_hops -= live

    @property
    def wanted(self) -> bool:
        """Whether live hops of this router are under way."""
        return self._live_hops > 0

    @property
    def heard_lately(self) -> bool:
        """Whether a replica has lately written for this router, or said that it is at it."""
        return time.monotonic() - self._heard_at < HEARD_S

    async def idle(self, most: float) -> bool:
        """Whether the pool is up and has room for what nobody waits for: no live hop of this router's, and replicas
        that lately told of no higher load than `most`, 0..1."""
        lately = time.monotonic() - self._told_at < LATELY_S
        return not self.wanted and not (lately and self._load > most) and not await self.rests()

    async def _written(self, hop: Hop) -> AsyncGenerator[Chunk]:
        deadline, resumed, over = time.monotonic() + hop.timeout_s, 0, False
        if self._patience_s is not None:
            # In one piece at the end, it would look as if it had not begun.
            hop = replace(hop, streaming=True)
        watch, patient = Watch(self._model, hop), self._patient()
        while True:
            try:
                async with watch, aclosing(self._attempt(watch.hop, deadline, patient)) as chunks:
                    async for chunk in chunks:
                        watch.took(chunk)
                        hop, over = hop.after(chunk), chunk.end is not None
                        yield chunk if chunk.end is None else replace(chunk, end=replace(chunk.end, resumed=resumed))
                return
            except (*GONE, asyncio.CancelledError) as error:
                if _leaving():
                    raise
                if over or unwanted.get():
                    return  # there is nothing left to write, or nobody who would read it
                resumed += 1
                logger.warning("%s hop of %s lost (%s)", self._model, hop.request, type(error).__name__)
                if resumed >= self._attempts:
                    raise Unavailable(self._model) from error
                await asyncio.sleep(min(PAUSE_S * 2**resumed, max(0.0, deadline - time.monotonic())))
                watch, patient = Watch(self._model, hop, attempt=resumed, replaces=watch), self._patient()
            except Unheard:
                # Where it only waited, nothing is lost but its place among those that wait.
                logger.info("no %s replica was heard of for %s; asked again", self._model, hop.request)
                watch = Watch(self._model, hop, attempt=resumed, replaces=watch)
            except (RayTaskError, StrangePair, QueueFull) as error:
                # Where the exception a replica raised arrives wrapped, its cause is the one that was meant.
                raise _failure(getattr(error, "cause", error), self._model) from error
            except BackPressureError as error:
                raise _overloaded(self._model) from error
            except Overdue as error:
                if over:
                    return
                raise overdue() from error
            except (DeploymentUnavailableError, TimeoutError) as error:
                raise Unavailable(self._model) from error

    async def prefill(self, hop: Hop) -> ReadAhead | None:
        """Have the replica that the hop's conversation belongs to read the prefix ahead, if it has room. In a task of
        its own; cancelling it cancels the reading."""
        # Of a request's calls that wait for a replica Serve knows one: this must not be in the way of a hop.
        _unset_request_context()
        response = self._of(hop).prefill.remote(hop)
        try:
            read: ReadAhead | None = await response
        except (*GONE, RayTaskError, BackPressureError):
            return None
        except asyncio.CancelledError:
            response.cancel()
            raise
        if read is not None:
            thrown_away(self._model, read.discarded_tokens)
        return read

    async def ask(self, method: str, *, timeout_s: float = 5.0) -> Any:
        """One plain call to any replica, for readiness and accounts."""
        response = getattr(self._handle, method).remote()
        try:
            async with asyncio.timeout(timeout_s):
                return await response
        except BaseException:
            # Left in Serve's queue, it would wake a pool at rest.
            response.cancel()
            raise

    async def rests(self) -> bool:
        """Whether the pool is at zero replicas and means to be: the next hop wakes it. Any call would wake it too, so
        this asks Serve's controller; False where that one can't tell."""
        try:
            async with asyncio.timeout(CONTROLLER_S):
                status = await _status()
        except (RayError, TimeoutError):
            return False
        deployment = status.applications[self._handle.app_name].deployments[self._handle.deployment_name]
        ready = any(count for state, count in deployment.replica_states.items() if state == "RUNNING")
        return not ready and deployment.status in ("HEALTHY", "UPSCALING", "DOWNSCALING")

    def _of(self, hop: Hop, **options: Any) -> Any:
        return self._handle.options(session_id=hop.conversation or hop.request, **options, **SERIALIZED)

    def _patient(self) -> float:
        """Until when the pool has to begin to write."""
        return math.inf if self._patience_s is None else time.monotonic() + self._patience_s

    async def _attempt(self, hop: Hop, deadline: float, patient: float) -> AsyncGenerator[Chunk]:
        with within(hop.trace):
            chunks = self._of(hop, method_name="write", stream=True).remote(hop)
        heard = False
        try:
            while True:
                # From when it is listened to: meanwhile a guess may have been looked at.
                silent = time.monotonic() + SILENT_S
                until = min(deadline, patient, silent)
                limit = asyncio.timeout(until - time.monotonic())
                try:
                    async with limit:
                        chunk = await anext(chunks, None)
                except TimeoutError as error:
                    if not limit.expired() or until == patient:
                        raise
                    # Told by which limit it was, not by the clock: uvloop's timers come up to a millisecond early.
                    if until == deadline:
                        raise Overdue from error
                    raise (HopLost(f"a {self._model} replica fell silent") if heard else Unheard()) from error
                if chunk is None:
                    return
                heard, self._heard_at = True, time.monotonic()
                if chunk != PULSE:
                    patient = math.inf
                    yield chunk
        finally:
            # Leaving the loop does not stop the replica; this does, and costs nothing once it is done.
            chunks.cancel()


async def _status() -> Any:
    """What Serve's controller tells. While it is away a call hangs, and with it a thread: of its own, and not another
    for each who asks."""
    global _asked
    if _asked is None or _asked.done():
        _asked = asyncio.get_running_loop().run_in_executor(_controller, serve.status)
    return await asyncio.shield(_asked)


_controller = ThreadPoolExecutor(1, "controller")
_asked: asyncio.Future[Any] | None = None


def _leaving() -> bool:
    """Whether this task was cancelled itself. If not, it was a replica that had to stop: over gRPC it hands on that it
    was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _failure(cause: BaseException | None, model: Model) -> Exception:
    if isinstance(cause, StrangePair):
        message = "The model pair changed while the request was being served; send it again."
        return Refusal(message, status=503, code="pair_changed", retry_after_s=1.0)
    if isinstance(cause, QueueFull):
        return _overloaded(model)
    return RuntimeError(f"the {model} pool failed: {cause!r}")


def _overloaded(model: Model) -> Refusal:
    return Refusal(f"The {model} model is overloaded.", status=503, code="overloaded", retry_after_s=1.0)
