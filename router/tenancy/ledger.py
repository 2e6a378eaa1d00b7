"""One row a request, and sums over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects import postgresql, sqlite

from router.request import MODELS, Model, ModelUsage
from router.tenancy.database import transaction
from router.tenancy.tables import requests

MOMENTS = ("received_at", "started_at", "finished_at")
TOKENS = tuple(f"{model}_{kind}_tokens" for model in MODELS for kind in ("prompt", "cached", "completion"))
ROWS = 500
"""In one statement: databases bound the parameters of one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The account of one request under the server's own id. Tokens as in `router.request.ModelUsage`; `cost_nano` in
    billionths of the currency; `status` is the finish reason, the refusal's code, or `client_gone`."""

    id: str
    tenant: str
    key: str
    model: str
    pair: str
    small_prompt_tokens: int
    small_cached_tokens: int
    small_completion_tokens: int
    large_prompt_tokens: int
    large_cached_tokens: int
    large_completion_tokens: int
    discarded_tokens: int
    large_share: float
    cost_nano: int
    status: str
    received_at: datetime
    started_at: datetime | None
    finished_at: datetime
    trace: str | None = None

    def line(self) -> bytes:
        """As a line of JSON."""
        return json.dumps(asdict(self), default=datetime.isoformat).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Entry:
        """Raises `ValueError` for what is not a whole line. An earlier version's may lack what came later."""
        told = json.loads(line)
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(told, dict) or not needed <= told.keys() <= {field.name for field in fields(cls)}:
            raise ValueError("not an entry")
        return cls(**told | {name: told[name] and datetime.fromisoformat(told[name]) for name in MOMENTS})

    def row(self) -> dict[str, Any]:
        return asdict(self) | {"day": self.finished_at.astimezone(UTC).date()}


def tokens_of(usage: Mapping[Model, ModelUsage]) -> dict[str, int]:
    """The token columns of an entry."""
    none = ModelUsage()
    return {
        f"{model}_{kind}_tokens": getattr(usage.get(model, none), f"{kind}_tokens")
        for model in MODELS
        for kind in ("prompt", "cached", "completion")
    }


@dataclass(frozen=True, slots=True)
class Use:
    """What a tenant used on one day (UTC) under one model id. `tokens` by column, summed."""

    tenant: str
    day: date
    model: str
    requests: int
    tokens: Mapping[str, int]
    discarded_tokens: int
    cost_nano: int

    @property
    def cost(self) -> float:
        return self.cost_nano / 1e9


class Ledger:
    """The rows. Calls block."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        self._insert = insert(requests).on_conflict_do_nothing(index_elements=["id"])

    def add(self, entries: Sequence[Entry]) -> None:
        """All of them or none; those that are there already are left as they are."""
        rows = [entry.row() for entry in entries]
        with transaction(self._engine) as connection:
            for start in range(0, len(rows), ROWS):
                connection.execute(self._insert, rows[start : start + ROWS])

    def use(self, tenant: str | None, since: date, until: date) -> list[Use]:
        """By tenant, day and model; both days included."""
        sums = [func.sum(requests.c[name]).label(name) for name in (*TOKENS, "discarded_tokens", "cost_nano")]
        by = (requests.c.tenant, requests.c.day, requests.c.model)
        wanted = select(*by, func.count().label("requests"), *sums).group_by(*by).order_by(*by)
        wanted = wanted.where(requests.c.day.between(since, until))
        if tenant is not None:
            wanted = wanted.where(requests.c.tenant == tenant)
        with transaction(self._engine) as connection:
            return [
                Use(
                    row.tenant,
                    row.day,
                    row.model,
                    row.requests,
                    # PostgreSQL sums big integers to decimals.
                    {name: int(row._mapping[name]) for name in TOKENS},
                    int(row.discarded_tokens),
                    int(row.cost_nano),
                )
                for row in connection.execute(wanted)
            ]

    def spent(self, tenant: str, since: date, before: date = date.max) -> tuple[int, int]:
        """Tokens (prompt and completion) and cost in billionths since one day and before another."""
        counted = sum((requests.c[name] for name in TOKENS if "cached" not in name), start=0)  # type: ignore[arg-type]
        wanted = select(func.coalesce(func.sum(counted), 0), func.coalesce(func.sum(requests.c.cost_nano), 0))
        with transaction(self._engine) as connection:
            theirs = (requests.c.tenant == tenant, requests.c.day >= since, requests.c.day < before)
            tokens, cost = connection.execute(wanted.where(*theirs)).one()
            return int(tokens), int(cost)
