from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from loadtest.paper import Limits, PaperClient
from router.request import Model

LIMITS = Limits(threshold=1.0, step_tokens=64, thinking_tokens=200, answer_tokens=20)
PROMPTS: dict[Model, str] = {"small": "[s]<think>\n", "large": "[l]<think>\n"}

SURE = {"token_id:1": 0.0}
UNSURE = {f"token_id:{n}": math.log(1 / 20) for n in range(20)}


class Engines:
    """Two engines that say what a script has for them: (whether the glimpse is sure, text, stop reason)."""

    def __init__(self, *script: tuple[bool, str, str | None]) -> None:
        self.script = list(script)
        self.calls: list[tuple[Model, Mapping[str, Any]]] = []

    async def __call__(self, model: Model, body: Mapping[str, object]) -> Mapping[str, Any]:
        self.calls.append((model, body))
        if body["max_tokens"] == 1:
            logprobs = SURE if self.script[0][0] else UNSURE
            return {"choices": [{"text": "x", "logprobs": {"top_logprobs": [logprobs]}}]}
        _, text, stop = self.script.pop(0)
        choice = {"text": text, "finish_reason": "stop", "stop_reason": stop}
        return {"choices": [choice], "usage": {"completion_tokens": len(text.split())}}


async def solve(engines: Engines, *, thinks: bool = True, limits: Limits = LIMITS) -> PaperClient:
    client = PaperClient(engines, PROMPTS, limits, thinks=thinks)
    while await client.step():
        pass
    await client.conclude()
    return client


async def test_a_step_takes_a_glimpse_and_a_call_to_the_model_it_chose() -> None:
    engines = Engines(
        (True, "one easy step", "\n\n"),
        (False, "a hard step", "\n\n"),
        (True, "</think>", None),
        (True, "It is 4.", None),
    )
    client = await solve(engines)
    assert [(model, body["max_tokens"]) for model, body in engines.calls] == [
        ("small", 1),
        ("small", 64),
        ("small", 1),
        ("large", 64),
        ("small", 1),
        ("small", 64),
        ("large", 20),
    ]
    assert client.calls == 2 * len(client.steps) + 1
    assert [step.model for step in client.steps] == ["small", "large", "small"]
    assert client.tokens == 3 + 3 + 1 + 3
    assert client.large_tokens == 3 + 3
    assert client.text == "It is 4."


async def test_every_call_sends_the_text_so_far_behind_the_models_own_prompt() -> None:
    engines = Engines((True, "one", "\n\n"), (False, "two", "\n\n"), (True, "so</think>", None), (True, "2", None))
    await solve(engines)
    prompts = [body["prompt"] for _, body in engines.calls]
    assert prompts[1] == "[s]<think>\n"
    assert prompts[3] == "[l]<think>\none\n\n"
    assert prompts[-1] == "[l]<think>\none\n\ntwo\n\nso</think>"


async def test_thinking_ends_when_its_tokens_are_spent_and_is_closed_once() -> None:
    engines = Engines((True, "a b c", "\n\n"), (True, "d e f", "\n\n"), (True, "6", None))
    client = await solve(engines, limits=Limits(1.0, 64, thinking_tokens=6, answer_tokens=20))
    assert len(client.steps) == 2
    assert engines.calls[-1][1]["prompt"] == "[l]<think>\na b c\n\nd e f\n\n</think>"


async def test_no_step_goes_past_the_thinkings_tokens() -> None:
    engines = Engines((True, "a b c", "\n\n"), (True, "d e f", "\n\n"), (True, "6", None))
    await solve(engines, limits=Limits(1.0, 64, thinking_tokens=6, answer_tokens=20))
    asked = [body["max_tokens"] for _, body in engines.calls if body.get("stop")]
    assert asked == [6, 3]


async def test_thinking_ends_when_a_step_repeats_the_one_before() -> None:
    engines = Engines((True, "a", "\n\n"), (True, "b", "\n\n"), (True, "b", "\n\n"), (True, "2", None))
    assert len((await solve(engines)).steps) == 3


async def test_without_think_tags_the_step_that_ends_the_text_is_the_last() -> None:
    engines = Engines((True, "so", "\n\n"), (False, "It is 4.", None))
    client = await solve(engines, thinks=False)
    assert client.text == "so\n\nIt is 4.\n\n"
    assert client.answer_tokens == 0
    assert client.calls == 4


@pytest.mark.parametrize("threshold", [0.0, 3.0])
async def test_an_entropy_equal_to_the_threshold_is_easy(threshold: float) -> None:
    engines = Engines((threshold == 0.0, "x</think>", None), (True, "1", None))
    client = await solve(engines, limits=Limits(threshold, 64, 200, 20))
    assert client.steps[0].model == "small"
