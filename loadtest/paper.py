"""The paper's own way to route: a client beside two plain engines that share nothing but text.

Two calls a step: the small model is asked for one token, greedily, with the logprobs of the 20 likeliest; by their
entropy one of the two models then writes the step, up to a blank line. Every call sends the whole text so far, which
the engine reads into tokens again. One problem at a time per client (GlimpRouter, arXiv 2601.05110, and the script
published with it).

Where the script departs from the paper (two <think> in every later prompt, an entropy equal to the threshold counted
as hard) the paper is followed, so that both ways take the same decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from router.glimpse import TOP, entropy
from router.request import Model

DELIMITER = "\n\n"
CLOSE = "</think>"


class Complete(Protocol):
    """POST /v1/completions of one of the two engines; gives the reply's JSON."""

    async def __call__(self, model: Model, body: Mapping[str, object]) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """threshold in nats; tokens of one step, of the thinking, and of the answer, at most."""

    threshold: float
    step_tokens: int
    thinking_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class PaperStep:
    """One step as it came back. `text` without its delimiter; `over`: the model said that this was the last."""

    model: Model
    entropy: float
    text: str
    tokens: int
    over: bool


class PaperClient:
    """One problem, from its prompts to its answer.

    prompts: the chat rendered for each model, its thinking opened. thinks: without think tags all is one text, and
    the step in which a model ends its text is the last.
    """

    def __init__(self, complete: Complete, prompts: Mapping[Model, str], limits: Limits, *, thinks: bool) -> None:
        self._complete, self._prompts, self._limits, self._thinks = complete, prompts, limits, thinks
        self.steps: list[PaperStep] = []
        self.answer = ""
        self.answer_tokens = self.calls = 0

    @property
    def body(self) -> str:
        """The thinking so far, as it is sent with the next call."""
        return "".join(step.text + DELIMITER for step in self.steps)

    @property
    def tokens(self) -> int:
        return self._thinking_tokens + self.answer_tokens

    @property
    def large_tokens(self) -> int:
        return sum(step.tokens for step in self.steps if step.model == "large") + self.answer_tokens

    @property
    def text(self) -> str:
        """What a reader gets to see as the reply."""
        return self.answer if self._thinks else self.body

    async def step(self) -> bool:
        """Glimpse, then write a step. Returns whether there is another one to come."""
        unsure = await self._glimpse()
        model: Model = "large" if unsure > self._limits.threshold else "small"
        left = self._limits.thinking_tokens - self._thinking_tokens
        reply = await self._ask(model, self.body, max_tokens=min(self._limits.step_tokens, left), stop=[DELIMITER])
        choice = reply["choices"][0]
        text = choice["text"]
        over = CLOSE in text or (choice["finish_reason"] == "stop" and choice.get("stop_reason") != DELIMITER)
        self.steps.append(PaperStep(model, unsure, text, reply["usage"]["completion_tokens"], over))
        circles = len(self.steps) > 2 and self.steps[-1].text == self.steps[-2].text
        return not (over or circles or self._thinking_tokens >= self._limits.thinking_tokens)

    async def conclude(self) -> None:
        """The answer, by the large model, after exactly one end of thinking."""
        if not self._thinks:
            return
        body = self.body.partition(CLOSE)[0] + CLOSE
        reply = await self._ask("large", body, max_tokens=self._limits.answer_tokens)
        self.answer, self.answer_tokens = reply["choices"][0]["text"], reply["usage"]["completion_tokens"]

    @property
    def _thinking_tokens(self) -> int:
        return sum(step.tokens for step in self.steps)

    async def _glimpse(self) -> float:
        asked = {"max_tokens": 1, "logprobs": TOP, "return_tokens_as_token_ids": True}
        reply = await self._ask("small", self.body, **asked)
        # The engine adds the token it chose where that is not among the likeliest.
        likeliest = sorted(reply["choices"][0]["logprobs"]["top_logprobs"][0].values(), reverse=True)
        return entropy(likeliest[:TOP])

    async def _ask(self, model: Model, body: str, **fields: object) -> Mapping[str, Any]:
        self.calls += 1
        return await self._complete(
            model,
            {
                "model": model,
                "prompt": self._prompts[model] + body,
                "temperature": 0,
                # The prompt is rendered already, and the end of the thinking has to be seen.
                "add_special_tokens": False,
                "skip_special_tokens": False,
                **fields,
            },
        )
