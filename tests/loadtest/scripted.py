"""A server of scripted models for the measuring commands: right where the script says so, wrong elsewhere."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import httpx

from loadtest.questions import Question

THINKING, ANSWER = 90, 10

QUESTIONS = [
    Question(
        ({"role": "user", "content": f"Question {n}?"},),
        Fraction(n),
        (f"{n} coins.\n\n", f"{'hard' if n % 2 else 'easy'} {n}.\n\n"),
    )
    for n in range(20)
]


class Scripted:
    """Odd questions are hard: the small model alone fails them, and so does chance. Of the share of steps that
    chance is asked to hand over, it takes four fifths. Of the thinking's tokens those above a token threshold become
    fewer by a factor of e with every half nat. Questions below `cut_below` are cut off."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.busy = self.cut_below = 0

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.busy:
            self.busy -= 1
            return httpx.Response(429, headers={"retry-after": "0"}, json={"error": {"message": "busy"}})
        if request.url.path == "/v1/models":
            told = {
                "pair": "p",
                "models": {"small": "s", "large": "l"},
                "thinks": True,
                "threshold": 1.0,
                "token_threshold": None,
            }
            return httpx.Response(200, json={"data": [{"id": "glimpse", "glimpse": told}]})
        body = json.loads(request.content)
        self.bodies.append(body)
        if request.url.path == "/v1/completions":
            return httpx.Response(200, json=self.complete(body))
        if "Question" not in body["messages"][-1]["content"]:
            return httpx.Response(400, json={"error": {"message": "messages: cannot be this."}})
        return httpx.Response(200, json=self.chat(body))

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        model, told = body["model"], body.get("glimpse", {})
        number = int(body["messages"][-1]["content"].split()[1].rstrip("?"))
        hard = number % 2 == 1
        escalated = THINKING // 3 if hard else 0
        if "random_share" in told:
            escalated = round(THINKING * 0.8 * told["random_share"])
        by_large = {"small": 0, "large": THINKING + ANSWER}.get(model, escalated + ANSWER)
        right = not hard or (model != "small" and "random_share" not in told)
        steps = [_step("small", 0.1, THINKING - escalated)]
        if escalated:
            steps.append(_step("large", 2.0, escalated))
        reply = _reply({"content": f"The answer is {number if right else -1}."}, THINKING + ANSWER, by_large)
        if number < self.cut_below:
            reply["choices"][0]["finish_reason"] = "length"
        if "token_threshold" in told:
            above = round(THINKING * math.exp(-2 * told["token_threshold"]))
            reply = _reply({"content": f"The answer is {number}."}, THINKING + ANSWER, above + ANSWER)
            steps = [_step("small", 0.1, THINKING) | {"large_tokens": above}]
        if told.get("include_steps"):
            reply["glimpse"] = {"hops": 2, "escalations": int(hard), "steps": steps}
        return reply

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The small model's next step: right except that it takes everything for easy."""
        prompt = body["prompt"]
        number = prompt.split("Question ")[1].split("?")[0]
        written = prompt.partition("<think>\n")[2].count("\n\n")
        text = (f"{number} coins.\n\n", f"easy {number}.\n\n", "</think>")[written]
        wrong = written == 1 and int(number) % 2 == 1
        reply = _reply(None, 3, 0)
        reply["glimpse"] = {"hops": 1, "escalations": 0, "steps": [_step("small", 1.5 if wrong else 0.2, 3, text)]}
        return reply


def _step(model: str, entropy: float, tokens: int, text: str = "so.\n\n") -> dict[str, Any]:
    return {"index": 0, "model": model, "entropy": entropy, "tokens": tokens, "duration_ms": 1.0, "text": text}


def _reply(message: dict[str, str] | None, tokens: int, by_large: int) -> dict[str, Any]:
    used = {"small": tokens - by_large, "large": by_large}
    return {
        "choices": [{"text": "", "finish_reason": "stop", **({} if message is None else {"message": message})}],
        "usage": {
            "completion_tokens": tokens,
            "completion_tokens_details": {"reasoning_tokens": min(tokens, THINKING)},
            "by_model": {model: {"completion_tokens": n} for model, n in used.items() if n},
        },
    }


class Words:
    """A tokenizer to which every word is a token."""

    def apply_chat_template(self, messages: list[dict[str, str]], **how: bool) -> str:
        return f"user: {messages[-1]['content']}\nassistant: "

    def encode(self, text: str, **how: bool) -> list[int]:
        return [0 for _ in text.split()]
