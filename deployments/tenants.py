"""`glimprouter keys`, `tenants`, `usage` and `shadow`: what an operator does with the tenants' database."""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from router.tenancy.directory import Key

DEFAULT_DATABASE = "sqlite:///~/.glimprouter/glimprouter.db"
UNITS = {"m": "minutes", "h": "hours", "d": "days"}

keys = typer.Typer(help="Make, list, revoke and rotate API keys.", no_args_is_help=True)
tenants = typer.Typer(help="List tenants, and set what they may do.", no_args_is_help=True)
shadow = typer.Typer(help="What routing would change, on your own traffic.", no_args_is_help=True)


def duration(text: str | timedelta) -> timedelta:
    """Reads 90d, 12h or 30m."""
    if isinstance(text, timedelta):  # an option's default
        return text
    found = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is not a duration like 90d, 12h or 30m")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


Database = Annotated[
    str, typer.Option(help="sqlite:///FILE or postgresql://HOST/NAME.", envvar="GLIMPROUTER_DATABASE_URL")
]
Lifetime = Annotated[
    timedelta | None,
    typer.Option(parser=duration, metavar="TIME", help="How long it works, e.g. 90d. Default: for ever."),
]


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    """The database with its schema up to date; what goes wrong is one line."""
    from router.tenancy.database import DatabaseError, connect, upgrade
    from router.tenancy.directory import Unknown

    try:
        engine = connect(url)
        upgrade(engine)
        yield engine
        engine.dispose()
    except (DatabaseError, Unknown) as error:
        typer.echo(f"glimprouter: {error}", err=True)
        raise typer.Exit(1) from None


@keys.command("create")
def create_key(
    tenant: Annotated[str, typer.Argument(help="Whose key; a tenant that there is none of is made.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Lifetime = None,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Make a key. It is shown once: only its digest is kept."""
    from router.tenancy.directory import Directory

    with opened(database) as engine:
        key = Directory(engine).create_key(tenant, name=name, lifetime=expires)
    typer.echo(key.text)
    typer.echo(f"Key {key.id} of {tenant}; it is not shown again.{_served_by(database)}", err=True)


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """List keys: their ids, never the keys."""
    from router.tenancy.directory import Directory

    now = datetime.now(UTC)
    with opened(database) as engine:
        rows = [
            (key.id, key.tenant, key.name, _day(key.created_at), _day(key.expires_at), _state(key, now))
            for key in Directory(engine).list_keys(tenant)
        ]
    _table(("id", "tenant", "name", "created", "expires", "state"), rows)


@keys.command("revoke")
def revoke_key(id: Annotated[str, typer.Argument(help="The key's id.")], database: Database = DEFAULT_DATABASE) -> None:
    """End a key. Routers notice within seconds."""
    from router.tenancy.directory import Directory

    with opened(database) as engine:
        Directory(engine).revoke_key(id)
    typer.echo(f"{id} is revoked")


@keys.command("rotate")
def rotate_key(
    id: Annotated[str, typer.Argument(help="The id of the key to replace.")],
    grace: Annotated[
        timedelta, typer.Option(parser=duration, metavar="TIME", help="How long the old one works on.")
    ] = timedelta(hours=24),
    expires: Lifetime = None,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Make a key in place of another, which works on for a while."""
    from router.tenancy.directory import Directory

    with opened(database) as engine:
        key = Directory(engine).rotate_key(id, grace=grace, lifetime=expires)
    typer.echo(key.text)
    typer.echo(f"Key {key.id}; it is not shown again. {id} works on until it expires or for {grace}.", err=True)


@tenants.command("list")
def list_tenants(database: Database = DEFAULT_DATABASE) -> None:
    """List tenants and their policies."""
    from router.tenancy.directory import Directory

    with opened(database) as engine:
        found = Directory(engine).list_tenants()
    rows = [
        (name, " ".join(f"{field}={_said(value)}" for field, value in policy.model_dump(exclude_defaults=True).items()))
        for name, policy in found.items()
    ]
    _table(("tenant", "policy"), rows)


@tenants.command("set")
def set_tenant(
    tenant: Annotated[str, typer.Argument(help="Whose policy; a tenant that there is none of is made.")],
    fields: Annotated[list[str], typer.Argument(metavar="FIELD=VALUE...", help="`none` takes a bound away.")],
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Set what a tenant may do, e.g. `tenants set acme requests_per_minute=60 models=glimpse,small priority=high`.

    Fields: requests_per_minute, tokens_per_minute, concurrent_requests, monthly_tokens, monthly_cost, models, priority
    (high, normal, low), weight, threshold, token_threshold, max_large_share, max_context, max_output.
    """
    from router.tenancy.directory import Directory

    changes: dict[str, object] = {}
    for field in fields:
        name, given, value = field.partition("=")
        if not given:
            raise typer.BadParameter(f"{field!r} is not FIELD=VALUE")
        listed = value.split(",") if name == "models" else value
        changes[name] = None if value.lower() == "none" else listed
    with opened(database) as engine:
        policy = Directory(engine).put_tenant(tenant, changes)
    typer.echo(policy.model_dump_json(exclude_defaults=True))


def usage(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    since: Annotated[str | None, typer.Option(metavar="DAY", help="Default: the first of the month, in UTC.")] = None,
    until: Annotated[str | None, typer.Option(metavar="DAY", help="Default: today.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated, with a header.")] = False,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Show what tenants used, by day and model."""
    from router.request import Refusal
    from router.tenancy.ledger import TOKENS, Ledger
    from router.tenancy.routes import period

    try:
        first, last = period(since, until)
    except Refusal as refusal:
        raise typer.BadParameter(refusal.message) from None
    with opened(database) as engine:
        used = Ledger(engine).use(tenant, first, last)
    head = ("tenant", "day", "model", "requests", *TOKENS, "discarded_tokens", "cost")
    rows = [
        (
            use.tenant,
            use.day.isoformat(),
            use.model,
            str(use.requests),
            *(str(use.tokens[name]) for name in TOKENS),
            str(use.discarded_tokens),
            f"{use.cost:.9f}".rstrip("0").rstrip("."),
        )
        for use in used
    ]
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(head)
        writer.writerows(rows)
    else:
        _table(tuple(name.removesuffix("_tokens").replace("_", " ") for name in head), rows)


@shadow.callback()
def _shadow() -> None:
    """So that `report` stays a command of its own."""


@shadow.command("report")
def shadow_report(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    since: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A day in UTC. Default: all.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated, with a header.")] = False,
    database: Database = DEFAULT_DATABASE,
) -> None:
    """Compare routed requests with the large model alone, by tenant, pair and thresholds (profile: `shadow.share`)."""
    from loadtest.intervals import share
    from router.tenancy.comparisons import Comparisons

    with opened(database) as engine:
        found = Comparisons(engine, {}).report(tenant, since and since.replace(tzinfo=UTC))
    head = (
        *("tenant", "pair", "threshold", "token threshold", "compared", "agree", "agree low", "agree high"),
        *("seconds routed", "seconds large", "large tokens saved", "cost saved"),
    )
    rows = [
        (
            one.tenant or "anonymous",
            one.pair,
            f"{one.threshold:g}",
            "" if one.token_threshold is None else f"{one.token_threshold:g}",
            str(one.compared),
            *(f"{part:.1%}" for part in astuple(share(one.agreed, one.compared))),
            f"{one.routed_s / one.compared:.2f}",
            f"{one.large_s / one.compared:.2f}",
            f"{_saved(one.routed_large_tokens, one.large_tokens):.1%}",
            f"{_saved(one.routed_cost_nano, one.large_cost_nano):.1%}" if one.large_cost_nano else "no prices",
        )
        for one in found
    ]
    if as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(head)
        writer.writerows(rows)
    elif rows:
        _table(head, rows)
    else:
        typer.echo("Nothing was compared yet: set shadow.share in the profile, and wait for the large pool to be idle.")


def _saved(routed: int, large: int) -> float:
    return 1 - routed / large if large else 0.0


def _served_by(database: str) -> str:
    if database == DEFAULT_DATABASE and not os.environ.get("GLIMPROUTER_DATABASE_URL"):
        return f"\nA server asks for keys when it is started with GLIMPROUTER_DATABASE_URL={DEFAULT_DATABASE}"
    return ""


def _state(key: Key, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "works" if key.works(now) else "expired"


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _said(value: object) -> str:
    return ",".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    # Names are anybody's words, not rich's.
    width = None if sys.stdout.isatty() else 240
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)
