"""A stand-in for a Serve handle, which does what the test says."""

import asyncio
from array import array
from collections.abc import AsyncGenerator, Callable

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError
from toy import ToyModel, chunks

from router.hop import Chunk, Hop, HopLost, unpack
from router.pools import ServedPool
from router.request import Sampling


def raised(error: BaseException) -> Exception:
    """As it comes out of a handle when a replica raises it."""
    return RayTaskError("write", "traceback", error).as_instanceof_cause()


LOST = [
    ActorDiedError(),
    ActorUnavailableError("gone", None),
    ObjectLostError("00" * 28, None, ""),
    raised(HopLost("engine died")),
    # Over gRPC what a replica raises arrives as it is, also that it was cancelled because it had to stop.
    HopLost("engine died"),
    asyncio.CancelledError(),
    AioRpcError(StatusCode.UNKNOWN, Metadata(), Metadata(), details="Stream removed"),
]
lost = pytest.mark.parametrize("error", LOST, ids=[type(e).__name__ for e in LOST])


class Response:
    """Of one call: awaited where it answers at once, iterated where it writes a hop."""

    def __init__(self, script: AsyncGenerator[Chunk]) -> None:
        self._script, self.cancelled = script, 0

    def __aiter__(self) -> "Response":
        return self

    async def __anext__(self) -> Chunk:
        return await anext(self._script)

    def __await__(self):  # type: ignore[no-untyped-def]
        return self._last().__await__()

    async def _last(self) -> Chunk:
        return [chunk async for chunk in self._script][-1]

    def cancel(self) -> None:
        self.cancelled += 1


class Method:
    def __init__(self, handle: "Handle") -> None:
        self._handle = handle

    def remote(self, hop: Hop | None = None) -> Response:
        self._handle.hops.append(hop)
        script = self._handle.scripts[min(len(self._handle.hops), len(self._handle.scripts)) - 1]
        self._handle.responses.append(Response(script(hop)))
        return self._handle.responses[-1]


class Handle:
    """scripts: what each call does, one after another; the last goes on for ever."""

    def __init__(self, *scripts: Callable[[Hop], AsyncGenerator[Chunk]]) -> None:
        self.scripts = scripts
        self.hops: list[Hop] = []
        self.responses: list[Response] = []
        self.write = self.describe = Method(self)
        self.app_name, self.deployment_name = "glimpse", "large"

    def options(self, *, method_name: str | None = None, **_options: object) -> "Handle | Method":
        return self if method_name is None else getattr(self, method_name)


def replica(*, size: int = 3, lives: int | None = None, error: BaseException | None = None):  # type: ignore[no-untyped-def]
    """Writes as the toy model does, and raises `error` after `lives` chunks. A plain call gets one chunk."""

    async def write(hop: Hop) -> AsyncGenerator[Chunk]:
        if lives == 0:
            raise error
        for n, chunk in enumerate(
            chunks(ToyModel("long", close_rate=0.0), hop, size if hop.streaming else 10**6), start=1
        ):
            yield chunk
            if n == lives:
                raise error

    return write


async def hang(hop: Hop) -> AsyncGenerator[Chunk]:
    await asyncio.sleep(60)
    yield Chunk()


def hop(*, streaming: bool = True, timeout_s: float = 30.0) -> Hop:
    return Hop(
        pair="p",
        prefix=array("i", [9, 1]).tobytes(),
        sampling=Sampling(),
        gate=None,
        step_tokens=20,
        thinking_tokens=200,
        tokens=300,
        streaming=streaming,
        timeout_s=timeout_s,
        request="r",
    )


async def written(handle: Handle, asked: Hop, *, attempts: int = 3) -> list[Chunk]:
    return [chunk async for chunk in ServedPool("small", handle, attempts=attempts).write(asked)]


def ids(told: list[Chunk]) -> list[int]:
    return [i for chunk in told for i in unpack(chunk.thought + chunk.answer)]


def steps(told: list[Chunk]) -> list[tuple[int, float | None]]:
    return [(step.tokens, step.entropy) for chunk in told for step in chunk.steps]
