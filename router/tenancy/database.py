"""The database: SQLite in a file, or PostgreSQL by URL. Calls block, so routers make them in threads."""

from __future__ import annotations

import asyncio
import fcntl
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_S = 3
STATEMENT_MS = 15_000
PATIENCE = {
    "connect_timeout": CONNECT_S,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
"""With a server that is not heard of any more, for which the system's own timeouts are a quarter of an hour
(https://www.postgresql.org/docs/current/libpq-connect.html)."""

ANSWER_S = 3.0
"""Seconds that a call may take on which a request waits."""

UPGRADE_LOCK = 0x676C696D70  # PostgreSQL's advisory locks are numbers; any one will do


class DatabaseError(Exception):
    """One line that says what is wrong with the database."""


def connect(url: str) -> Engine:
    """An engine for `url`; nothing is opened yet. Raises `DatabaseError` if it is no URL of a supported database."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is none, as behind an @ in a password
        raise DatabaseError("the database URL can't be read: use sqlite:///FILE or postgresql://HOST/NAME") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return _sqlite(parsed)
    if backend == "postgresql":
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_size=4,
            connect_args=PATIENCE | {"options": f"-c statement_timeout={STATEMENT_MS}"},
            hide_parameters=True,
        )
    raise DatabaseError(f"{backend}: not a supported database: use sqlite:///FILE or postgresql://HOST/NAME")


def _sqlite(url: URL) -> Engine:
    file = Path(str(url.database)).expanduser()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unusable(error) from error
    engine = create_engine(
        url.set(drivername="sqlite", database=str(file)), connect_args={"timeout": CONNECT_S}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        # Readers beside one writer, and a writer that waits its turn.
        connection.execute("PRAGMA journal_mode=WAL")
        # What was delivered is in no journal any more: it has to survive the machine.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def upgrade(engine: Engine) -> None:
    """Bring the schema up to date; of several that try, one does it. One that is newer than this version stays as it
    is: newer versions only add to it. Raises `DatabaseError`."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with _alone(engine), engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
            config.attributes["connection"] = connection
            if unknown := _unknown_revision(config, connection):
                log.warning("the database's schema (%s) is newer than this version", unknown)
                return
            command.upgrade(config, "head")
    except (SQLAlchemyError, OSError) as error:
        raise _unusable(error) from error


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction whose failure is a `DatabaseError`."""
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise _unusable(error) from error


async def answered(ask: Callable[..., T], *arguments: Any) -> T:
    """What a call comes to that requests wait for. Raises `DatabaseError` as well where it takes too long: a server
    that hangs holds up the few threads that there are for such calls, and nothing else."""
    return await _within(ANSWER_S, _threads, ask, *arguments)


async def reported(ask: Callable[..., T], *arguments: Any) -> T:
    """The same of a report, which may take longer, and of which there is one at a time."""
    return await _within(STATEMENT_MS / 1000, _reports, ask, *arguments)


async def _within(seconds: float, threads: ThreadPoolExecutor, ask: Callable[..., T], *arguments: Any) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.get_running_loop().run_in_executor(threads, ask, *arguments)
    except TimeoutError:
        raise DatabaseError(f"the database can't be used: no answer within {seconds:g} s") from None


_threads, _reports = ThreadPoolExecutor(4, "database"), ThreadPoolExecutor(1, "reports")


def _unusable(error: Exception) -> DatabaseError:
    """The first line of what the driver says, which holds no password."""
    cause = getattr(error, "orig", None) or error
    line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return DatabaseError(f"the database can't be used: {line}")


def _unknown_revision(config: Config, connection: Connection) -> str | None:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    at = MigrationContext.configure(connection).get_current_revision()
    return at if at is not None and at not in known else None


def _alone(engine: Engine) -> Any:
    """SQLite has no lock that outlasts a schema change's implicit commits: a file beside the database is one."""
    return _file_lock(f"{engine.url.database}.upgrade") if engine.dialect.name == "sqlite" else nullcontext()


@contextmanager
def _file_lock(path: str) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
