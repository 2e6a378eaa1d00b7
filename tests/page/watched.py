"""What the page's tests drive it with: a service that plays a script, and a browser page that is watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from shopping import Shopping

from router.request import Event, Finished, Model, ModelUsage, Request, StepWritten

QUESTION = "What does Carl pay for 2 ivory forks, then 2 fancy drawers?"
HOSTILE = '<img src=x onerror="alert(1)"></script><script>alert(2)</script> **bold** [a](javascript:alert(3)) &amp;'


@dataclass
class Script(Shopping):
    """Shopping at full speed, or a script: yields events, raises exceptions, waits for asyncio events."""

    pace: float = 0.0
    script: Sequence[Event | Exception | asyncio.Event] | None = None
    refusal: Exception | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        if self.refusal is not None:
            raise self.refusal
        if self.script is None:
            async for event in super().write(request):
                yield event
            return
        self.requests.append(request)
        try:
            for item in self.script:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, asyncio.Event):
                    await item.wait()
                else:
                    yield item
        finally:
            self.closed.set()


def step(
    index: int, model: Model, entropy: float | None, text: str, tokens: int = 10, ms: float = 100.0, large: int = 0
) -> StepWritten:
    return StepWritten(index, model, entropy, tokens, 0, 20, ms, text, large or tokens * (model == "large"))


def finished(small: int, large: int, threshold: float | None = 1.0, tokens: float | None = None) -> Finished:
    usage: dict[Model, ModelUsage] = {"small": ModelUsage(20, small, 0), "large": ModelUsage(20, large, 0)}
    return Finished("stop", usage, small + large, 0, threshold, 1, 3, 0, "9f2c", token_threshold=tokens)


@dataclass
class Watched:
    """A browser page, and what it did that it should not have done."""

    page: Any
    url: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def watch(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not any(known in message.text for known in self.expected):
            self.problems.append(message.text)

    async def open(self, fragment: str = "") -> Any:
        await self.page.goto(f"{self.url}/{fragment}")
        await self.page.locator("#examples button").first.wait_for()
        return self.page

    async def ask(self, question: str = QUESTION) -> Any:
        await self.page.fill("#question", question)
        await self.page.press("#question", "Enter")
        return self.page

    async def over(self) -> Any:
        await self.page.locator("#status:not(:empty)").wait_for()
        return self.page

    def strangers(self) -> list[str]:
        return [url for url in self.requests if urlsplit(url).scheme in ("http", "https", "ws") and not self._own(url)]

    def _own(self, url: str) -> bool:
        return url.startswith(f"{self.url}/")


async def models(page: Any) -> list[str]:
    return await page.locator(".step:not(.pending) .who").all_text_contents()


async def texts(page: Any) -> list[str]:
    return await page.locator("ol.steps .text").evaluate_all("all => all.map((e) => e.firstChild.textContent)")


async def slide(page: Any, threshold: float) -> None:
    await page.locator("#threshold").fill(str(threshold))
