"""From the journal to the database, in batches behind the requests."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from pathlib import Path

from router.tenancy import journal as files
from router.tenancy.database import DatabaseError
from router.tenancy.journal import Journal
from router.tenancy.ledger import Ledger

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 10.0


class Delivery:
    """Delivers every `every_s` seconds; while the database is away, less and less often.

    until: what was written to the journal before is in the database; seconds of the monotonic clock.
    """

    def __init__(self, journal: Journal, ledger: Ledger, every_s: float) -> None:
        self._journal, self._ledger, self._every_s = journal, ledger, every_s
        self._task: asyncio.Task[None] | None = None
        self.until = -math.inf

    def start(self) -> None:
        """Once, on the router's event loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def deliver(self) -> None:
        """All that was written. Raises `DatabaseError`; what was not delivered stays."""
        began = time.monotonic()
        await self._journal.close_segment()
        for segment in list(self._journal.segments()):
            await asyncio.to_thread(self._deliver, segment)
        self.until = began

    async def stop(self) -> None:
        """For the end of a router whose disk may go with it: what it wrote last is delivered now."""
        if self._task is not None:
            self._task.cancel()
        try:
            await self.deliver()
        except DatabaseError as error:
            log.warning("accounts stay in the journal: %s", error)

    def _deliver(self, segment: Path) -> None:
        try:
            entries = files.read(segment)
        except FileNotFoundError:
            return  # another router delivered it
        if entries:
            self._ledger.add(entries)
        segment.unlink(missing_ok=True)

    async def _run(self) -> None:
        pause = self._every_s
        while True:
            await asyncio.sleep(pause)
            try:
                await self.deliver()
                pause = self._every_s
            except DatabaseError as error:
                pause = min(2 * pause, max(LONGEST_PAUSE_S, self._every_s))
                log.warning("accounts stay in the journal, next try in %.0f s: %s", pause, error)
            except Exception:
                log.exception("delivering accounts failed")
                pause = min(2 * pause, max(LONGEST_PAUSE_S, self._every_s))
