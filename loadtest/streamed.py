"""A routed stream as a client reads it, to its very end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from loadtest.command import MeasuringError
from loadtest.questions import Question


@dataclass(frozen=True, slots=True)
class Streamed:
    """What one stream brought: the text, the finish reason, how often a hop was taken up elsewhere, the pair and the
    threshold it was written with, and the longest time without a word, in seconds."""

    reasoning: str
    content: str
    finish: str | None
    resumed_hops: int
    error: str | None = None
    pair: str = ""
    threshold: float | None = None
    silence_s: float = 0.0

    @property
    def said(self) -> tuple[str, str, str | None]:
        return self.reasoning, self.content, self.finish


async def undisturbed(client: httpx.AsyncClient, questions: Sequence[Question], concurrency: int) -> list[Streamed]:
    """What each question's stream brings while nothing happens to the system. Raises `MeasuringError` if one fails."""
    places = asyncio.Semaphore(concurrency)

    async def one(question: Question) -> Streamed:
        async with places:
            return await stream(client, question)

    print(f"{len(questions)} questions, undisturbed ...", flush=True)
    right = await asyncio.gather(*map(one, questions))
    if broken := [one.error or "no end" for one in right if one.error or one.finish is None]:
        raise MeasuringError(f"{len(broken)} of them fail on an undisturbed system: {broken[0]}")
    return right


async def stream(client: httpx.AsyncClient, question: Question) -> Streamed:
    """A greedy routed stream, read to its end."""
    body = {
        "model": "glimpse",
        "messages": list(question.messages),
        "temperature": 0,
        "stream": True,
        "glimpse": {"include_steps": True},
    }
    said = {"reasoning_content": "", "content": ""}
    told: dict[str, Any] = {}
    finish = error = None
    heard, silence_s = time.monotonic(), 0.0
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return Streamed("", "", None, 0, f"{response.status_code}: {(await response.aread())[:200]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                heard, silence_s = time.monotonic(), max(silence_s, time.monotonic() - heard)
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    error = chunk["error"]["message"]
                    break
                told |= chunk.get("glimpse") or {}
                for choice in chunk["choices"]:
                    for voice in said:
                        said[voice] += choice["delta"].get(voice) or ""
                    finish = choice["finish_reason"] or finish
    except httpx.HTTPError as broken:
        error = f"{type(broken).__name__} {broken}"
    return Streamed(
        said["reasoning_content"],
        said["content"],
        finish,
        told.get("resumed_hops", 0),
        error,
        told.get("pair", ""),
        told.get("threshold"),
        silence_s,
    )
