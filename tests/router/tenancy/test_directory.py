from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from router.tenancy import keys
from router.tenancy.database import DatabaseError, connect, upgrade
from router.tenancy.directory import Directory, Unknown
from router.tenancy.tables import metadata
from router.tenancy.tenant import Policy


@pytest.fixture
def directory(database: Engine) -> Directory:
    return Directory(database)


def now() -> datetime:
    return datetime.now(UTC)


def test_the_migrations_make_the_tables_that_the_code_uses(database: Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_several_that_upgrade_at_once_upgrade_once(database_url: str) -> None:
    failed = []

    def one() -> None:
        try:
            upgrade(connect(database_url))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {"tenants", "keys", "requests"} <= set(inspect(connect(database_url)).get_table_names())


def test_a_key_leads_to_its_tenant_and_policy(directory: Directory) -> None:
    key = directory.create_key("acme", name="ci")
    directory.put_tenant("acme", {"requests_per_minute": 60, "models": ["small"]})
    found = directory.find(key.id)
    assert found is not None
    kept, policy = found
    assert (kept.tenant, kept.name) == ("acme", "ci")
    assert keys.same(kept.digest, key.text)
    assert policy == Policy(requests_per_minute=60, models=frozenset({"small"}))
    assert directory.find("0" * 12) is None


def test_a_newer_versions_database_is_used_as_far_as_it_is_known(directory: Directory, database: Engine) -> None:
    directory.put_tenant("acme", {"requests_per_minute": 5})
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        kept = json.dumps({"requests_per_minute": 5, "colour": "red"})
        connection.execute(text("UPDATE tenants SET policy = :kept"), {"kept": kept})
    upgrade(database)
    assert directory.list_tenants() == {"acme": Policy(requests_per_minute=5)}
    directory.put_tenant("acme", {"weight": 2.0})
    with database.connect() as connection:
        policy = connection.execute(text("SELECT policy FROM tenants")).scalar_one()
    assert (policy if isinstance(policy, dict) else json.loads(policy)) == {
        "requests_per_minute": 5,
        "weight": 2.0,
        "colour": "red",
    }


def test_the_database_does_not_hold_the_key(directory: Directory, database: Engine) -> None:
    key = directory.create_key("acme")
    with database.connect() as connection:
        rows = [tuple(row) for row in connection.execute(text("SELECT * FROM keys"))]
    assert key.text.split("_", 2)[2] not in repr(rows)
    assert key.text.encode() not in b"".join(bytes(v) for row in rows for v in row if isinstance(v, bytes | memoryview))


def test_keys_expire_and_are_revoked(directory: Directory) -> None:
    short = directory.create_key("acme", lifetime=timedelta(hours=1))
    lasting = directory.create_key("acme")
    by_id = {key.id: key for key in directory.list_keys("acme")}
    assert by_id[short.id].works(now())
    assert not by_id[short.id].works(now() + timedelta(hours=2))
    assert by_id[lasting.id].works(now() + timedelta(days=10_000))
    directory.revoke_key(lasting.id)
    assert not {key.id: key for key in directory.list_keys()}[lasting.id].works(now())
    with pytest.raises(Unknown, match="no such key"):
        directory.revoke_key("0" * 12)


def test_a_rotated_key_works_on_for_a_while(directory: Directory) -> None:
    old = directory.create_key("acme", name="ci")
    new = directory.rotate_key(old.id, grace=timedelta(hours=1))
    by_id = {key.id: key for key in directory.list_keys("acme")}
    assert by_id[new.id].name == "ci"
    assert by_id[old.id].works(now())
    assert not by_id[old.id].works(now() + timedelta(hours=1, minutes=1))
    assert by_id[new.id].works(now() + timedelta(days=10_000))


def test_rotating_does_not_lengthen_a_life(directory: Directory) -> None:
    old = directory.create_key("acme", lifetime=timedelta(minutes=5))
    directory.rotate_key(old.id, grace=timedelta(days=1))
    kept = {key.id: key for key in directory.list_keys()}[old.id]
    assert not kept.works(now() + timedelta(minutes=6))


def test_any_key_is_one_that_works(directory: Directory) -> None:
    assert not directory.any_key()
    revoked = directory.create_key("acme")
    directory.revoke_key(revoked.id)
    directory.create_key("acme", lifetime=timedelta(seconds=-1))
    assert not directory.any_key()
    directory.create_key("acme")
    assert directory.any_key()


def test_a_policy_is_changed_field_by_field(directory: Directory) -> None:
    directory.put_tenant("acme", {"requests_per_minute": 60, "weight": 2})
    directory.put_tenant("acme", {"requests_per_minute": None, "priority": "high"})
    assert directory.list_tenants() == {"acme": Policy(weight=2, priority="high")}


@pytest.mark.parametrize(
    "changes", [{"priority": "best"}, {"requests_per_minute": 0}, {"nonsense": 1}, {"models": []}, {"weight": "nan"}]
)
def test_a_bad_policy_is_refused_and_changes_nothing(directory: Directory, changes: dict[str, object]) -> None:
    directory.put_tenant("acme", {"weight": 2})
    with pytest.raises(Unknown, match=next(iter(changes))):
        directory.put_tenant("acme", changes)
    assert directory.list_tenants() == {"acme": Policy(weight=2)}


@pytest.mark.parametrize("name", ["", "Acme", "a b", "-a", "a" * 64, "a/b", "ä"])
def test_a_tenant_has_a_plain_name(directory: Directory, name: str) -> None:
    with pytest.raises(Unknown, match="can't name a tenant"):
        directory.create_key(name)


@pytest.mark.parametrize("url", ["mysql://h/d", "sqlite://", "nonsense", "oracle://x:y@h/d"])
def test_a_database_of_another_kind_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(DatabaseError, match="sqlite:///FILE"):
        connect(url)


def test_a_database_that_is_away_is_told_without_its_password() -> None:
    engine = connect("postgresql://me:s3cret@127.0.0.1:1/none")
    with pytest.raises(DatabaseError) as caught:
        Directory(engine).list_keys()
    assert "s3cret" not in str(caught.value) + repr(engine)
    assert "\n" not in str(caught.value)
