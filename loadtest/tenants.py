"""A system of one's own with keys, real PostgreSQL and real Redis, for the commands that measure what tenants get."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtest.command import MeasuringError, environment, serving
from loadtest.servers import Postgres, Redis, postgres_programs, redis_program
from router.tenancy.database import connect, upgrade
from router.tenancy.directory import Directory
from router.tenancy.ledger import Ledger

LAUNCHER = "launcher"


@dataclass(frozen=True, slots=True)
class Office:
    """Where a system's accounts are kept. `keys` by tenant."""

    url: str
    postgres: Postgres
    redis: Redis
    directory: Directory
    ledger: Ledger
    journal: Path
    keys: Mapping[str, str]

    def headers(self, tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[tenant]}"}


@contextmanager
def tenanted(
    profile: Path,
    port: int | None,
    tenants: Mapping[str, Mapping[str, Any]],
    *,
    routers: int = 1,
    admin_key: str | None = None,
    **limits: Any,
) -> Iterator[Office]:
    """The profile with so many routers, these tenants with their policies, and these of its limits changed."""
    if postgres_programs() is None or redis_program() is None:
        raise MeasuringError("this needs PostgreSQL and Redis (Debian: apt install postgresql redis-server)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="glimprouter-accounts-")))
        postgres = stack.enter_context(closing(Postgres()))
        redis = stack.enter_context(closing(Redis()))
        config: dict[str, Any] = yaml.safe_load(profile.read_text())
        args = config["applications"][0]["args"]
        args["router"] = args.get("router", {}) | {"replicas": routers, "cpus": 0.2}
        args["limits"] = args.get("limits", {}) | limits
        args["access"] = {"journal": str(folder / "journal"), "prices": {"small": {"completion": 1}}}
        changed = folder / "profile.yaml"
        changed.write_text(yaml.safe_dump(config))
        engine = connect(postgres.url)
        stack.callback(engine.dispose)
        upgrade(engine)
        directory = Directory(engine)
        keys = {tenant: directory.create_key(tenant).text for tenant in (LAUNCHER, *tenants)}
        for tenant, policy in tenants.items():
            directory.put_tenant(tenant, policy)
        secrets = {
            "GLIMPROUTER_DATABASE_URL": postgres.url,
            "GLIMPROUTER_REDIS_URL": redis.url,
            "GLIMPROUTER_API_KEY": keys[LAUNCHER],
        } | ({"GLIMPROUTER_ADMIN_KEY": admin_key} if admin_key else {})
        stack.enter_context(environment(**secrets))
        url = stack.enter_context(serving(None, changed, port))
        yield Office(url, postgres, redis, directory, Ledger(engine), folder / "journal", keys)
