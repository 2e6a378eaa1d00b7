"""Ledger entries for tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from router.tenancy.ledger import Entry

NOW = datetime.now(UTC)


def entry(id: str, *, tenant: str = "acme", at: datetime = NOW, model: str = "glimpse", **changes: object) -> Entry:
    made = Entry(
        id, tenant, "0123456789ab", model, "9f2c", 10, 5, 20, 11, 0, 7, 2, 7 / 27, 1000, "stop", at, at, at, "ab" * 16
    )
    return replace(made, **changes)  # type: ignore[arg-type]
