"""Transcripts as files and links, in Chromium."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shopping import reasoning
from watched import HOSTILE, QUESTION, Script, Watched, finished, models, step, texts


async def test_a_transcript_goes_into_a_file_and_comes_back(web: Watched, open_context: Any, tmp_path: Path) -> None:
    page = await web.open()
    await web.ask()
    await web.over()
    async with page.expect_download() as download:
        await page.click("#download")
    file = tmp_path / "transcript.json"
    await (await download.value).save_as(file)
    transcript = json.loads(file.read_text())
    steps, answer = reasoning(QUESTION)
    assert transcript["question"] == QUESTION
    assert [step["text"] for step in transcript["lanes"][0]["steps"]] == [step.text for step in steps]
    assert transcript["lanes"][0]["answer"] == answer

    other = await open_context()
    reader = await other.open()
    await reader.set_input_files("#file", file)
    await reader.get_by_text("opened from transcript.json").wait_for()
    assert await texts(reader) == await texts(page)
    assert await models(reader) == await models(page)
    assert await reader.locator("#tally").inner_text() == await page.locator("#tally").inner_text()


async def test_a_transcript_knows_who_wrote_a_step_together(web: Watched, service: Script, open_context: Any) -> None:
    service.pair = replace(service.pair, token_threshold=0.5)
    service.script = [step(0, "small", 0.2, "Two.\n\n", tokens=20, large=5), finished(15, 5, tokens=0.5)]
    page = await web.open()
    await web.ask()
    await web.over()
    await page.click("#link")
    await page.locator("#link-text").wait_for()
    link = await page.input_value("#link-text")
    other = await open_context()
    reader = await other.open(link.removeprefix(f"{web.url}/"))
    await reader.get_by_text("opened from a link").wait_for()
    assert await reader.locator(".shared").all_inner_texts() == ["large wrote 5 of these 20 tokens"]
    assert await reader.locator("#tally").inner_text() == await page.locator("#tally").inner_text()


async def test_a_link_opens_the_transcript_and_tells_the_server_nothing(
    web: Watched, service: Script, open_context: Any
) -> None:
    page = await web.open()
    await page.fill("#question", QUESTION)
    await page.click("#compare")
    await web.over()
    await page.click("#link")
    await page.locator("#link-text").wait_for()
    link = await page.input_value("#link-text")
    assert "#t=z." in link
    asked = len(service.requests)

    other = await open_context()
    reader = await other.open(link.removeprefix(f"{web.url}/"))
    await reader.get_by_text("opened from a link").wait_for()
    assert await texts(reader) == await texts(page)
    assert await reader.locator("#summary").inner_text() == await page.locator("#summary").inner_text()
    assert await reader.input_value("#question") == QUESTION
    assert len(service.requests) == asked
    assert not [url for url in other.requests if "t=z" in url.split("#")[0]]


async def test_a_link_without_compression(web: Watched) -> None:
    await web.page.add_init_script("delete globalThis.CompressionStream")
    page = await web.open()
    await page.click("#link")
    link = await page.input_value("#link-text")
    assert "#t=j." in link
    await page.evaluate("(hash) => { location.hash = hash }", link.split("#")[1])
    await page.get_by_text("opened from a link").wait_for()


@pytest.mark.parametrize(
    ("fragment", "told"),
    [
        ("#t=z.AAAA", "The link is damaged or was cut short."),
        ("#t=q.AAAA", "The link is damaged: it holds no transcript."),
        ("#t=j.bm8", "This is not a transcript: it can't be read as JSON."),
        ("#t=j.W10", "This is JSON, but not a transcript of this page."),
    ],
)
async def test_a_damaged_link_is_one_plain_line(web: Watched, fragment: str, told: str) -> None:
    page = await web.open(fragment)
    assert await page.locator("#problem").inner_text() == told


async def test_a_foreign_transcript_is_checked(web: Watched, tmp_path: Path) -> None:
    lane = {"model": "glimpse", "threshold": 1, "thinks": True, "steps": [], "answer": HOSTILE, "state": "finished"}
    good = {"format": "glimprouter-transcript", "version": 1, "question": HOSTILE, "lanes": [lane]}
    bad_steps = [{"model": "<b>", "entropy": 1, "tokens": 1, "text": "x"}]
    known = "another shape than this page knows"
    page = await web.open()
    for transcript, told in (
        (good | {"version": 2}, "another version"),
        (good | {"lanes": []}, "empty"),
        (good | {"lanes": [lane] * 4}, "too long"),
        (good | {"lanes": [lane | {"model": "constructor"}]}, known),
        (good | {"lanes": [lane | {"steps": bad_steps}]}, known),
        (good | {"lanes": "many"}, known),
    ):
        file = tmp_path / "transcript.json"
        file.write_text(json.dumps(transcript))
        await page.set_input_files("#file", file)
        await page.locator("#problem").get_by_text(told).wait_for()
    file.write_text(json.dumps(good | {"pair": {"__proto__": {}}, "asked_at": "never"}))
    await page.set_input_files("#file", file)
    await page.locator(".answer .text").get_by_text(HOSTILE, exact=True).wait_for()
