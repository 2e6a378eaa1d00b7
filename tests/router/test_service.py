"""What a client reads, over scripted models: both pools recite one text, token by token."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from recited import CLOSE, DEFAULTS, END, FIRST_BYTE, chat, events, router, tokens, voice

from router.hop import Chunk, ReadAhead, unpack
from router.prefix import other
from router.request import Finished, Model, Refusal, Request, Routing, Sampling, StepWritten, Text, Unavailable
from router.service import StepRouter

chunks = pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])


@chunks
async def test_reasoning_and_answer_are_apart_and_tags_are_never_shown(chunk: int) -> None:
    service, _ = router("One.\n\nTwo.\n\n</think>\n\nIt is 42.\n<end>", chunk=chunk, hard=frozenset({1}))
    told = await events(service, chat())
    assert voice(told, "reasoning") == "One.\n\nTwo.\n\n"
    assert voice(told, "content") == "It is 42.\n"
    voices = [e.voice for e in told if isinstance(e, Text)]
    assert voices == sorted(voices, reverse=True), "all of the reasoning comes first"
    steps = [e for e in told if isinstance(e, StepWritten)]
    assert [s.index for s in steps] == list(range(len(steps)))
    assert [(s.model, s.text) for s in steps][:2] == [("small", "One.\n\n"), ("large", "Two.\n\n")]
    assert isinstance(told[-1], Finished)
    assert told[-1].finish_reason == "stop"
    assert told[-1].escalations == 1


@chunks
async def test_a_step_written_token_by_token_reads_like_any_other(chunk: int) -> None:
    service, _ = router("One.\n\nZwölf 🙂.\n\n</think>\n\nIt is 42.\n<end>", chunk=chunk, hard=frozenset({1}))
    told = await events(service, chat(routing=Routing(threshold=3.0, token_threshold=1.0)))
    assert voice(told, "reasoning") == "One.\n\nZwölf 🙂.\n\n"
    assert voice(told, "content") == "It is 42.\n"
    steps = [e for e in told if isinstance(e, StepWritten)]
    assert [(s.model, s.text, s.entropy) for s in steps][:2] == [
        ("small", "One.\n\n", 0.0),
        ("large", "Zwölf 🙂.\n\n", 2.0),
    ]
    assert [s.large_tokens for s in steps][:2] == [0, steps[1].tokens]
    assert isinstance(told[-1], Finished)
    assert (told[-1].escalations, told[-1].token_threshold) == (steps[1].tokens, 1.0)


@chunks
async def test_only_the_answers_leading_newlines_are_trimmed(chunk: int) -> None:
    service, _ = router("\n\nHm.\n\n</think>\n\n\n a\n\n\n\nb<end>", chunk=chunk)
    told = await events(service, chat())
    assert voice(told, "reasoning") == "\n\nHm.\n\n"
    assert voice(told, "content") == " a\n\n\n\nb"


@chunks
async def test_a_text_without_thinking_is_content_from_its_first_newline(chunk: int) -> None:
    service, _ = router("\n\nOne.\n\nTwo.<end>", chunk=chunk, thinks=False)
    told = await events(service, chat())
    assert voice(told, "content") == "\n\nOne.\n\nTwo."
    assert voice(told, "reasoning") == ""


thoughts = st.lists(st.text("a🙂é\n.", max_size=8), max_size=6).map(".\n\n".join)


@given(
    thought=thoughts,
    answer=st.text("b🙂\n", max_size=12),
    chunk=st.integers(1, 9),
    hard=st.frozensets(st.integers(0, 5)),
)
@settings(max_examples=60, deadline=None)
async def test_no_character_is_ever_halved(thought: str, answer: str, chunk: int, hard: frozenset[int]) -> None:
    # A model in circles is stopped, and what the script says from there on is no longer whole.
    assume(not _circles(thought))
    service, _ = router(thought + "</think>" + answer + "<end>", chunk=chunk, hard=hard)
    told = await events(service, chat())
    if told[-1].finish_reason == "stop":
        assert voice(told, "reasoning") == thought
        assert voice(told, "content") == answer.lstrip("\n")
    assert "\ufffd" not in voice(told, "reasoning") + voice(told, "content")
    assert "".join(e.text for e in told if isinstance(e, StepWritten)) == voice(told, "reasoning")


def _circles(thought: str) -> bool:
    steps = thought.split("\n\n")
    return any(len(s.encode()) >= 6 for s in steps) and len(set(steps)) < len(steps)


async def test_a_character_that_straddles_two_steps_belongs_to_the_second() -> None:
    """A step that is too long is cut wherever it is, by another model's turn too."""
    service, _ = router("a" * 198 + "🙂b.\n\n</think>c<end>", hard=frozenset({0}))
    told = await events(service, chat())
    steps = [e.text for e in told if isinstance(e, StepWritten)]
    assert voice(told, "reasoning") == "".join(steps) == "a" * 198 + "🙂b.\n\n"
    assert steps[1].startswith("🙂")


async def test_half_a_character_at_the_end_of_the_thinking_stays_there() -> None:
    half = tokens("Hm 🙂")[:-2]
    service, _ = router([*half, CLOSE, *tokens("ok<end>")])
    told = await events(service, chat())
    assert voice(told, "reasoning") == "Hm \ufffd"
    assert voice(told, "content") == "ok"
    assert "".join(e.text for e in told if isinstance(e, StepWritten)) == "Hm \ufffd"


async def test_half_a_character_at_the_very_end_is_the_answers() -> None:
    service, _ = router([*tokens("Hm.</think>"), *tokens("🙂")[:2], END])
    told = await events(service, chat())
    assert voice(told, "reasoning") == "Hm."
    assert voice(told, "content") == "\ufffd"


@chunks
@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        (("STOP",), "a b "),
        (("STOP", "b"), "a "),
        (("b STOQ", "OP"), "a b ST"),
        (("STSTOP",), "a b STOP c ST"),
        (("ST.",), "a b STOP c ST"),
        (("\n\na b",), ""),
        (("\n\n",), "a b STOP c ST"),
        (("\n",), "a b STOP c ST"),
        (("\n", "STOP"), "a b "),
        (("a b STOP c ST",), ""),
    ],
)
async def test_stop_strings_cut_the_answer(chunk: int, stop: tuple[str, ...], shown: str) -> None:
    service, pools = router("a STOP b.\n\n</think>\n\na b STOP c ST<end>", chunk=chunk)
    told = await events(service, chat(*stop))
    assert voice(told, "reasoning") == "a STOP b.\n\n", "they never cut the reasoning"
    assert voice(told, "content") == shown
    assert told[-1].finish_reason == "stop"
    assert all(pool.closed == len(pool.hops) for pool in pools.values())


@chunks
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_stop_string_across_two_hops_ends_a_plain_text(chunk: int, streaming: bool) -> None:
    service, pools = router(
        "One.\n\nTwo.\n\nThree.<end>", chunk=chunk if streaming else 1000, hard=frozenset({1}), thinks=False
    )
    told = await events(service, chat(".\n\nTw", streaming=streaming))
    assert voice(told, "content") == "One"
    assert told[-1].finish_reason == "stop"
    assert "o." not in "".join(e.text for e in told if isinstance(e, StepWritten)), "steps don't give the rest away"
    assert len(pools["small"].hops) == 1, "nobody goes on after the stop"


async def test_what_no_stop_string_completes_is_released() -> None:
    service, _ = router("Hm.\n\n</think>wait for ST<end>", chunk=1)
    assert voice(await events(service, chat("STOP")), "content") == "wait for ST"


@pytest.mark.parametrize("fields", [{"messages": None, "prompt": "x" * 60}, {}])
@pytest.mark.parametrize(
    ("context", "asked", "param"), [(60, 59, "max_tokens"), (60, 61, "max_tokens"), (2, None, None)]
)
async def test_what_does_not_fit_the_context_is_refused(
    fields: dict, context: int, asked: int | None, param: str | None
) -> None:
    own = "prompt" if fields else "messages"
    service, pools = router("", context=context)
    with pytest.raises(Refusal) as refused:
        await events(service, chat(max_tokens=asked, **fields))
    assert refused.value.status == 400
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == (own if fields or param is None else param)
    assert not pools["small"].hops


async def test_a_request_may_fill_the_context() -> None:
    service, _ = router("a" * 900, context=60)
    told = await events(service, chat(max_tokens=58))
    assert told[-1].finish_reason == "length"
    assert told[-1].completion_tokens == 58


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None, "prompt": ()}, "prompt"),
        ({"messages": None, "prompt": ""}, "prompt"),
        ({"messages": None, "prompt": (3, 259)}, "prompt"),
        ({"messages": None, "prompt": (3, 2**31)}, "prompt"),
        ({"messages": None, "prompt": (-1,)}, "prompt"),
        ({"messages": None, "prompt": (3,), "routing": Routing(answer_by="small")}, "glimpse.answer_by"),
    ],
)
async def test_bad_prompts_are_refused(fields: dict, param: str) -> None:
    service, _ = router("")
    with pytest.raises(Refusal) as refused:
        await events(service, chat(**fields))
    assert (refused.value.status, refused.value.param) == (400, param)


async def test_where_the_large_model_drafts_there_is_min_p_for_the_small_one_alone() -> None:
    service, _ = router("</think>4<end>", defaults=replace(DEFAULTS, drafting=frozenset({"large"})))
    asked = chat(sampling=Sampling(min_p=0.1))
    with pytest.raises(Refusal) as refused:
        await events(service, asked)
    assert (refused.value.status, refused.value.param) == (400, "min_p")
    told = await events(service, replace(asked, routing=Routing(mode="small")))
    assert isinstance(told[-1], Finished)


@pytest.mark.parametrize("mode", ["small", "large"])
async def test_who_asks_for_one_model_gets_it_or_nothing(mode: Model) -> None:
    service, pools = router("</think>4<end>", defaults=replace(DEFAULTS, dispensable=frozenset({"small", "large"})))
    pools[mode].away = True
    assert len(await events(service, chat(routing=Routing(mode=other(mode))))) > 1
    with pytest.raises(Unavailable):
        await events(service, chat(routing=Routing(mode=mode)))


async def test_no_request_outlives_the_servers_own_deadline() -> None:
    service, pools = router("</think>4<end>", defaults=replace(DEFAULTS, deadline_s=20.0))
    for asked, granted in [(None, 20), (5.0, 5), (86_400.0, 20)]:
        await events(service, chat(timeout_s=asked))
        assert pools["small"].hops[-1].timeout_s == pytest.approx(granted, abs=1)


@pytest.mark.parametrize(
    ("routing", "read"),
    [
        (Routing(), True),
        (Routing(threshold=3.0), True),
        (Routing(threshold=3.0, answer_by="small"), False),
        (Routing(threshold=3.0, token_threshold=1.0, answer_by="small"), True),
        (Routing(max_large_share=0.0), False),
        (Routing(mode="small"), False),
    ],
)
async def test_a_prompt_is_read_ahead_where_the_large_model_may_come_to_it(routing: Routing, read: bool) -> None:
    service, pools = router("Hm.\n\n</think>4<end>", chunk=1, defaults=replace(DEFAULTS, warm_up_tokens=1))
    await events(service, chat(routing=routing))
    assert bool(pools["large"].prefilled) is read


async def test_what_was_read_ahead_for_a_request_is_no_discount_on_it() -> None:
    page = await router("")[0].begin(chat())
    page.ahead("large")
    page.commit("large", Chunk(cached_tokens=2))
    assert page.usage["large"].cached_tokens == 2
    page.read_ahead("large", ReadAhead(discarded_tokens=1, cached_tokens=0))
    assert page.usage["large"].cached_tokens == 0
    assert page.discarded_tokens == 1


@pytest.mark.parametrize("prompt", [[20_000], "x"])
async def test_a_token_that_a_model_has_no_row_for_never_reaches_its_engine(
    prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, pools = router("")
    words = service._vocabularies["small"]
    monkeypatch.setattr(words, "encode_raw", lambda text, begins: [20_000], raising=False)
    monkeypatch.setattr(words, "visible", [b""] * 30_000, raising=False)
    with pytest.raises(Refusal, match="no token 20000") as refused:
        await events(service, Request(id="r", prompt=prompt))
    assert (refused.value.status, refused.value.param) == (400, "prompt")
    assert not pools["small"].hops


async def test_a_prompt_of_which_one_model_knows_nothing_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    service, _ = router("")
    monkeypatch.setattr(service, "_bridge", Nothing())
    with pytest.raises(Refusal, match="empty"):
        await events(service, Request(id="r", prompt=[5]))


class Nothing:
    handover = "mapped"

    def carry(self, ids: Any, to: Model) -> Any:
        return ids[:0]


async def test_a_long_prompt_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    service, _ = router("Hm.\n\n</think>4<end>")
    read, beats = service._prompts, 0

    def slowly(request: Request) -> Any:
        time.sleep(0.2)
        return read(request)

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.01)

    monkeypatch.setattr(service, "_prompts", slowly)
    beating = asyncio.create_task(beat())
    await service.begin(replace(chat(), messages=[{"role": "user", "content": "x" * 30_000}]))
    beating.cancel()
    assert beats > 5


async def test_a_pair_without_thinking_has_no_answer_to_give_away() -> None:
    service, _ = router("", thinks=False)
    with pytest.raises(Refusal) as refused:
        await events(service, chat(routing=Routing(answer_by="small")))
    assert refused.value.param == "glimpse.answer_by"


async def test_a_prompt_of_ids_is_in_the_small_models_words() -> None:
    service, pools = router("</think><end>")
    large = service._vocabularies["large"]
    large.ids = {token: i + 1 for token, i in large.ids.items()}
    swapped = StepRouter("p", service._vocabularies, pools, 1000, DEFAULTS)
    large.encode = lambda text: [FIRST_BYTE + 1 + b for b in text.encode()]
    await events(swapped, chat(messages=None, prompt=tuple(tokens("hi")), routing=Routing(mode="large")))
    assert list(unpack(pools["large"].hops[0].prefix)) == [i + 1 for i in tokens("hi")]


async def test_leaving_frees_the_engine() -> None:
    service, pools = router("One.\n\nTwo.\n\n</think>c<end>", chunk=1)
    written = service.write(chat())
    await anext(written)
    await written.aclose()
    assert pools["small"].closed == 1


async def test_a_pool_of_another_pair_is_not_ready() -> None:
    service, pools = router("")
    assert await service.ready() is None

    async def another(method: str) -> dict:
        return {"pair": "q"}

    pools["large"].ask = another
    assert "large" in await service.ready()


async def test_a_pool_at_rest_is_ready_and_stays_asleep() -> None:
    service, pools = router("")
    pools["large"].asleep = True
    assert await service.ready() is None
