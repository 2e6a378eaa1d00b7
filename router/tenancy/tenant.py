"""A tenant's policy, and the caller that a request comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from router.request import ModelName

PriorityClass = Literal["high", "normal", "low"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""What a tenant may be called."""


class Policy(BaseModel):
    """What a tenant may do; None is no bound of its own.

    Windows are moving ones of 60 s. Months are calendar months in UTC; `monthly_cost` is in the currency of the
    deployment's prices. `max_large_share` bounds what a request may ask for; `threshold` and `token_threshold` are what
    it gets if it asks for none. `max_context` is of prompt and output together. A tenant of weight 2 gets twice the
    tokens of one of weight 1 when the system is full; a class comes before all lower ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    concurrent_requests: int | None = Field(default=None, ge=1)
    monthly_tokens: int | None = Field(default=None, ge=0)
    monthly_cost: float | None = Field(default=None, ge=0)
    models: frozenset[ModelName] | None = Field(default=None, min_length=1)
    priority: PriorityClass = "normal"
    weight: float = Field(default=1.0, ge=0.001, le=1000)
    threshold: float | None = Field(default=None, ge=0)
    token_threshold: float | None = Field(default=None, ge=0)
    max_large_share: float | None = Field(default=None, ge=0, le=1)
    max_context: int | None = Field(default=None, ge=1)
    max_output: int | None = Field(default=None, ge=1)

    @property
    def budgeted(self) -> bool:
        return self.monthly_tokens is not None or self.monthly_cost is not None


UNBOUNDED = Policy()


@dataclass(slots=True)
class Standing:
    """How a caller stands with its limits while a request is served: response headers, filled as they are known."""

    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a request comes from. `key` is the key's public id, never the key."""

    tenant: str = ""
    key: str = ""
    policy: Policy = UNBOUNDED
    standing: Standing = field(default_factory=Standing, compare=False)


ANYONE = Caller()
"""The caller of a server without keys."""
