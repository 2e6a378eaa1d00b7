"""The page in Chromium, as its reader uses it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from shopping import reasoning
from watched import QUESTION, Script, Watched, finished, step

from router.request import Refusal, Text

HOSTILE = '<img src=x onerror="alert(1)"></script><script>alert(2)</script> **bold** [a](javascript:alert(3)) &amp;'


async def models(page: Any) -> list[str]:
    return await page.locator(".step:not(.pending) .who").all_text_contents()


async def texts(page: Any) -> list[str]:
    return await page.locator("ol.steps .text").evaluate_all("all => all.map((e) => e.firstChild.textContent)")


async def slide(page: Any, threshold: float) -> None:
    await page.locator("#threshold").fill(str(threshold))


async def test_an_example_shows_the_idea_before_anything_is_asked(web: Watched) -> None:
    page = await web.open()
    assert {"small", "large"} == set(await models(page))
    assert "model writes" in await page.locator(".idea").inner_text()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_an_example_is_one_click(web: Watched, service: Script) -> None:
    page = await web.open()
    button = page.locator("#examples button").nth(1)
    question = await button.inner_text()
    await button.click()
    await web.over()
    assert service.requests[0].messages == ({"role": "user", "content": question},)
    steps, answer = reasoning(question)
    assert await texts(page) == [step.text.strip() for step in steps]
    assert await models(page) == ["large" if step.entropy > 1.0 else "small" for step in steps]
    assert await page.locator(".answer .text").inner_text() == answer
    assert await page.locator(".answer .who").inner_text() == "large"


async def test_steps_appear_while_the_request_runs(web: Watched, service: Script) -> None:
    first, second = asyncio.Event(), asyncio.Event()
    service.script = [
        Text("reasoning", "Two and two"),
        first,
        Text("reasoning", " make\n\nfo"),
        step(0, "small", 0.2, "Two and two make\n\n", tokens=30, ms=90),
        second,
        Text("reasoning", "ur.\n\n"),
        step(1, "large", 2.5, "four.\n\n", tokens=10, ms=120),
        Text("content", "4"),
        finished(30, 12),
    ]
    page = await web.open()
    await web.ask()
    pending = page.locator(".pending .text")
    await pending.get_by_text("Two and two", exact=True).wait_for()
    assert await page.locator("ol.steps li").count() == 0
    assert await page.locator("#stop").is_visible()
    first.set()
    await page.locator("ol.steps li.by-small").wait_for()
    assert await pending.inner_text() == "fo"
    assert "30 tokens in 1 step" in await page.locator("#tally").inner_text()
    second.set()
    await web.over()
    assert await models(page) == ["small", "large"]
    colours = await page.locator("ol.steps li").evaluate_all(
        "all => all.map((e) => getComputedStyle(e, '::before').backgroundColor)"
    )
    assert len(set(colours)) == 2
    account = await page.locator("#tally").inner_text()
    assert "0.09 s" in account
    assert "12 tokens in 1 step and the answer" in account
    assert "42 tokens" in account
    assert "29 % by large" in account
    assert "estimate, at its" in account
    assert await page.locator("#stop").is_hidden()


@pytest.mark.parametrize("width", [1180, 360])
@pytest.mark.parametrize("button", ["#ask", "#compare"])
async def test_the_threshold_is_one_line_through_slider_and_bars(open_context: Any, width: int, button: str) -> None:
    web = await open_context(viewport={"width": width, "height": 900})
    page = await web.open()
    await page.fill("#question", QUESTION)
    await page.click(button)
    await web.over()
    for threshold in (0, 0.73, 1.9, 3):
        await slide(page, threshold)
        slider, bar = await page.evaluate(
            """() => {
              const input = document.getElementById("threshold").getBoundingClientRect();
              const bar = document.querySelector(".lane:not(.alone) .bar");
              const thumb = parseFloat(getComputedStyle(document.documentElement).fontSize) * 1.25;
              const share = document.getElementById("threshold").valueAsNumber / 3;
              const line = parseFloat(getComputedStyle(bar, "::after").left);
              return [input.left + thumb / 2 + share * (input.width - thumb), bar.getBoundingClientRect().left + line];
            }"""
        )
        assert slider == pytest.approx(bar, abs=1.0)


async def test_moving_the_threshold_shows_what_would_have_gone_the_other_way(web: Watched, service: Script) -> None:
    service.script = [
        *(
            step(i, "small" if h is None or h <= 1 else "large", h, f"Step {i}.\n\n")
            for i, h in enumerate((0.1, 0.8, 1.4, None, 2.2, 1.0))
        ),
        finished(40, 20),
    ]
    page = await web.open()
    await web.ask()
    await web.over()

    async def flipped() -> list[tuple[int, str]]:
        return [
            tuple(pair)
            for pair in await page.locator("ol.steps li").evaluate_all(
                "all => all.flatMap((e, i) => e.classList.contains('flipped')"
                " ? [[i, e.querySelector('.flip').textContent]] : [])"
            )
        ]

    assert await flipped() == []
    await slide(page, 0.7)
    assert await flipped() == [
        (1, "at 0.70: large would write this step"),
        (5, "at 0.70: large would write this step"),
    ]
    said = await page.locator("#what-if").inner_text()
    assert "2 of 6 steps" in said
    assert "33 % → 67 %" in said
    await slide(page, 1.5)
    assert await flipped() == [(2, "at 1.50: small would write this step")]
    await slide(page, 3)
    assert [index for index, _ in await flipped()] == [2, 4]
    await slide(page, 1)
    assert await flipped() == []
    await slide(page, 0.05)
    await page.click("#again")
    await page.get_by_text("Routed at 0.05").wait_for()
    assert [request.routing.threshold for request in service.requests] == [1.0, 0.05]


async def test_the_threshold_moves_by_keyboard(web: Watched) -> None:
    page = await web.open()
    told = f"{float(await page.input_value('#threshold')) + 0.01:.2f} nats"
    await page.focus("#threshold")
    await page.keyboard.press("ArrowRight")
    assert await page.locator("#threshold-value").inner_text() == told
    assert await page.get_attribute("#threshold", "aria-valuetext") == told


async def test_side_by_side(web: Watched, service: Script) -> None:
    page = await web.open()
    await page.fill("#question", QUESTION)
    await page.click("#compare")
    await web.over()
    assert [request.routing.mode for request in service.requests] == ["small", "large", "routed"]
    lanes = page.locator(".lane")
    assert await lanes.count() == 3
    for index, expected in enumerate(({"small"}, {"large"}, {"small", "large"})):
        assert set(await lanes.nth(index).locator("ol .who").all_text_contents()) == expected
        steps, answer = reasoning(QUESTION, guesses=index == 0)
        assert await lanes.nth(index).locator("ol li").count() == len(steps)
        assert await lanes.nth(index).locator(".answer .text").inner_text() == answer
    rows = await page.locator("#summary tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["Small alone", "Large alone", "Routed at 1.00"]
    assert [row.split("\t")[3] for row in rows][:2] == ["0 %", "100 %"]
    assert await page.locator("#status").inner_text() == "All three finished."


@pytest.mark.parametrize("how", ["button", "escape", "leaving"])
async def test_hanging_up_stops_the_work(web: Watched, service: Script, how: str) -> None:
    service.script = [Text("reasoning", "One.\n\nTw"), step(0, "small", 0.1, "One.\n\n"), asyncio.Event()]
    page = await web.open()
    await web.ask()
    await page.locator("ol.steps li").wait_for()
    if how == "button":
        await page.click("#stop")
    elif how == "escape":
        await page.keyboard.press("Escape")
    else:
        await page.goto("about:blank")
    await asyncio.wait_for(service.closed.wait(), 2)
    if how == "leaving":
        return
    await web.over()
    assert (await page.locator("#status").inner_text()).startswith("Stopped: 1 steps".replace("steps", "step"))
    assert await page.locator(".state").inner_text() == "Stopped here."
    assert await page.locator(".pending .text").inner_text() == "Tw"
    assert await page.locator("#problem").inner_text() == ""
    service.script = None
    await web.ask()
    await page.locator(".answer").wait_for()


async def test_stopping_a_comparison_asks_no_further(web: Watched, service: Script) -> None:
    service.script = [Text("reasoning", "One"), asyncio.Event()]
    page = await web.open()
    await page.fill("#question", QUESTION)
    await page.click("#compare")
    await page.locator(".pending .text").first.get_by_text("One").wait_for()
    await page.keyboard.press("Escape")
    await web.over()
    assert len(service.requests) == 1
    assert await page.locator(".state").all_inner_texts() == ["Stopped here."] * 3


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


async def test_a_pair_that_does_not_think_apart(web: Watched, service: Script) -> None:
    service.unthinking()
    page = await web.open()
    await web.ask()
    await web.over()
    steps, _ = reasoning(QUESTION)
    assert await texts(page) == [step.text.strip() for step in steps]
    assert await page.locator(".answer").is_hidden()
    assert await page.locator(".pending").is_hidden()
    assert steps[-1].text.strip() in await page.locator("#status").inner_text()


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


async def test_events_are_read_wherever_they_are_split(web: Watched) -> None:
    page = await web.open()
    told = await page.evaluate(
        """async () => {
          const { Events } = await import("/page/sse.js");
          const text = ': keep-alive\\n\\ndata: {"a": "ä\\u2028🙂"}\\r\\n\\r\\n'
            + ': x\\rdata:one\\r\\ndata: two\\r\\revent: no\\n\\ndata\\n\\ndata: last\\n';
          const found = new Set();
          for (let size = 1; size <= text.length; size++) {
            const events = new Events();
            const data = [];
            for (let at = 0; at < text.length; at += size) data.push(...events.push(text.slice(at, at + size)));
            found.add(JSON.stringify(data));
          }
          return [...found].map((data) => JSON.parse(data));
        }"""
    )
    assert told == [['{"a": "ä\u2028🙂"}', "one\ntwo", ""]]


async def test_bytes_are_read_wherever_they_are_split(web: Watched) -> None:
    page = await web.open()
    told = await page.evaluate(
        """async () => {
          const { dataOf } = await import("/page/sse.js");
          const bytes = new TextEncoder().encode("data: größer 🙂\\n\\ndata: [DONE]\\n\\n");
          const data = [];
          const body = new ReadableStream({
            start(to) {
              for (const byte of bytes) to.enqueue(Uint8Array.of(byte));
              to.close();
            },
          });
          for await (const one of dataOf(body)) data.push(one);
          return data;
        }"""
    )
    assert told == ["größer 🙂", "[DONE]"]


async def test_the_newest_step_stays_in_view_unless_the_reader_looked_away(web: Watched, service: Script) -> None:
    gates = [asyncio.Event(), asyncio.Event()]

    def some(first: int) -> list[Any]:
        return [step(i, "small", 0.1, f"Step {i}.\n\n") for i in range(first, first + 30)]

    service.script = [*some(0), gates[0], *some(30), gates[1], *some(60), finished(900, 0)]
    page = await web.open()
    await web.ask()
    await page.locator("ol.steps li").nth(29).wait_for()
    assert await page.evaluate("scrollY") > 0
    await page.locator("#stop").click(trial=True)
    gates[0].set()
    await page.get_by_text("Step 59.", exact=True).wait_for()
    below = await page.evaluate("document.getElementById('status').getBoundingClientRect().bottom - innerHeight")
    assert below < 10
    await page.evaluate("scrollTo(0, 0)")
    gates[1].set()
    await page.get_by_text("Step 89.", exact=True).wait_for(state="attached")
    await web.over()
    assert await page.evaluate("scrollY") == 0


async def test_everything_is_reached_by_keyboard(web: Watched) -> None:
    page = await web.open()
    await web.ask()
    await web.over()
    await slide(page, 0.3)
    await page.focus("#question")
    reached = []
    for _ in range(20):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"ask", "compare", "threshold", "again", "download", "link", "open", "BUTTON"} <= set(reached)
    await page.focus("#ask")
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline in ("solid", "auto")


async def test_shift_enter_breaks_the_line_and_control_enter_asks(web: Watched, service: Script) -> None:
    page = await web.open()
    await page.fill("#question", QUESTION)
    await page.press("#question", "Shift+Enter")
    await page.press("#question", "Control+Enter")
    await web.over()
    assert len(service.requests) == 1


async def test_a_screen_reader_is_told_of_steps_and_end(web: Watched) -> None:
    page = await web.open()
    await web.ask()
    await web.over()
    log = page.get_by_role("log", name="Steps, routed")
    assert await log.get_attribute("aria-live") == "polite"
    assert await log.get_by_role("listitem").count() == len(reasoning(QUESTION)[0])
    told = await page.get_by_role("status").filter(has_text="Finished").inner_text()
    assert "by the large model" in told
    assert await page.get_by_role("slider", name="Threshold").count() == 1
