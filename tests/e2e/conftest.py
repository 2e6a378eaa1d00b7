"""One real system for all whole-system tests: Ray, Serve, and two vLLM engines on the embedded pair."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from system import System, start


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """Set GLIMPROUTER_TEST_URL to use a system that runs already."""
    if url := os.environ.get("GLIMPROUTER_TEST_URL"):
        yield System(url, None)
        return
    running = start()
    yield running
    import ray

    ray.shutdown()
    if running.starter is not None and running.starter.poll() is None:
        running.stop()


@pytest.fixture
async def client(system: System) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=system.url, timeout=120) as http:
        yield http
