from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest
from entries import NOW, entry
from sqlalchemy import Engine, text

from loadtest.servers import Postgres
from router.tenancy.database import DatabaseError, connect, upgrade
from router.tenancy.delivery import Delivery
from router.tenancy.journal import Journal, read
from router.tenancy.ledger import Ledger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal"


def rows(database: Engine) -> list[str]:
    with database.connect() as connection:
        return list(connection.execute(text("SELECT id FROM requests ORDER BY id")).scalars())


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def locks(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_what_is_written_is_delivered_once(database: Engine, folder: Path) -> None:
    journal = Journal(folder)
    delivery = Delivery(journal, Ledger(database), 1.0)
    journal.write(entry("a"))
    journal.write(entry("b"))
    await journal.sync()
    await delivery.deliver()
    assert rows(database) == ["a", "b"]
    journal.write(entry("c"))
    await delivery.deliver()
    await delivery.deliver()
    assert rows(database) == ["a", "b", "c"]
    assert left(folder) == []


async def test_half_a_line_takes_no_other_with_it(
    database: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, write = Journal(folder), os.write
    journal.write(entry("a"))
    with monkeypatch.context() as full:
        full.setattr("router.tenancy.journal.os.write", lambda file, line: write(file, line[: len(line) // 2]))
        with pytest.raises(OSError, match="full"):
            journal.write(entry("b"))
    journal.write(entry("c"))
    await Delivery(journal, Ledger(database), 1.0).deliver()
    assert rows(database) == ["a", "c"]
    assert left(folder) == []


async def test_what_was_written_last_is_delivered_when_a_router_ends(database: Engine, folder: Path) -> None:
    journal = Journal(folder)
    delivery = Delivery(journal, Ledger(database), 60.0)
    delivery.start()
    journal.write(entry("a"))
    await delivery.stop()
    assert rows(database) == ["a"]


async def test_those_who_sync_at_a_time_all_return(folder: Path) -> None:
    journal = Journal(folder)

    async def one(n: int) -> None:
        journal.write(entry(f"r{n:03}"))
        await journal.sync()
        if n % 7 == 0:
            await journal.close_segment()

    await asyncio.gather(*(one(n) for n in range(200)))
    await journal.close_segment()
    written = [one.id for segment in journal.segments() for one in read(segment)]
    assert sorted(written) == [f"r{n:03}" for n in range(200)]


async def test_nobody_waits_for_more_than_two_syncs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, syncs = Journal(folder), 0

    def slow(_file: int) -> None:
        nonlocal syncs
        syncs += 1
        time.sleep(0.02)

    monkeypatch.setattr("router.tenancy.journal.os.fdatasync", slow)

    async def writing() -> None:
        while True:
            journal.write(entry("later"))
            await asyncio.sleep(0.001)

    others = asyncio.create_task(writing())
    journal.write(entry("a"))
    await journal.sync()
    await asyncio.sleep(0.005)
    journal.write(entry("b"))
    before = syncs
    await journal.sync()
    others.cancel()
    assert syncs - before <= 2


async def test_what_could_not_be_synced_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(folder)

    def broken(_file: int) -> None:
        raise OSError("the disk is broken")

    monkeypatch.setattr("router.tenancy.journal.os.fdatasync", broken)
    journal.write(entry("a"))
    with pytest.raises(OSError, match="broken"):
        await journal.sync()
    with pytest.raises(OSError, match="broken"):
        await journal.close_segment()
    with pytest.raises(OSError, match="may not be"):
        await journal.sync()


async def test_what_a_closed_segment_has_lost_no_later_sync_brings_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, broken = Journal(folder), True

    def flush(_file: int) -> None:
        time.sleep(0.02)
        if broken:
            raise OSError("the disk is broken")

    monkeypatch.setattr("router.tenancy.journal.os.fdatasync", flush)
    journal.write(entry("a"))
    closing = asyncio.create_task(journal.close_segment())
    await asyncio.sleep(0.005)
    waiting = asyncio.create_task(journal.sync())
    await asyncio.sleep(0)
    journal.write(entry("b"))
    with pytest.raises(OSError, match="broken"):
        await closing
    broken = False
    with pytest.raises(OSError, match="may not be"):
        await waiting
    await journal.sync()  # of what was written since


async def test_a_crash_before_the_segment_is_deleted_changes_nothing(database: Engine, folder: Path) -> None:
    journal, ledger = Journal(folder), Ledger(database)
    journal.write(entry("a"))
    await journal.close_segment()
    (segment,) = journal.segments()
    ledger.add(read(segment))
    await Delivery(journal, ledger, 1.0).deliver()
    assert rows(database) == ["a"]


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests/router")
from entries import entry
from router.tenancy.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.write(entry("a"))
asyncio.run(journal.close_segment())
journal.write(entry("b"))
print("written", flush=True)
signal.pause() if len(sys.argv) > 2 else os.kill(os.getpid(), signal.SIGKILL)
"""


async def test_a_killed_routers_journal_is_taken_over(database: Engine, folder: Path) -> None:
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", KILLED, str(folder)], check=False)
    assert len(left(folder)) == 2
    journal = Journal(folder)
    await Delivery(journal, Ledger(database), 1.0).deliver()
    assert rows(database) == ["a", "b"]
    assert left(folder) == []
    assert locks(folder) == [f"{journal.name}.lock"]


async def test_a_living_routers_journal_is_left_alone(database: Engine, folder: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(folder), "stay"]
    living = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert living.stdout is not None
    await living.stdout.readline()
    try:
        await Delivery(Journal(folder), Ledger(database), 1.0).deliver()
        assert rows(database) == []
        assert len(left(folder)) == 2
    finally:
        living.kill()
        await living.wait()


async def test_half_a_line_is_kept_aside(database: Engine, folder: Path) -> None:
    whole, cut = entry("a").line(), entry("b").line()[:-20]
    (folder / ("0" * 32 + "-000000000.jsonl")).write_bytes(whole + cut)
    await Delivery(Journal(folder), Ledger(database), 1.0).deliver()
    assert rows(database) == ["a"]
    assert (folder / ("0" * 32 + "-000000000.unreadable")).read_bytes() == cut


async def test_while_the_database_is_away_entries_stay(postgres: Postgres, folder: Path) -> None:
    engine = connect(postgres.url)
    upgrade(engine)
    ledger, journal = Ledger(engine), Journal(folder)
    delivery = Delivery(journal, ledger, 0.05)
    before = sum(use.requests for use in ledger.use("away", NOW.date(), NOW.date()))
    postgres.stop()
    try:
        journal.write(entry("away-1", tenant="away"))
        with pytest.raises(DatabaseError):
            await delivery.deliver()
        journal.write(entry("away-2", tenant="away"))
        assert left(folder)
        delivery.start()
        await asyncio.sleep(0.3)
    finally:
        postgres.start()
    for _ in range(200):
        if not left(folder):
            break
        await asyncio.sleep(0.05)
    uses = ledger.use("away", date(2000, 1, 1), NOW.date())
    assert sum(use.requests for use in uses) == before + 2
    engine.dispose()


def test_a_full_disk_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(folder)
    monkeypatch.setattr("os.write", lambda file, line: len(line) - 1)
    with pytest.raises(OSError, match="full"):
        journal.write(entry("a"))
