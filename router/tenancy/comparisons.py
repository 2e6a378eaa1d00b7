"""What shadow runs found, one row each, and what it comes to by tenant and thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, Integer, Numeric, cast, func, insert, select

from router.request import Model
from router.shadow import Comparison
from router.tenancy.database import transaction
from router.tenancy.settings import Price
from router.tenancy.spending import cost_nano
from router.tenancy.tables import comparisons


@dataclass(frozen=True, slots=True)
class Found:
    """All comparisons of a tenant's requests to a pair of models at the same thresholds (in nats, to two places): how
    many, how many agreed, and sums: seconds, tokens that each way had the large model write, costs in billionths of the
    currency."""

    tenant: str
    pair: str
    threshold: float
    token_threshold: float | None
    compared: int
    agreed: int
    routed_s: float
    large_s: float
    routed_large_tokens: int
    large_tokens: int
    routed_cost_nano: int
    large_cost_nano: int


class Comparisons:
    """The rows. Calls block."""

    def __init__(self, engine: Engine, prices: Mapping[Model, Price]) -> None:
        self._engine, self._prices = engine, prices

    def add(self, compared: Comparison) -> None:
        with transaction(self._engine) as connection:
            connection.execute(insert(comparisons), self._row(compared))

    def report(self, tenant: str | None = None, since: datetime | None = None) -> list[Found]:
        """By tenant, pair of models and thresholds."""
        sums = ("routed_s", "large_s", "routed_large_tokens", "large_tokens", "routed_cost_nano", "large_cost_nano")
        # A controller may move a threshold to any number.
        threshold, of_tokens = (
            func.round(cast(column, Numeric), 2) for column in (comparisons.c.threshold, comparisons.c.token_threshold)
        )
        by = (comparisons.c.tenant, comparisons.c.pair, threshold, of_tokens)
        wanted = select(
            comparisons.c.tenant,
            comparisons.c.pair,
            threshold.label("at"),
            of_tokens.label("tokens_at"),
            func.count().label("compared"),
            func.sum(cast(comparisons.c.agree, Integer)).label("agreed"),
            *(func.sum(comparisons.c[name]).label(name) for name in sums),
        )
        if tenant is not None:
            wanted = wanted.where(comparisons.c.tenant == tenant)
        if since is not None:
            wanted = wanted.where(comparisons.c.at >= since)
        with transaction(self._engine) as connection:
            return [
                Found(
                    row.tenant,
                    row.pair,
                    float(row.at),
                    None if row.tokens_at is None else float(row.tokens_at),
                    row.compared,
                    # PostgreSQL sums integers to decimals.
                    int(row.agreed),
                    row.routed_s,
                    row.large_s,
                    *(int(row._mapping[name]) for name in sums[2:]),
                )
                for row in connection.execute(wanted.group_by(*by).order_by(*by[:3], of_tokens.nulls_last()))
            ]

    def _row(self, compared: Comparison) -> dict[str, Any]:
        routed = compared.routed.get("large")
        return {
            "id": compared.id,
            "tenant": compared.tenant,
            "pair": compared.pair,
            "at": compared.at,
            "threshold": compared.threshold,
            "token_threshold": compared.token_threshold,
            "agree": compared.agree,
            "routed_s": compared.routed_s,
            "large_s": compared.large_s,
            "routed_large_tokens": routed.completion_tokens if routed else 0,
            "large_tokens": compared.large.completion_tokens,
            "routed_cost_nano": cost_nano(self._prices, compared.routed),
            "large_cost_nano": cost_nano(self._prices, {"large": compared.large}),
        }
