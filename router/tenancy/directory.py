"""Tenants and keys in the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Engine, insert, or_, select, update

from router.tenancy import keys as texts
from router.tenancy.database import transaction
from router.tenancy.tables import keys, tenants
from router.tenancy.tenant import NAME, Policy


class Unknown(Exception):
    """One line: the tenant or key that there is none of, or a name or policy that can't be."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept. `digest` is of no use to anyone but a comparison."""

    id: str
    tenant: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    digest: bytes = field(repr=False)

    def works(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class Directory:
    """Tenants with their policies, and their keys. Calls block."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create_key(self, tenant: str, *, name: str = "", lifetime: timedelta | None = None) -> texts.NewKey:
        """A new key; the tenant is made if there is none of that name."""
        with transaction(self._engine) as connection:
            if _policy(connection, tenant) is None:
                self._put(connection, tenant, Policy())
            return self._add(connection, tenant, name, lifetime)

    def rotate_key(self, id: str, *, grace: timedelta, lifetime: timedelta | None = None) -> texts.NewKey:
        """A new key in place of the old one, which works on for `grace`."""
        with transaction(self._engine) as connection:
            old = _key(connection, id)
            now = datetime.now(UTC)
            if old is None or not old.works(now):
                raise Unknown(f"{id}: no such key, or it works no more; `glimprouter keys list` shows them")
            until = now + grace
            if old.expires_at is None or until < old.expires_at:
                connection.execute(update(keys).where(keys.c.id == id).values(expires_at=until))
            return self._add(connection, old.tenant, old.name, lifetime)

    def revoke_key(self, id: str) -> None:
        with transaction(self._engine) as connection:
            if _key(connection, id) is None:
                raise Unknown(f"{id}: no such key; `glimprouter keys list` shows them")
            when = datetime.now(UTC)
            connection.execute(update(keys).where(keys.c.id == id, keys.c.revoked_at.is_(None)).values(revoked_at=when))

    def list_keys(self, tenant: str | None = None) -> list[Key]:
        wanted = select(keys).order_by(keys.c.tenant, keys.c.created_at)
        with transaction(self._engine) as connection:
            return [
                _read(row) for row in connection.execute(wanted if tenant is None else wanted.filter_by(tenant=tenant))
            ]

    def any_key(self) -> bool:
        """Whether anybody could get in."""
        lasting = or_(keys.c.expires_at.is_(None), keys.c.expires_at > datetime.now(UTC))
        with transaction(self._engine) as connection:
            found = connection.execute(select(keys.c.id).where(keys.c.revoked_at.is_(None), lasting).limit(1))
            return found.first() is not None

    def find(self, id: str) -> tuple[Key, Policy] | None:
        """A key and its tenant's policy."""
        with transaction(self._engine) as connection:
            key = _key(connection, id)
            policy = _policy(connection, key.tenant) if key else None
            return (key, policy) if key and policy else None

    def put_tenant(self, tenant: str, changes: Mapping[str, Any]) -> Policy:
        """Make a tenant, or change its policy: fields not named stay as they are. Raises `Unknown`."""
        with transaction(self._engine) as connection:
            before = _policy(connection, tenant)
            try:
                policy = Policy.model_validate((before or Policy()).model_dump() | dict(changes))
            except ValidationError as invalid:
                first = invalid.errors(include_url=False, include_input=False)[0]
                raise Unknown(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
            self._put(connection, tenant, policy, known=before is not None)
            return policy

    def list_tenants(self) -> dict[str, Policy]:
        with transaction(self._engine) as connection:
            rows = connection.execute(select(tenants.c.id, tenants.c.policy).order_by(tenants.c.id))
            return {row.id: _known(row.policy) for row in rows}

    def _put(self, connection: Connection, tenant: str, policy: Policy, *, known: bool = False) -> None:
        kept = policy.model_dump(mode="json", exclude_defaults=True)
        if known:
            before = connection.execute(select(tenants.c.policy).where(tenants.c.id == tenant)).scalar_one()
            newer = {name: value for name, value in before.items() if name not in Policy.model_fields}
            connection.execute(update(tenants).where(tenants.c.id == tenant).values(policy=newer | kept))
            return
        if not NAME.fullmatch(tenant):
            raise Unknown(f"{tenant[:80]!r} can't name a tenant: up to 63 of a-z, 0-9, '.', '_' and '-'")
        connection.execute(insert(tenants).values(id=tenant, policy=kept, created_at=datetime.now(UTC)))

    def _add(self, connection: Connection, tenant: str, name: str, lifetime: timedelta | None) -> texts.NewKey:
        new, now = texts.mint(), datetime.now(UTC)
        expires = None if lifetime is None else now + lifetime
        connection.execute(
            insert(keys).values(
                id=new.id, tenant=tenant, name=name[:100], digest=new.digest, created_at=now, expires_at=expires
            )
        )
        return new


def _key(connection: Connection, id: str) -> Key | None:
    row = connection.execute(select(keys).where(keys.c.id == id)).first()
    return None if row is None else _read(row)


def _read(row: Any) -> Key:
    return Key(row.id, row.tenant, row.name, row.created_at, row.expires_at, row.revoked_at, row.digest)


def _policy(connection: Connection, tenant: str) -> Policy | None:
    row = connection.execute(select(tenants.c.policy).where(tenants.c.id == tenant)).first()
    return None if row is None else _known(row.policy)


def _known(policy: Mapping[str, Any]) -> Policy:
    """What this version knows of a policy that a newer one may have set."""
    return Policy.model_validate({name: value for name, value in policy.items() if name in Policy.model_fields})
