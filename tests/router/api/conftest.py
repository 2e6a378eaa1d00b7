"""A service that plays a script, and the API in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace

import httpx
import pytest
from starlette.types import ASGIApp

from router.api.routes import build
from router.request import Event, Finished, ModelUsage, Pair, Request, StepWritten, Text

PAIR = Pair(
    fingerprint="9f2c",
    names={"small": "pocket-small", "large": "pocket-large"},
    thinks=True,
    handover="ids",
    context_tokens=4096,
    threshold=1.0,
    answer_by="large",
)
FINISHED = Finished(
    finish_reason="stop",
    usage={"small": ModelUsage(20, 30, 16), "large": ModelUsage(22, 10, 0)},
    reasoning_tokens=33,
    discarded_tokens=2,
    threshold=1.0,
    escalations=1,
    hops=3,
    resumed_hops=0,
    pair="9f2c",
)
SCRIPT: tuple[Event, ...] = (
    Text("reasoning", "Two and "),
    Text("reasoning", "two.\n\n"),
    StepWritten(0, "small", 0.41, 30, 16, 20, 212.4, "Two and two.\n\n"),
    Text("content", "Vier: «4» 🙂"),
    StepWritten(1, "large", None, 10, 0, 50, 80.0, "Vier: «4» 🙂"),
    FINISHED,
)


class ScriptedService:
    """Yields the script's events, raises its exceptions, and sleeps for its numbers."""

    def __init__(self) -> None:
        self.pair = PAIR
        self.script: Sequence[Event | Exception | float] = SCRIPT
        self.missing: str | None = None
        self.requests: list[Request] = []
        self.closed = asyncio.Event()

    def unthinking(self) -> None:
        self.pair = replace(PAIR, thinks=False)

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        self.requests.append(request)
        try:
            for item in self.script:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, float):
                    await asyncio.sleep(item)
                else:
                    yield item
        finally:
            self.closed.set()

    async def ready(self) -> str | None:
        return self.missing


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def app(service: ScriptedService) -> ASGIApp:
    return build(lambda: service, max_body_bytes=20_000, max_messages=10, keep_alive_s=0.05)


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        yield client


@pytest.fixture
def chat() -> Callable[..., dict[str, object]]:
    """A minimal chat body, with whatever is given on top."""

    def body(**fields: object) -> dict[str, object]:
        return {"model": "glimpse", "messages": [{"role": "user", "content": "2 + 2?"}], **fields}

    return body
