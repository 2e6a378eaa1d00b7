from __future__ import annotations

from dataclasses import replace

import aiohttp
import pytest
from one_answer import OneAnswer
from scripted import QUESTIONS

from loadtest.command import MeasuringError
from loadtest.paper import Limits
from loadtest.systems import Ask, Ours, OursSmall

ASK = Ask(Limits(1.0, 64, 200, 20), max_tokens=220, stream=True, prompts=lambda model, question: "", thinks=True)


@pytest.mark.parametrize("system", [Ours, OursSmall])
@pytest.mark.parametrize("stream", [True, False])
async def test_this_system_is_asked_over_its_own_api(url: str, stream: bool, system: type[Ours]) -> None:
    async with aiohttp.ClientSession() as http:
        solved = await system(http, {"small": url, "large": url}, replace(ASK, stream=stream)).solve(QUESTIONS[0])
    assert (solved.tokens, solved.large_tokens, solved.steps, solved.content) == (40, 10, 1, "4")
    assert (solved.ttft_s is not None) == stream
    assert solved.latency_s >= (solved.ttft_s or 0.0) > 0.0 or not stream


async def test_a_refusal_is_one_line(url: str, one_answer: OneAnswer) -> None:
    one_answer.refused = 1
    async with aiohttp.ClientSession() as http:
        with pytest.raises(MeasuringError, match=r"answered 429: .*busy"):
            await Ours(http, {"small": url, "large": url}, ASK).solve(QUESTIONS[0])


def test_replies_are_cut_where_asked_and_never_later_than_they_were() -> None:
    short = ASK.cut(50)
    assert (short.max_tokens, short.limits) == (50, Limits(1.0, 64, 50, 20))
    assert ASK.cut(1000) == ASK
