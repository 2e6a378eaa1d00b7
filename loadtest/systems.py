"""Ways to have a problem solved over HTTP: by the paper's client, by one model alone, by this system."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from deployments.first_question import said
from loadtest.command import MeasuringError
from loadtest.hard_steps import CLOSE, steps_of
from loadtest.paper import Limits, PaperClient
from loadtest.questions import Question
from router.request import MODELS, Model

DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Solved:
    """One problem as its client saw it. `ttft_s` is None where the reply comes in one piece."""

    latency_s: float
    ttft_s: float | None
    tokens: int
    large_tokens: int
    steps: int
    content: str


@dataclass(frozen=True, slots=True)
class Ask:
    """How the problems are put: the limits of each, and whether replies come as they are written."""

    limits: Limits
    max_tokens: int
    stream: bool
    prompts: Callable[[Model, Question], str]
    thinks: bool

    def cut(self, tokens: int) -> Ask:
        """The same, for replies of so many tokens at most; of the paper's client's for thinking and answer each."""
        limits = replace(
            self.limits,
            thinking_tokens=min(tokens, self.limits.thinking_tokens),
            answer_tokens=min(tokens, self.limits.answer_tokens),
        )
        return replace(self, limits=limits, max_tokens=min(tokens, self.max_tokens))


class System:
    """Something that solves problems. urls: its servers, by model; a router serves both."""

    def __init__(self, http: aiohttp.ClientSession, urls: Mapping[Model, str], ask: Ask) -> None:
        self._http, self._urls, self._ask = http, urls, ask

    async def solve(self, question: Question) -> Solved:
        raise NotImplementedError

    async def _post(self, url: str, body: Mapping[str, object]) -> dict[str, Any]:
        async with posted(self._http, url, body) as response:
            return await response.json()  # type: ignore[no-any-return]

    async def _chunks(self, url: str, body: Mapping[str, object]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of a streamed reply, or the whole one in their place."""
        if not self._ask.stream:
            yield await self._post(url, body)
            return
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with posted(self._http, url, streamed) as response:
            async for line in response.content:
                data = line.decode().removeprefix("data:").strip()
                if not line.startswith(b"data:") or data == DONE:
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise MeasuringError(f"{url} gave up half-way: {chunk['error'].get('message')}")
                yield chunk


class Paper(System):
    """The paper's client, beside two plain engines."""

    async def solve(self, question: Question) -> Solved:
        prompts = {model: self._ask.prompts(model, question) for model in MODELS}
        began, first = time.perf_counter(), None
        client = PaperClient(self._complete, prompts, self._ask.limits, thinks=self._ask.thinks)
        more = True
        while more:
            more = await client.step()
            first = first or time.perf_counter() - began
        await client.conclude()
        took = time.perf_counter() - began
        return Solved(took, first, client.tokens, client.large_tokens, len(client.steps), client.text)

    async def _complete(self, model: Model, body: Mapping[str, object]) -> Mapping[str, Any]:
        return await self._post(f"{self._urls[model]}/v1/completions", body)


class LargeAlone(System):
    """The large model on a plain engine."""

    async def solve(self, question: Question) -> Solved:
        body = {
            "model": "large",
            "prompt": self._ask.prompts("large", question),
            "temperature": 0,
            "max_tokens": self._ask.max_tokens,
            "add_special_tokens": False,
            "skip_special_tokens": False,
        }
        began, first, text, usage = time.perf_counter(), None, "", None
        async for chunk in self._chunks(f"{self._urls['large']}/v1/completions", body):
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                first = first or time.perf_counter() - began
                text += choice["text"]
        took = time.perf_counter() - began
        tokens = (usage or {})["completion_tokens"]
        thought, _, answer = text.partition(CLOSE) if self._ask.thinks else (text, "", text)
        ttft = first if self._ask.stream else None
        return Solved(took, ttft, tokens, tokens, len(steps_of(thought)), answer)


class Chat(System):
    """The small model behind whatever answers as OpenAI's API does."""

    model = "small"

    def routing(self) -> dict[str, object]:
        return {}

    async def solve(self, question: Question) -> Solved:
        body = {
            "model": self.model,
            "messages": list(question.messages),
            "temperature": 0,
            "max_tokens": self._ask.max_tokens,
            **self.routing(),
        }
        began, first, usage = time.perf_counter(), None, None
        reasoning, content = "", ""
        async for chunk in self._chunks(f"{self._urls['small']}/v1/chat/completions", body):
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                said = choice.get("delta") or choice.get("message") or {}
                thought, told = said.get("reasoning_content") or "", said.get("content") or ""
                if thought or told:
                    first = first or time.perf_counter() - began
                reasoning, content = reasoning + thought, content + told
        took = time.perf_counter() - began
        used = usage or {}
        if self._ask.thinks and not reasoning:  # a server that tells the two apart for nobody
            reasoning, _, content = content.partition(CLOSE)
        return Solved(
            latency_s=took,
            ttft_s=first if self._ask.stream else None,
            tokens=used["completion_tokens"],
            large_tokens=used.get("by_model", {}).get("large", {}).get("completion_tokens", 0),
            steps=len(steps_of(reasoning if self._ask.thinks else content)),
            content=content,
        )


class Ours(Chat):
    """This system, routing by step."""

    model = "glimpse"

    def routing(self) -> dict[str, object]:
        return {"glimpse": {"threshold": self._ask.limits.threshold}}


class OursSmall(Ours):
    """This system, asked for the small model alone."""

    model = "small"

    def routing(self) -> dict[str, object]:
        return {}


class OursAnsweredBySmall(Ours):
    """This system, routing, whose answers come from the small model as well."""

    def routing(self) -> dict[str, object]:
        return {"glimpse": {"threshold": self._ask.limits.threshold, "answer_by": "small"}}


@asynccontextmanager
async def posted(
    http: aiohttp.ClientSession, url: str, body: Mapping[str, object]
) -> AsyncGenerator[aiohttp.ClientResponse]:
    """The reply, if it is a 200. Raises `MeasuringError`."""
    try:
        async with http.post(url, json=body) as response:
            if response.status != 200:
                raise MeasuringError(f"{response.url} answered {response.status}: {said(await response.text())}")
            yield response
    except aiohttp.ClientError as error:
        raise MeasuringError(f"{url} broke off: {error or type(error).__name__}") from None
