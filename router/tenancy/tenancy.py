"""What a router replica holds of all this."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from router.request import Model, Refusal
from router.tenancy.comparisons import Comparisons
from router.tenancy.database import connect, upgrade
from router.tenancy.delivery import Delivery
from router.tenancy.directory import Directory
from router.tenancy.fairness import FairQueue
from router.tenancy.gate import Gate
from router.tenancy.journal import Journal
from router.tenancy.ledger import Entry, Ledger
from router.tenancy.limits import Limits
from router.tenancy.settings import DATABASE_URL, Access, Price, admin_key, loopback
from router.tenancy.spending import Bill, Budgets
from router.tenancy.tenant import Caller

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Accounts:
    """The ledger, and the way into it; what shadow runs found."""

    ledger: Ledger
    budgets: Budgets
    journal: Journal
    delivery: Delivery
    comparisons: Comparisons


@dataclass(frozen=True, slots=True)
class Tenancy:
    """The gate in front of a router, its callers' limits and turns, and their accounts; without a database there are
    none."""

    gate: Gate
    limits: Limits
    queue: FairQueue
    prices: Mapping[Model, Price]
    accounts: Accounts | None = None

    @classmethod
    def open(cls, access: Access, *, host: str | None, places: int) -> Tenancy:
        """Connects to what `access` names. Raises `PermissionError` where strangers could get in.

        host: where the server listens. places: requests that this router writes at a time.
        """
        limits = Limits(access.redis_url, down=access.redis_down)
        queue = FairQueue(places, access.max_waiting, access.max_wait_s)

        def crowded(caller: Caller) -> bool:
            return queue.refuses(caller.tenant, caller.policy.priority, caller.policy.weight)

        if access.database_url is None:
            if not (access.behind_gateway or host is None or loopback(host)):
                raise PermissionError(f"without keys, anyone could use a server on {host}: set {DATABASE_URL}")
            gate = Gate(None, local=not access.behind_gateway, admin_key=admin_key(), crowded=crowded)
            return cls(gate, limits, queue, access.prices)
        engine = connect(access.database_url)
        upgrade(engine)
        gate = Gate(
            Directory(engine),
            admin_key=admin_key(),
            cache_s=access.key_cache_s,
            count=limits.request,
            crowded=crowded,
        )
        ledger, journal = Ledger(engine), Journal(access.journal_folder)
        delivery = Delivery(journal, ledger, access.delivery_s)
        budgets = Budgets(ledger, delivered=lambda: delivery.until)
        accounts = Accounts(ledger, budgets, journal, delivery, Comparisons(engine, access.prices))
        return cls(gate, limits, queue, access.prices, accounts)

    @property
    def ledger(self) -> Ledger | None:
        return self.accounts.ledger if self.accounts else None

    def start(self) -> None:
        """Begin delivering accounts. Once the event loop runs; again does nothing."""
        if self.accounts is not None:
            self.accounts.delivery.start()

    async def stop(self) -> None:
        """Deliver what is left of them."""
        if self.accounts is not None:
            await self.accounts.delivery.stop()

    async def reserve(self, caller: Caller, most: Bill) -> None:
        """Set aside what a request may come to in its tenant's budget. Raises a `Refusal`."""
        if self.accounts is not None:
            await self.accounts.budgets.reserve(caller, most)

    def settle(self, caller: Caller, most: Bill, used: Bill) -> None:
        if self.accounts is not None:
            self.accounts.budgets.settle(caller, most, used)

    async def keep(self, entry: Entry) -> None:
        """Put an entry where no crash of this machine loses it. Raises a `Refusal` if that can't be done."""
        if self.accounts is None:
            return
        try:
            self.accounts.journal.write(entry)
            await self.accounts.journal.sync()
        except OSError as error:
            log.error("an account can't be kept (%s): the request is refused", error)
            message = "The request can't be accounted for at present; try again."
            raise Refusal(message, status=503, code="accounts_unavailable", retry_after_s=2.0) from error

    def keep_at_once(self, entry: Entry) -> None:
        """Put an entry where no crash of this process loses it."""
        if self.accounts is None:
            return
        try:
            self.accounts.journal.write(entry)
        except OSError as error:
            log.error("an account can't be kept (%s): %s", error, entry)
