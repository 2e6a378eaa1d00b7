"""How well the first token's entropy tells the steps that the small model would get wrong.

Each step of a right reasoning is a case: the small model is given the question and the right steps before it, and
writes one step, greedily. The score is the entropy of that step's first token; the case is positive if the step's
text differs from the right one's. The end of the thinking is the last case of a reasoning; the answer is none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deployments.config import PoolConfig
from loadtest.client import Client, Served, each
from loadtest.command import MeasuringError
from loadtest.intervals import auroc
from loadtest.questions import Question

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Case:
    """A right step, what stands before it, and how many of the small model's tokens it takes."""

    prompt: str
    step: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Glimpsed:
    """What the small model made of a case."""

    entropy: float
    wrong: bool


@dataclass(frozen=True, slots=True)
class Separation:
    """auroc: None if the small model got every step right, or none. entropies: nats."""

    auroc: float | None
    glimpsed: tuple[Glimpsed, ...]

    @property
    def wrong(self) -> int:
        return sum(one.wrong for one in self.glimpsed)


def steps_of(reasoning: str) -> tuple[str, ...]:
    """A text's steps, delimiters included."""
    return tuple(re.findall(r".+?(?:\n\n+|\Z)", reasoning, re.DOTALL))


def tokenizer_of(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(PoolConfig(model=name).path)
    except (OSError, ValueError):
        raise MeasuringError(f"there is no tokenizer at {name!r}; name the folder of a model that has one") from None


def opened(tokenizer: Any, messages: Sequence[dict[str, str]], *, thinks: bool) -> str:
    """The prompt for a chat as text, its thinking opened exactly once."""
    prompt = str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))
    return prompt if not thinks or OPEN in prompt[-len(OPEN) - 2 :] else f"{prompt}{OPEN}\n"


def cases(tokenizer: Any, messages: Sequence[dict[str, str]], steps: Sequence[str], *, thinks: bool) -> list[Case]:
    """A case for every step of one right reasoning."""
    prompt = opened(tokenizer, messages, thinks=thinks)
    made = []
    for step in (*steps, CLOSE) if thinks else steps:
        # Exactly the right step's length: a step that goes on from there differs from it anyway.
        made.append(Case(prompt, step, len(tokenizer.encode(step, add_special_tokens=False))))
        prompt += step
    return made


async def separation(client: Client, served: Served, tokenizer: Any, right: Sequence[Question], n: int) -> Separation:
    """Over the questions' right steps, `n` requests in flight."""
    wanted = [
        case
        for question in right
        for case in cases(tokenizer, question.messages, question.steps or (), thinks=served.thinks)
    ]

    async def glimpse(case: Case) -> Glimpsed | None:
        reply = await client.complete(case.prompt, "small", max_tokens=case.tokens, glimpse={"include_steps": True})
        first = reply.steps[0]
        wrong = first.text.strip() != case.step.strip()
        return None if first.entropy is None else Glimpsed(first.entropy, wrong)

    seen = [one for one in await each(wanted, glimpse, concurrency=n, label="AUROC") if one is not None]
    return Separation(auroc([one.entropy for one in seen], [one.wrong for one in seen]), tuple(seen))
