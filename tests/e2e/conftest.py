"""One real system for all whole-system tests: Ray, Serve, and two vLLM engines on the embedded pair."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from system import System, start

from loadtest.receiver import Receiver, receiving


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture(scope="session")
def system(receiver: Receiver) -> Iterator[System]:
    """Set GLIMPROUTER_TEST_URL to use a system that runs already. One of our own traces what it is asked to trace."""
    if url := os.environ.get("GLIMPROUTER_TEST_URL"):
        yield System(url, None)
        return
    running = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_TRACES_SAMPLER="parentbased_always_off",
        OTEL_BSP_SCHEDULE_DELAY="500",
    )
    yield running
    import ray

    ray.shutdown()
    if running.starter is not None and running.starter.poll() is None:
        running.stop()


@pytest.fixture
async def client(system: System) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=system.url, timeout=120) as http:
        yield http
