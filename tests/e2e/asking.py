"""Asking the served system, for several test modules."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import httpx

from deployments.pocket.problems import Problem, generate

STEPS = {"include_steps": True}


def problems(count: int, seed: int = 77) -> list[Problem]:
    return list(generate(seed, count, "test"))


async def ask(client: httpx.AsyncClient, question: str, model: str = "glimpse", **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0} | fields
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def ask_all(
    client: httpx.AsyncClient, questions: Iterable[str], model: str = "glimpse", *, at_a_time: int = 1, **fields: Any
) -> list[dict[str, Any]]:
    places = asyncio.Semaphore(at_a_time)

    async def one(question: str) -> dict[str, Any]:
        async with places:
            return await ask(client, question, model, **fields)

    return list(await asyncio.gather(*map(one, questions)))


def said(reply: dict[str, Any]) -> tuple[str, str, int, str]:
    """What must be the same where the text is: reasoning, answer, tokens, and why it ended."""
    choice = reply["choices"][0]
    message = choice["message"]
    return (
        message["reasoning_content"],
        message["content"],
        reply["usage"]["completion_tokens"],
        choice["finish_reason"],
    )
