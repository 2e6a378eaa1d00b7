"""Takes the README's pictures of the page, and records the run that the page shows before anything is asked.

python tests/page/pictures.py --url http://127.0.0.1:8000            docs/images/page-*.png from a running server
python tests/page/pictures.py --url http://127.0.0.1:8000 --record   router/page/example.json as well
python tests/page/pictures.py                                        the same pictures from made-up runs
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from browser import chromium, serving  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.async_api import Page  # noqa: E402
from shopping import Shopping  # noqa: E402

from deployments.pocket.problems import EXAMPLES  # noqa: E402
from router.api.routes import build  # noqa: E402

SIZES = {"desktop": (1180, 1000), "phone": (360, 800)}
MOST_BYTES = 200_000


async def _asked(page: Page, url: str, button: str) -> None:
    await page.goto(url)
    await page.locator("#examples button").first.wait_for()
    await page.fill("#question", EXAMPLES[0][0])
    await page.click(button)
    # Not wait_for_function: that evaluates a string, which the page's policy forbids.
    await page.locator("#status:not(:empty)").wait_for(timeout=300_000)
    await page.mouse.move(0, 0)
    await page.evaluate("document.activeElement.blur()")
    await _settle(page, "body")


async def _settle(page: Page, top: str) -> None:
    await page.locator(top).evaluate("(element) => element.scrollIntoView()")
    await page.wait_for_timeout(200)


async def _picture(page: Page, name: str, folder: Path, *, full_page: bool = False) -> None:
    path = folder / f"{name}.png"
    await page.screenshot(path=path, full_page=full_page)
    # A page has few colours; as a palette it is half the size.
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}  {size // 1000} kB{'  TOO LARGE' if size > MOST_BYTES else ''}")


async def take(url: str, folder: Path, record: bool) -> None:
    async with chromium() as browser:
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                context = await browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
                )
                page = await context.new_page()
                await _asked(page, url, "#ask")
                if record:
                    await _record(page)
                    record = False
                    await _settle(page, "body")
                if size == "phone":
                    await _settle(page, "#run")
                await _picture(page, f"page-{size}-{scheme}", folder)
                if size == "desktop" and scheme == "light":
                    await page.locator("#threshold").fill("3")
                    await _settle(page, "body")
                    await _picture(page, "page-threshold", folder)
                    await _asked(page, url, "#compare")
                    await _picture(page, "page-side-by-side", folder, full_page=True)
                await context.close()


async def _record(page: Page) -> None:
    async with page.expect_download() as download:
        await page.click("#download")
    await (await download.value).save_as(ROOT / "router/page/example.json")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; without it the runs are made up")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images", help="folder for the pictures")
    parser.add_argument("--record", action="store_true", help="replace the page's example by the first run")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.record and not asked.url:
        parser.error("--record needs --url: an example has to be a real run")
    if asked.url:
        await take(asked.url, asked.out, asked.record)
    else:
        async with serving(build(Shopping)) as url:
            await take(url, asked.out, asked.record)


if __name__ == "__main__":
    asyncio.run(main())
