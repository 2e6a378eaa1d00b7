"""The databases and limiters that everything here runs on: the embedded ones, and the real servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from loadtest.servers import Postgres, Redis, postgres_programs, redis_program
from router.request import Event, Finished, ModelUsage, Pair, Request, Text
from router.tenancy.database import connect, upgrade


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if postgres_programs() is None:
        pytest.skip("left out: PostgreSQL is not installed (Debian: apt install postgresql)")
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    if redis_program() is None:
        pytest.skip("left out: Redis is not installed (Debian: apt install redis-server)")
    server = Redis()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/accounts/glimprouter.db"
    url: str = request.getfixturevalue("postgres").url
    engine = connect(url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """A database with the tables."""
    engine = connect(database_url)
    upgrade(engine)
    yield engine
    engine.dispose()


class Answering:
    """A service that answers at once and keeps what it was asked."""

    pair = Pair("9f2c", {"small": "s", "large": "l"}, True, "ids", 4096, 1.0, "large")

    def __init__(self) -> None:
        self.asked: list[Request] = []

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        self.asked.append(request)
        yield Text("content", "Four.")
        yield Finished("stop", {"small": ModelUsage(20, 30, 16)}, 20, 0, 1.0, 0, 1, 0, "9f2c")

    async def ready(self) -> str | None:
        return None


@pytest.fixture
def service() -> Answering:
    return Answering()
