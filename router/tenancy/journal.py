"""Finished requests on this machine's disk, until the database has them.

A journal is a row of segments, files of one line an entry. Whoever delivers closes the open segment, hands its entries
to the database in one transaction, and deletes it: a crash in between delivers it again, which changes nothing. A
router holds a lock for as long as it lives, so that another can tell whose segments are orphans and take them over.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from router.tenancy.ledger import Entry

log = logging.getLogger(__name__)

SEGMENT, LOCK, UNREADABLE = ".jsonl", ".lock", ".unreadable"


class Journal:
    """This router's segments in `folder`, which several routers may share."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self.name = folder, uuid4().hex
        self._lock = _locked(folder / f"{self.name}{LOCK}")
        assert self._lock is not None
        self._number, self._open = 0, -1
        self._written = self._synced = self._lost = 0
        self._syncing = asyncio.Lock()

    def write(self, entry: Entry) -> None:
        """Append an entry: it survives this process from now on."""
        if self._open < 0:
            path = self._folder / f"{self.name}-{self._number:09}{SEGMENT}"
            self._open = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        line, before = entry.line(), os.lseek(self._open, 0, os.SEEK_END)
        if os.write(self._open, line) != len(line):
            # Half a line would take the next one with it.
            os.ftruncate(self._open, before)
            raise OSError(f"the journal in {self._folder} is full")
        self._written += 1

    async def sync(self) -> None:
        """Wait until what was written survives the machine too. Those who wait at a time share one sync. Raises
        `OSError` if it does not."""
        if self._synced < self._written:
            # A disk can't be told to stop: who waits for it may be cancelled, the sync is not.
            await asyncio.shield(asyncio.create_task(self._sync(self._written)))

    async def close_segment(self) -> None:
        """What was written goes to whoever delivers, what is written from now on into another segment."""
        await asyncio.shield(asyncio.create_task(self._close()))

    async def _sync(self, wanted: int) -> None:
        async with self._syncing:
            if self._synced >= wanted:
                return
            if wanted <= self._lost or self._open < 0:
                raise OSError(f"what was written to the journal in {self._folder} may not be on its disk")
            await self._flush(os.dup(self._open))

    async def _close(self) -> None:
        async with self._syncing:
            if self._open < 0:
                return
            file, self._open, self._number = self._open, -1, self._number + 1
            await self._flush(file)

    async def _flush(self, file: int) -> None:
        written = self._written
        try:
            if self._synced < written:
                await asyncio.get_running_loop().run_in_executor(_disk, os.fdatasync, file)
        except OSError:
            # A later sync says nothing of it: Linux tells of a write that failed once.
            self._lost = written
            raise
        finally:
            os.close(file)
        self._synced = written

    def segments(self) -> Iterator[Path]:
        """Closed segments: this router's, and those of routers that are no more."""
        adopted: dict[str, bool] = {self.name: True}
        for path in sorted(self._folder.glob(f"*{SEGMENT}")):
            owner = path.name.partition("-")[0]
            if owner not in adopted:
                adopted[owner] = self._adopt(owner)
            ours = path.name == f"{self.name}-{self._number:09}{SEGMENT}"
            if adopted[owner] and not (ours and self._open >= 0):
                yield path

    def _adopt(self, owner: str) -> bool:
        """Whether the router of that name is gone. Two that adopt at once deliver the same entries, which is fine."""
        lock = self._folder / f"{owner}{LOCK}"
        held = _locked(lock)
        if held is None:
            return False
        os.close(held)
        log.info("taking over the journal of a router that is gone (%s)", owner)
        lock.unlink(missing_ok=True)
        return True


# Of its own: what hangs in the loop's few threads must not hang the accounts.
_disk = ThreadPoolExecutor(1, "journal")


def read(segment: Path) -> list[Entry]:
    """A segment's entries. What can't be read is the end of a line that a crash cut off, or a broken disk's: it is
    kept aside for a person to look at."""
    entries, unreadable = [], []
    for line in segment.read_bytes().splitlines(keepends=True):
        try:
            entries.append(Entry.read(line))
        except (ValueError, TypeError):
            unreadable.append(line)
    if unreadable:
        log.error("%d lines of %s can't be read; they are kept in %s", len(unreadable), segment, UNREADABLE)
        segment.with_suffix(UNREADABLE).write_bytes(b"".join(unreadable))
    return entries


def _locked(path: Path) -> int | None:
    """The lock's file descriptor; None if somebody else holds it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
