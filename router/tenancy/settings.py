"""What a deployment says of tenants. What is secret comes from the environment, so that profiles hold none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from router.request import Model

DATABASE_URL = "GLIMPROUTER_DATABASE_URL"
REDIS_URL = "GLIMPROUTER_REDIS_URL"
ADMIN_KEY = "GLIMPROUTER_ADMIN_KEY"


@dataclass(frozen=True, slots=True)
class Price:
    """Per million tokens, in any one currency."""

    prompt: float = 0.0
    cached: float = 0.0
    completion: float = 0.0


@dataclass(frozen=True, slots=True)
class Access:
    """How callers are known and counted.

    database: SQLAlchemy URL; None: the environment's, and without that the server is open. redis: likewise; without
    it each router counts for itself. redis_down: whether requests pass uncounted or get a 503 while Redis is away.
    journal: folder of this machine's disk. prices: per model. key_cache_s: how long a revoked key may still work.
    delivery_s: how often finished requests go to the database. behind_gateway: something in front authenticates, so
    the server may listen anywhere without keys. max_waiting, max_wait_s: requests that wait for their turn in one
    router, and for how long.
    """

    database: str | None = field(default=None, repr=False)
    redis: str | None = field(default=None, repr=False)
    redis_down: Literal["open", "closed"] = "open"
    journal: str = "~/.glimprouter/journal"
    prices: Mapping[Model, Price] = field(default_factory=dict)
    key_cache_s: float = 5.0
    delivery_s: float = 1.0
    behind_gateway: bool = False
    max_waiting: int = 32
    max_wait_s: float = 10.0

    @property
    def database_url(self) -> str | None:
        return self.database or os.environ.get(DATABASE_URL) or None

    @property
    def redis_url(self) -> str | None:
        return self.redis or os.environ.get(REDIS_URL) or None

    @property
    def journal_folder(self) -> Path:
        return Path(self.journal).expanduser()


def admin_key() -> str | None:
    """What `/admin` wants; None: nobody gets in there."""
    return os.environ.get(ADMIN_KEY) or None


def loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
