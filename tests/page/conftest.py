"""The page, served by the real API in front of a scripted service, in a real browser that is watched."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from browser import CHROMIUM, chromium, serving
from watched import Script, Watched

from router.api.routes import build

MISSING = "the page's tests need Debian's Chromium (apt-get install chromium) and Playwright with axe (extra `dev`)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM.exists() and find_spec("playwright") and find_spec("axe_playwright_python"):
        return
    for item in items:
        if "running_browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture
def service() -> Script:
    return Script()


@pytest.fixture
async def url(service: Script) -> AsyncIterator[str]:
    async with serving(build(lambda: service, keep_alive_s=0.05)) as url:
        yield url


@pytest.fixture(scope="session")
async def running_browser() -> AsyncIterator[Any]:
    async with chromium() as browser:
        yield browser


@pytest.fixture
async def open_context(running_browser: Any, url: str) -> AsyncIterator[Callable[..., Any]]:
    """Makes watched pages; at the end none may have complained, or asked anybody else."""
    watched: list[Watched] = []

    async def make(**options: Any) -> Watched:
        context = await running_browser.new_context(reduced_motion="reduce", **options)
        context.set_default_timeout(10_000)
        page = Watched(await context.new_page(), url)
        page.watch()
        watched.append(page)
        return page

    yield make
    for page in watched:
        await page.page.context.close()
        assert page.problems == []
        assert page.strangers() == []


@pytest.fixture
async def web(open_context: Callable[..., Any]) -> Watched:
    return await open_context(viewport={"width": 1180, "height": 900})
