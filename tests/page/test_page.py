"""The page in Chromium, as its reader uses it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from shopping import reasoning
from watched import QUESTION, Script, Watched, finished, models, slide, step, texts

from router.request import Text


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


async def test_all_is_shown_once_the_page_says_that_it_is_over(web: Watched, service: Script) -> None:
    service.script = [Text("reasoning", "Two.\n\n"), step(0, "small", 0.2, "Two.\n\n"), finished(10, 0)]
    await web.page.add_init_script("window.requestAnimationFrame = () => 1")  # the next frame never comes
    page = await web.open()
    await web.ask()
    await web.over()
    assert await models(page) == ["small"]


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
    service.script = [*service.script[:-1], finished(40, 20, threshold=0.05)]
    await page.click("#again")
    await page.get_by_text("Routed at 0.05").wait_for()
    assert [request.routing.threshold for request in service.requests] == [None, 0.05], "the server's own is not named"


async def test_a_threshold_that_the_server_chose_is_what_is_shown(web: Watched, service: Script) -> None:
    """The tenant's own, or where a controller has moved it."""
    service.script = [step(0, "small", 1.4, "Step 0.\n\n"), finished(40, 0, threshold=2.0)]
    page = await web.open()
    await web.ask()
    await web.over()
    await page.get_by_text("Routed at 2.00").wait_for()
    assert float(await page.input_value("#threshold")) == 2.0
    assert await page.locator(".flipped").count() == 0


async def test_another_pair_than_was_met_is_named(web: Watched, service: Script) -> None:
    page = await web.open()
    service.pair = replace(service.pair, fingerprint="77aa", names={"small": "newer-small", "large": "newer-large"})
    service.script = [step(0, "small", 0.1, "Step 0.\n\n"), replace(finished(40, 0), pair="77aa")]
    await web.ask()
    await web.over()
    await page.get_by_text("small newer-small").wait_for()


async def test_who_wrote_a_step_together_is_told_and_counted(web: Watched, service: Script) -> None:
    service.pair = replace(service.pair, token_threshold=0.5)
    service.script = [
        Text("reasoning", "Two.\n\nThree.\n\nFour.\n\n"),
        step(0, "small", 0.2, "Two.\n\n", tokens=20, ms=200, large=5),
        step(1, "large", 2.5, "Three.\n\n", tokens=10, ms=300),
        step(2, "large", 0.9, "Four.\n\n", tokens=10, ms=300, large=8),
        Text("content", "4"),
        finished(17, 27, 1.0, 0.5),
    ]
    page = await web.open()
    await web.ask()
    await web.over()
    assert await page.locator(".shared").all_inner_texts() == [
        "large wrote 5 of these 20 tokens",
        "small wrote 2 of these 10 tokens",
    ]
    assert await page.locator("#origin").inner_text() == "Routed at 1.00, tokens at 0.50"
    small, large, total, _ = await page.locator("#tally > div").all_inner_texts()
    assert "17 tokens in 1 step, 2 in large’s" in small
    assert "27 tokens in 2 steps, 5 in small’s and the answer" in large
    assert "44 tokens, 61 % by large" in total
    await slide(page, 3)
    # The second step would be the small model's: ten tokens fewer.
    assert "61 % → 39 %" in await page.locator("#what-if").inner_text()


@pytest.mark.parametrize(
    ("served", "asked", "sent"),
    [(None, None, None), (None, 0.75, 0.75), (0.5, 0.5, None), (0.5, 0.75, 0.75), (0.5, None, 3.0)],
)
async def test_single_tokens_are_asked_for_where_the_reader_differs_from_the_server(
    web: Watched, service: Script, served: float | None, asked: float | None, sent: float | None
) -> None:
    service.pair = replace(service.pair, token_threshold=served)
    page = await web.open()
    assert await page.is_checked("#by-token") is (served is not None)
    await page.set_checked("#by-token", asked is not None)
    if asked is not None:
        await page.fill("#token-threshold", str(asked))
    await web.ask()
    await web.over()
    assert [request.routing.token_threshold for request in service.requests] == [sent]


async def test_a_token_threshold_that_is_none_is_not_asked_with(web: Watched, service: Script) -> None:
    page = await web.open()
    await page.check("#by-token")
    await page.fill("#token-threshold", "4")
    await web.ask()
    assert "from 0 to 3" in await page.locator("#problem").inner_text()
    assert not service.requests


async def test_models_that_hand_over_text_are_not_asked_for_single_tokens(web: Watched, service: Script) -> None:
    service.pair = replace(service.pair, handover="text")
    page = await web.open()
    assert await page.locator("#tokens-row").is_hidden()


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
    await slide(page, 0.3)  # which marks steps in the log, at every notch
    assert await log.get_attribute("aria-live") == "off"
