from __future__ import annotations

import aiohttp
from one_answer import OneAnswer
from scripted import QUESTIONS

from loadtest.steering import Reply, ask, level, shown


async def test_a_reply_tells_what_routing_did(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        reply = await ask(http, url, QUESTIONS[0])
    assert (reply.status, reply.tokens, reply.large_tokens, reply.threshold) == (200, 40, 10.0, 1.0)


async def test_a_refusal_is_a_reply_too(url: str, one_answer: OneAnswer) -> None:
    one_answer.refused = 1
    async with aiohttp.ClientSession() as http:
        assert (await ask(http, url, QUESTIONS[0])).status == 429


def test_a_level_counts_what_was_answered() -> None:
    right = Reply(1.0, 200, right=True, tokens=40, large_tokens=10.0, threshold=0.5, token_threshold=0.75)
    found = level(
        3, [right, Reply(3.0, 200, tokens=60, large_tokens=0.0, threshold=1.5), Reply(0.1, 429)], controller=True
    )
    assert (found.answered, found.refused, found.right, found.large_share, found.threshold) == (2, 1, 0.5, 0.1, 1.0)
    assert found.token_threshold == 0.75
    assert "1.00 / 0.75" in shown([found])
