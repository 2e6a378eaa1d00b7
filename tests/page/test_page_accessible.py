"""Axe finds nothing to say about the page, in either scheme, on a desk or in a hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from watched import QUESTION, Script

from router.request import Refusal

axe = pytest.importorskip("axe_playwright_python.async_playwright", reason="the page's tests need axe")


async def complaints(page: Any) -> list[str]:
    # Every rule counts, also those that axe only calls best practice.
    results = await axe.Axe().run(page)
    return [f"{found['id']}: {found['nodes'][0]['html']}" for found in results.response["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1180, 900), (360, 780)], ids=["desktop", "phone"])
async def test_axe_is_content(
    open_context: Callable[..., Any], service: Script, width: int, height: int, scheme: str
) -> None:
    web = await open_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    web.expected = ("401",)
    page = await web.open()

    async def fits() -> bool:
        return await page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    assert await complaints(page) == []
    assert await fits()

    await web.ask()
    await web.over()
    await page.locator("#threshold").fill("0.3")
    await page.locator(".flipped").first.wait_for()
    await page.click("#link")
    assert await complaints(page) == []
    assert await fits()

    await page.fill("#question", QUESTION)
    await page.click("#compare")
    await web.over()
    assert await complaints(page) == []
    assert await fits()

    service.refusal = Refusal("No key was given.", status=401)
    await web.ask()
    await page.locator("#key").wait_for()
    assert await complaints(page) == []
    assert await fits()
