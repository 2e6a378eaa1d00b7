"""Asking a server, many questions at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from tqdm import tqdm

from deployments.first_question import said
from loadtest.command import MeasuringError, credentials

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 5
BUSY = (429, 503)
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the reasoning, as the server tells of it. `entropy` in nats, `duration_ms` in the engine;
    `large_tokens` only where both models wrote it."""

    index: int
    model: str
    entropy: float | None
    tokens: int
    duration_ms: float
    text: str
    prefix_tokens: int = 0
    cached_tokens: int = 0
    large_tokens: int | None = None

    @property
    def by_large(self) -> int:
        """Tokens of it by the large model."""
        return (self.tokens if self.model == "large" else 0) if self.large_tokens is None else self.large_tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. `latency_s` is from asking to the last byte; hops and escalations are known only with steps; `cut`
    where its tokens were used up before it came to its end; `prompt_tokens` by model."""

    reasoning: str
    content: str
    tokens: int
    reasoning_tokens: int
    large_tokens: int
    latency_s: float
    hops: int | None
    escalations: int | None
    steps: tuple[Step, ...]
    cut: bool = False
    prompt_tokens: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, body: Mapping[str, Any], latency_s: float) -> Reply:
        choice, usage, told = body["choices"][0], body["usage"], body.get("glimpse") or {}
        message = choice.get("message") or {"content": choice.get("text")}
        fields = Step.__dataclass_fields__
        return cls(
            reasoning=message.get("reasoning_content") or "",
            content=message.get("content") or "",
            tokens=usage["completion_tokens"],
            reasoning_tokens=usage["completion_tokens_details"]["reasoning_tokens"],
            large_tokens=usage["by_model"].get("large", {}).get("completion_tokens", 0),
            latency_s=latency_s,
            hops=told.get("hops"),
            escalations=told.get("escalations"),
            steps=tuple(
                Step(**{name: step[name] for name in fields if name in step}) for step in told.get("steps", ())
            ),
            cut=choice["finish_reason"] == "length",
            prompt_tokens={model: used.get("prompt_tokens", 0) for model, used in usage["by_model"].items()},
        )


@dataclass(frozen=True, slots=True)
class Served:
    """What the server says of itself in /v1/models. `small` is the small model's folder or hub id."""

    pair: str
    small: str
    large: str
    thinks: bool
    threshold: float
    token_threshold: float | None


class Client:
    """A server. The key, if it wants one, is read from GLIMPROUTER_API_KEY."""

    def __init__(
        self, url: str, *, timeout_s: float = 3600.0, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=None),
            headers=credentials(),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def served(self) -> Served:
        body, _ = await self._send("GET", "/v1/models", None)
        told = next(card["glimpse"] for card in body["data"] if card["id"] == "glimpse")
        names, gates = told["models"], (told["threshold"], told["token_threshold"])
        return Served(told["pair"], names["small"], names["large"], told["thinks"], *gates)

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        model: str,
        *,
        headers: Mapping[str, str] | None = None,
        **fields: object,
    ) -> Reply:
        """A greedy chat completion; fields that are None are left out."""
        return await self._ask("/v1/chat/completions", {"model": model, "messages": list(messages), **fields}, headers)

    async def complete(self, prompt: str | Sequence[int], model: str, **fields: object) -> Reply:
        """A greedy completion of a raw prompt, as text or as token IDs."""
        return await self._ask("/v1/completions", {"model": model, "prompt": prompt, **fields})

    async def _ask(self, path: str, fields: Mapping[str, object], headers: Mapping[str, str] | None = None) -> Reply:
        body = {"temperature": 0} | {name: value for name, value in fields.items() if value is not None}
        return Reply.read(*await self._send("POST", path, body, headers))

    async def _send(
        self, method: str, path: str, body: Mapping[str, object] | None, headers: Mapping[str, str] | None = None
    ) -> tuple[dict[str, Any], float]:
        """The JSON and the seconds from asking for it first; a busy server is asked again."""
        began = time.perf_counter()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = await self._http.request(method, path, json=body, headers=headers)
            except httpx.HTTPError as error:
                reason = f"{type(error).__name__} {error}".strip()
                raise MeasuringError(f"{self._url} does not answer ({reason}); is the server up?") from error
            took = time.perf_counter() - began
            if response.status_code == 200:
                return response.json(), took
            wait_s = float(response.headers.get("retry-after") or attempt)
            # A budget that is spent is there again next month.
            if response.status_code not in BUSY or attempt == ATTEMPTS or wait_s > LONGEST_WAIT_S:
                break
            await asyncio.sleep(wait_s)
        raise MeasuringError(f"{self._url}{path} answered {response.status_code}: {said(response.text)}")


async def each(
    items: Sequence[T], ask: Callable[[T], Awaitable[R]], *, concurrency: int, label: str, quiet: bool = False
) -> list[R]:
    """`ask` of every item, in the items' order, so many at a time, behind a progress bar."""
    results: dict[int, R] = {}
    waiting = iter(enumerate(items))
    with tqdm(total=len(items), desc=label, disable=quiet, leave=False) as bar:

        async def work() -> None:
            for index, item in waiting:
                results[index] = await ask(item)
                bar.update()

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(concurrency, len(items))):
                    workers.create_task(work())
        except* MeasuringError as failed:
            raise failed.exceptions[0] from None
    return [results[index] for index in range(len(items))]
