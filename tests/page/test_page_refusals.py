"""Refusals, failures and hostile text, in Chromium."""

from __future__ import annotations

from typing import Any

from watched import HOSTILE, Script, Watched, finished, step, texts

from router.request import Refusal, Text


async def test_hostile_output_stays_text(web: Watched, service: Script) -> None:
    service.script = [
        Text("reasoning", HOSTILE + "\n\n"),
        step(0, "large", 2.0, HOSTILE + "\n\n"),
        Text("reasoning", HOSTILE),
        Text("content", HOSTILE),
        finished(0, 20),
    ]
    page = await web.open()
    await web.ask(HOSTILE)
    await web.over()
    assert await texts(page) == [HOSTILE]
    assert await page.locator(".answer .text").inner_text() == HOSTILE
    assert await page.locator(".pending .text").inner_text() == HOSTILE
    assert await page.locator("#asked").inner_text() == HOSTILE
    assert await page.locator("main img, main script, main a").count() == 0


async def test_a_hostile_refusal_stays_text(web: Watched, service: Script) -> None:
    web.expected = ("400",)
    service.refusal = Refusal(HOSTILE)
    page = await web.open()
    await web.ask()
    await web.over()
    assert await page.locator("#problem").inner_text() == HOSTILE
    assert await page.locator("#problem *").count() == 0


async def test_a_refusal_is_one_plain_line(web: Watched, service: Script) -> None:
    web.expected = ("429",)
    service.refusal = Refusal("Too much at once.", status=429, retry_after_s=7)
    page = await web.open()
    await web.ask()
    await web.over()
    assert await page.locator("#problem").inner_text() == "Too much at once. Try again in 7 s."
    assert await page.locator("#key-row").is_hidden()


async def test_a_failure_half_way_keeps_what_was_written(web: Watched, service: Script) -> None:
    service.script = [
        Text("reasoning", "One.\n\n"),
        step(0, "small", 0.1, "One.\n\n"),
        Refusal("The large pool is gone.", status=503),
    ]
    page = await web.open()
    await web.ask()
    await web.over()
    assert await page.locator("#problem").inner_text() == "The large pool is gone."
    assert await texts(page) == ["One."]


async def test_a_server_that_is_gone_is_one_plain_line(web: Watched) -> None:
    web.expected = ("Failed to load resource", "net::")
    page = await web.open()
    await page.route("**/v1/chat/completions", lambda route: route.abort())
    await web.ask()
    await web.over()
    assert await page.locator("#problem").inner_text() == "The server can't be reached."


async def test_a_key_is_asked_for_only_where_one_is_needed(web: Watched, service: Script) -> None:
    web.expected = ("401",)
    seen: list[str | None] = []

    async def guard(route: Any) -> None:
        seen.append(await route.request.header_value("authorization"))
        if seen[-1] == "Bearer sesame":
            await route.continue_()
        else:
            error = {"error": {"message": "No key was given.", "type": "authentication_error"}}
            await route.fulfill(status=401, json=error)

    page = await web.open()
    assert await page.locator("#key-row").is_hidden()
    await page.route("**/v1/chat/completions", guard)
    await web.ask()
    await web.over()
    assert await page.locator("#problem").inner_text() == "No key was given."
    await page.locator("#key:focus").wait_for()
    await page.keyboard.type("sesame")
    await page.keyboard.press("Enter")
    await page.locator(".answer").wait_for()
    assert seen == [None, "Bearer sesame"]
    assert await page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
