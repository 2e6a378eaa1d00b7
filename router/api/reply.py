"""The bodies clients get back: OpenAI's, with `usage.by_model` and the `glimpse` extension.

The types are the documentation (/openapi.json shows them); at run time these are plain dicts, cheap to make and send.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, NotRequired

# Not typing's: pydantic, which documents these, can't read that one before Python 3.12.
from typing_extensions import TypedDict

from router.request import (
    Event,
    Finished,
    FinishReason,
    Model,
    Pair,
    StepWritten,
    Text,
)


class Step(TypedDict):
    index: int
    model: Model
    entropy: float | None
    tokens: int
    cached_tokens: int
    prefix_tokens: int
    duration_ms: float
    text: str
    large_tokens: NotRequired[int]


class Account(TypedDict):
    """What routing did, without the steps."""

    threshold: float | None
    large_token_share: float
    escalations: int
    hops: int
    resumed_hops: int
    discarded_tokens: int
    pair: str
    large_share_spent: NotRequired[bool]
    degraded: NotRequired[str]
    token_threshold: NotRequired[float]


class GlimpseReply(Account):
    steps: list[Step]


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int


class ModelTokens(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    by_model: dict[Model, ModelTokens]


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    reasoning_content: str | None
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: None
    finish_reason: FinishReason


class ChatReply(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    glimpse: NotRequired[GlimpseReply]


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: None
    finish_reason: FinishReason


class TextReply(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage
    glimpse: NotRequired[GlimpseReply]


class ModelFacts(TypedDict):
    pair: str
    models: dict[Model, str]
    thinks: bool
    handover: Literal["ids", "mapped", "text"]
    threshold: float | None
    token_threshold: float | None
    max_model_len: int


class ModelCard(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    glimpse: ModelFacts


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelCard]


@dataclass(frozen=True, slots=True)
class Head:
    """What every body and every chunk of one completion starts with."""

    id: str
    created: int
    model: str
    pair: Pair


@dataclass(frozen=True, slots=True)
class Written:
    """A finished generation, collected."""

    reasoning: str
    content: str
    steps: list[Step]
    finished: Finished


async def collect(events: AsyncGenerator[Event]) -> Written:
    """All of `events`, which are closed in any case."""
    reasoning: list[str] = []
    content: list[str] = []
    steps: list[Step] = []
    async with aclosing(events):
        async for event in events:
            match event:
                case Text():
                    (reasoning if event.voice == "reasoning" else content).append(event.text)
                case StepWritten():
                    steps.append(step(event))
                case Finished():
                    return Written("".join(reasoning), "".join(content), steps, event)
    raise RuntimeError("the events ended without Finished")


def chat(head: Head, written: Written, include_steps: bool) -> ChatReply:
    """A whole chat completion."""
    reply: ChatReply = {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.pair.fingerprint,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": written.content,
                    "reasoning_content": written.reasoning if head.pair.thinks else None,
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": written.finished.finish_reason,
            }
        ],
        "usage": usage(written.finished),
    }
    if include_steps:
        reply["glimpse"] = {**account(written.finished), "steps": written.steps}
    return reply


def text(head: Head, written: Written, include_steps: bool) -> TextReply:
    """A whole text completion."""
    reply: TextReply = {
        "id": head.id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.pair.fingerprint,
        "choices": [
            {
                "index": 0,
                "text": written.reasoning + written.content,
                "logprobs": None,
                "finish_reason": written.finished.finish_reason,
            }
        ],
        "usage": usage(written.finished),
    }
    if include_steps:
        reply["glimpse"] = {**account(written.finished), "steps": written.steps}
    return reply


def step(written: StepWritten) -> Step:
    """A step, as `include_steps` asks for it."""
    told: Step = {
        "index": written.index,
        "model": written.model,
        "entropy": written.entropy,
        "tokens": written.tokens,
        "cached_tokens": written.cached_tokens,
        "prefix_tokens": written.prefix_tokens,
        "duration_ms": round(written.duration_ms, 3),
        "text": written.text,
    }
    if 0 < written.large_tokens < written.tokens:
        told["large_tokens"] = written.large_tokens
    return told


def account(finished: Finished) -> Account:
    """What routing came to."""
    told: Account = {
        "threshold": finished.threshold,
        "large_token_share": finished.large_token_share,
        "escalations": finished.escalations,
        "hops": finished.hops,
        "resumed_hops": finished.resumed_hops,
        "discarded_tokens": finished.discarded_tokens,
        "pair": finished.pair,
    }
    if finished.large_share_spent:
        told["large_share_spent"] = True
    if finished.degraded is not None:
        told["degraded"] = finished.degraded
    if finished.token_threshold is not None:
        told["token_threshold"] = finished.token_threshold
    return told


def usage(finished: Finished) -> Usage:
    """OpenAI's usage, and by model."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": finished.reasoning_tokens},
        "by_model": {
            model: {
                "prompt_tokens": used.prompt_tokens,
                "completion_tokens": used.completion_tokens,
                "cached_tokens": used.cached_tokens,
            }
            for model, used in finished.usage.items()
        },
    }


def model_card(id: str, models: tuple[Model, ...], threshold: float | None, created: int, pair: Pair) -> ModelCard:
    """What `/v1/models` says of one id."""
    return {
        "id": id,
        "object": "model",
        "created": created,
        "owned_by": "glimprouter",
        # Here as well, because this is where clients of vLLM look for it.
        "max_model_len": pair.context_tokens,
        "glimpse": {
            "pair": pair.fingerprint,
            "models": {model: pair.names[model] for model in models},
            "thinks": pair.thinks,
            "handover": pair.handover,
            "threshold": threshold,
            "token_threshold": None if threshold is None else pair.token_threshold,
            "max_model_len": pair.context_tokens,
        },
    }
