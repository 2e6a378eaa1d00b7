from __future__ import annotations

import json
from datetime import date, datetime, timedelta

import pytest
from entries import NOW, entry
from sqlalchemy import Engine, text

from router.tenancy.ledger import Entry, Ledger


@pytest.fixture
def ledger(database: Engine) -> Ledger:
    return Ledger(database)


def test_an_entry_survives_its_line() -> None:
    for one in (entry("a"), entry("b", started_at=None, trace=None)):
        assert Entry.read(one.line()) == one
        assert one.line().count(b"\n") == 1


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"null", entry("a").line()[:-9], b'{"id": "a"}', b"\xff"])
def test_half_a_line_is_none(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Entry.read(line)


def test_an_earlier_versions_line_is_an_entry() -> None:
    told = json.loads(entry("a").line())
    del told["trace"]
    assert Entry.read(json.dumps(told).encode()) == entry("a", trace=None)
    del told["tenant"]
    with pytest.raises(ValueError, match="not an entry"):
        Entry.read(json.dumps(told).encode())


def test_an_entry_added_twice_is_there_once(ledger: Ledger, database: Engine) -> None:
    ledger.add([entry("a"), entry("b")])
    ledger.add([entry("b", small_completion_tokens=999), entry("c")])
    with database.connect() as connection:
        rows = connection.execute(text("SELECT id, small_completion_tokens FROM requests ORDER BY id")).all()
    assert [tuple(row) for row in rows] == [("a", 20), ("b", 20), ("c", 20)]


def test_many_entries_are_one_batch(ledger: Ledger) -> None:
    ledger.add([entry(f"r{n}") for n in range(1203)])
    (use,) = ledger.use("acme", NOW.date(), NOW.date())
    assert (use.requests, use.tokens["small_completion_tokens"], use.cost_nano) == (1203, 20 * 1203, 1000 * 1203)


def test_use_is_told_by_tenant_day_and_model(ledger: Ledger) -> None:
    yesterday = NOW - timedelta(days=1)
    ledger.add(
        [
            entry("a"),
            entry("b", model="small"),
            entry("c", at=yesterday),
            entry("d", tenant="other"),
            entry("e", at=NOW - timedelta(days=9)),
        ]
    )
    day = NOW.date()
    told = [(u.tenant, u.day, u.model, u.requests) for u in ledger.use(None, yesterday.date(), day)]
    assert told == [
        ("acme", yesterday.date(), "glimpse", 1),
        ("acme", day, "glimpse", 1),
        ("acme", day, "small", 1),
        ("other", day, "glimpse", 1),
    ]
    assert [u.tenant for u in ledger.use("other", yesterday.date(), day)] == ["other"]
    assert ledger.use("nobody", date(2000, 1, 1), day) == []


def test_the_day_is_utcs(ledger: Ledger) -> None:
    from datetime import timezone

    late = datetime(2026, 3, 31, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    ledger.add([entry("a", at=late)])
    (use,) = ledger.use("acme", date(2026, 4, 1), date(2026, 4, 1))
    assert use.requests == 1


def test_what_was_spent_counts_prompt_and_completion(ledger: Ledger) -> None:
    assert ledger.spent("acme", NOW.date()) == (0, 0)
    ledger.add([entry("a"), entry("b"), entry("c", tenant="other"), entry("d", at=NOW - timedelta(days=40))])
    assert ledger.spent("acme", NOW.date()) == (2 * (10 + 20 + 11 + 7), 2000)
