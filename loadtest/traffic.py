"""Who asks what, and what an answer looked like to who asked: tenants, questions, and the times within a reply."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from loadtest.command import MeasuringError
from loadtest.questions import Question
from router.answers import Answer, extract

REFUSED = (429, 503)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Of all requests it sends a share in proportion to its weight. key: for a server that wants one."""

    name: str
    key: str = field(default="", repr=False)
    weight: float = 1.0


def tenants(path: Path | None) -> list[Tenant]:
    """From a YAML or JSON file: a list of `{name, key, weight}`, of which only the name is needed. Without a file there
    is one, with the key in GLIMPROUTER_API_KEY, if any. A key `$NAME` is read from the environment."""
    if path is None:
        return [Tenant("anyone", os.environ.get("GLIMPROUTER_API_KEY", ""))]
    try:
        listed = [Tenant(**one) for one in yaml.safe_load(path.read_text())]
    except OSError as error:
        raise MeasuringError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, TypeError):
        raise MeasuringError(
            f"{path}: needs a list of tenants with `name` and, if wanted, `key` and `weight`"
        ) from None
    found = [
        Tenant(one.name, os.environ.get(one.key[1:], "") if one.key.startswith("$") else one.key, one.weight)
        for one in listed
    ]
    if not found or any(one.weight < 0 for one in found) or not sum(one.weight for one in found):
        raise MeasuringError(f"{path}: needs a tenant with a weight above 0, and none below")
    return found


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. kind: what it is listed under. answer: the right one."""

    tenant: Tenant
    kind: str
    body: Mapping[str, object]
    answer: Answer

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(frozen=True, slots=True)
class Mix:
    """What is asked: some tenant's question, alone or at the end of a chat, plain or streamed.

    chat_share, stream_share: 0..1. fields: put into every body.
    """

    tenants: Sequence[Tenant]
    questions: Sequence[Question]
    chat_share: float
    stream_share: float
    fields: Mapping[str, object]

    def draw(self, dice: random.Random) -> Asked:
        tenant = dice.choices(self.tenants, [one.weight for one in self.tenants])[0]
        question = dice.choice(self.questions)
        messages = list(question.messages)
        chat, streamed = dice.random() < self.chat_share, dice.random() < self.stream_share
        if chat:
            earlier = dice.choice(self.questions)
            messages = [
                *earlier.messages,
                {"role": "assistant", "content": f"The answer is {earlier.answer}."},
                *messages,
            ]
        body: dict[str, object] = {"messages": messages, **self.fields}
        if streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        kind = f"{'chat' if chat else 'question'}, {'streamed' if streamed else 'whole'}"
        return Asked(tenant, kind, body, question.answer)


@dataclass(slots=True)
class Observed:
    """A reply, as it came in. Times in seconds from when the request was due."""

    first_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    steps: list[tuple[str, float]] = field(default_factory=list)
    escalations: int | None = None
    large_token_share: float | None = None
    tokens: int = 0
    content: str = ""
    error: str | None = None
    complete: bool = False

    @property
    def answer(self) -> Answer | None:
        return extract(self.content)

    def whole(self, body: Mapping[str, Any]) -> None:
        """A reply in one piece."""
        self._account(body.get("glimpse") or {})
        for step in (body.get("glimpse") or {}).get("steps", ()):
            self._step(step)
        self._usage(body.get("usage") or {})
        self.content = body["choices"][0]["message"].get("content") or ""
        self.complete = True

    def streamed(self, lines: Iterable[bytes], clock: Callable[[], float]) -> None:
        """A stream of server-sent events, read to its end. clock: seconds since the request was due."""
        last: float | None = None
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self.complete = True
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                self.error = str(chunk["error"].get("message"))
                return
            told = chunk.get("glimpse") or {}
            if "step" in told:
                self._step(told["step"])
            self._account(told)
            self._usage(chunk.get("usage") or {})
            deltas = [choice.get("delta") or {} for choice in chunk["choices"]]
            self.content += "".join(delta.get("content") or "" for delta in deltas)
            if any(map(_says, deltas)):
                now = clock()
                if last is None:
                    self.first_s = now
                else:
                    self.gaps_s.append(now - last)
                last = now

    def _step(self, step: Mapping[str, Any]) -> None:
        self.steps.append((step["model"], step["duration_ms"]))

    def _account(self, told: Mapping[str, Any]) -> None:
        if "escalations" in told:
            self.escalations, self.large_token_share = told["escalations"], told["large_token_share"]

    def _usage(self, usage: Mapping[str, Any]) -> None:
        self.tokens = usage.get("completion_tokens", self.tokens)


def _says(delta: Mapping[str, Any]) -> bool:
    return bool(delta.get("reasoning_content") or delta.get("content"))
