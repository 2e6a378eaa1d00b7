"""The operator's commands, as they are run."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from pathlib import Path

import pytest
from entries import entry
from typer.testing import CliRunner

from deployments.cli import app
from deployments.tenants import duration
from router.tenancy import keys
from router.tenancy.database import connect
from router.tenancy.directory import Directory
from router.tenancy.ledger import Ledger


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/keys.db"
    monkeypatch.setenv("GLIMPROUTER_DATABASE_URL", url)
    return url


def run(*arguments: str, fails: bool = False) -> tuple[str, str]:
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code != 0) == fails, done.output
    return done.stdout, done.stderr


def test_a_key_is_printed_alone_once(database: str) -> None:
    printed, said = run("keys", "create", "acme", "--name", "ci", "--expires", "90d")
    text = printed.strip()
    id = keys.id_of(text)
    assert id is not None
    assert text not in said
    listed, _ = run("keys", "list")
    assert id in listed
    assert "works" in listed
    assert text.split("_", 2)[2] not in listed
    found = Directory(connect(database)).find(id)
    assert found is not None
    assert found[0].expires_at is not None
    assert found[0].expires_at - found[0].created_at == timedelta(days=90)


@pytest.mark.parametrize("name", ["[/]", "ci [prod]", ":smile:"])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    run("keys", "create", "acme", "--name", name)
    assert name in run("keys", "list")[0]


def test_keys_are_rotated_and_revoked() -> None:
    old = keys.id_of(run("keys", "create", "acme")[0].strip())
    assert old is not None
    new = keys.id_of(run("keys", "rotate", old, "--grace", "30m")[0].strip())
    assert new not in (None, old)
    run("keys", "revoke", old)
    states = {line.split()[0]: line.split()[-1] for line in run("keys", "list")[0].splitlines() if "acme" in line}
    assert states == {old: "revoked", new: "works"}
    _, said = run("keys", "rotate", old, fails=True)
    assert said.startswith(f"glimprouter: {old}: no such key")
    assert said.count("\n") == 1


def test_a_tenants_policy_is_set_field_by_field() -> None:
    run("tenants", "set", "acme", "requests_per_minute=60", "models=glimpse,small", "priority=high")
    run("tenants", "set", "acme", "requests_per_minute=none", "weight=2.5")
    listed, _ = run("tenants", "list")
    assert "models=glimpse,small priority=high weight=2.5" in listed
    assert "requests_per_minute" not in listed
    for bad in ("priority=best", "nonsense=1", "weight"):
        _, said = run("tenants", "set", "acme", bad, fails=True)
        assert bad.partition("=")[0] in said


def test_usage_can_be_had_as_csv(database: str) -> None:
    run("keys", "create", "acme")
    Ledger(connect(database)).add([entry("a"), entry("b"), entry("c", tenant="other")])
    rows = list(csv.DictReader(io.StringIO(run("usage", "--csv")[0])))
    assert [(row["tenant"], row["requests"], row["cost"]) for row in rows] == [
        ("acme", "2", "0.000002"),
        ("other", "1", "0.000001"),
    ]
    assert rows[0]["small_completion_tokens"] == "40"
    assert "other" not in run("usage", "--tenant", "acme")[0]
    run("usage", "--since", "nonsense", fails=True)


def test_a_database_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIMPROUTER_DATABASE_URL", "postgresql://me:s3cret@127.0.0.1:1/none")
    _, said = run("keys", "list", fails=True)
    assert said.startswith("glimprouter: the database can't be used")
    assert said.count("\n") == 1
    assert "s3cret" not in said


@pytest.mark.parametrize("url", ["postgresql://me:s3@cret:word@host/db", "postgresql://host:PORT/db"])
def test_a_database_url_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("GLIMPROUTER_DATABASE_URL", url)
    _, said = run("keys", "list", fails=True)
    assert said.startswith("glimprouter: the database URL can't be read")
    assert said.count("\n") == 1
    assert "word" not in said


def test_durations() -> None:
    assert [duration(text) for text in ("30m", "12h", "90d")] == [
        timedelta(minutes=30),
        timedelta(hours=12),
        timedelta(days=90),
    ]
