"""Axe finds nothing to say about the page, in either scheme, on a desk or in a hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from watched import QUESTION, Script

from router.request import Refusal


async def complaints(page: Any) -> list[str]:
    """What axe finds. Every rule counts, also those that it only calls best practice."""
    if not await page.evaluate("'axe' in globalThis"):
        from axe_playwright_python.base import AXE_SCRIPT

        await page.evaluate(AXE_SCRIPT)
    found = await page.evaluate("axe.run({resultTypes: ['violations']})")
    return [f"{rule['id']}: {rule['nodes'][0]['html']}" for rule in found["violations"]]


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
