"""The tables. `migrations/` makes them; a test holds the two together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
)
from sqlalchemy.types import TypeDecorator


class Utc(TypeDecorator[datetime]):
    """A moment, with its zone: SQLite forgets it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("policy", JSON, nullable=False),
    Column("created_at", Utc, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("tenant", String(63), ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", String(100), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("expires_at", Utc),
    Column("revoked_at", Utc),
)

requests = Table(
    "requests",
    metadata,
    Column("id", String(64), primary_key=True),
    # No foreign keys: an account outlives whom it is about.
    Column("tenant", String(63), nullable=False),
    Column("key", String(12), nullable=False),
    Column("model", String(100), nullable=False),
    Column("pair", String(64), nullable=False),
    Column("small_prompt_tokens", BigInteger, nullable=False),
    Column("small_cached_tokens", BigInteger, nullable=False),
    Column("small_completion_tokens", BigInteger, nullable=False),
    Column("large_prompt_tokens", BigInteger, nullable=False),
    Column("large_cached_tokens", BigInteger, nullable=False),
    Column("large_completion_tokens", BigInteger, nullable=False),
    Column("discarded_tokens", BigInteger, nullable=False),
    Column("large_share", Float, nullable=False),
    # Billionths of the currency, so that sums are exact.
    Column("cost_nano", BigInteger, nullable=False),
    Column("status", String(40), nullable=False),
    Column("received_at", Utc, nullable=False),
    Column("started_at", Utc),
    Column("finished_at", Utc, nullable=False),
    Column("day", Date, nullable=False),
    Column("trace", String(32)),
    Index("requests_by_tenant_and_day", "tenant", "day"),
)

comparisons = Table(
    "comparisons",
    metadata,
    # The request's, whose own row is in `requests`.
    Column("id", String(64), primary_key=True),
    Column("tenant", String(63), nullable=False),
    Column("pair", String(64), nullable=False),
    Column("at", Utc, nullable=False),
    Column("threshold", Float, nullable=False),
    Column("token_threshold", Float),
    Column("agree", Boolean, nullable=False),
    Column("routed_s", Float, nullable=False),
    Column("large_s", Float, nullable=False),
    Column("routed_large_tokens", BigInteger, nullable=False),
    Column("large_tokens", BigInteger, nullable=False),
    Column("routed_cost_nano", BigInteger, nullable=False),
    Column("large_cost_nano", BigInteger, nullable=False),
    Index("comparisons_by_tenant", "tenant", "at"),
)
