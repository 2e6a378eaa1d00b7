"""What `GET /v1/usage` answers. Types only: at run time these are plain dicts."""

from __future__ import annotations

# Not typing's: pydantic, which documents these, can't read that one before Python 3.12.
from typing_extensions import TypedDict

from router.request import Model


class TokensUsed(TypedDict):
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class DayUse(TypedDict):
    date: str
    model: str
    requests: int
    discarded_tokens: int
    cost: float
    by_model: dict[Model, TokensUsed]


class UsageReply(TypedDict):
    object: str
    tenant: str
    data: list[DayUse]
