"""What is asked of an engine's sessions; that vLLM's go on where they were is tests/e2e's business."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from deployments import sessions
from deployments.sessions import Sessions, comes_back, may_wait
from deployments.token_count import TokenCount
from router.hop import Hop
from router.request import Sampling

PARAMS = SamplingParams(max_tokens=2)


class Engine:
    """Counts upwards, two tokens a turn, the second with a turn's end."""

    def __init__(self, *, reason: str = "length") -> None:
        self.reason = reason
        self.begun: list[str] = []
        self.read: list[list[int]] = []
        self.closed: list[str] = []

    async def generate(self, turns: Any, params: Any, id: str, *, priority: int) -> AsyncGenerator[Any]:
        self.begun.append(id)
        try:
            async for turn in turns:
                ids = turn.prompt["prompt_token_ids"]
                self.read.append(ids)
                yield told([ids[-1] + 1], None, cached=32)
                yield told([ids[-1] + 2], self.reason, cached=32)
        finally:
            self.closed.append(id)


def told(ids: list[int], reason: str | None, cached: int) -> Any:
    return SimpleNamespace(
        outputs=[SimpleNamespace(token_ids=ids, finish_reason=reason)], num_cached_tokens=cached, request_id=""
    )


def told_of(**figures: float) -> TokenCount:
    count = TokenCount(None)
    for name, value in figures.items():
        setattr(count, name, value)
    return count


async def write(of: Sessions, request: str, *prompt: int, id: str = "s", params: SamplingParams = PARAMS) -> list[Any]:
    outputs = of.write(request, id, list(prompt), params, salt=None, priority=0)
    return [output async for output in outputs]


async def test_a_later_hop_brings_only_what_is_new() -> None:
    engine = Engine()
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    first = await write(kept, "r", 1, 2, 3)
    second = await write(kept, "r", 1, 2, 3, 4, 5, 9)
    assert engine.begun == ["s"]
    # The last token that it drew it has not read.
    assert engine.read == [[1, 2, 3], [5, 9]]
    assert [output.num_cached_tokens for output in (*first, *second)] == [32, 32, 4, 4]
    assert [id for output in second for id in output.outputs[0].token_ids] == [10, 11]


@pytest.mark.parametrize("prompt", [(1, 2, 3, 7, 5), (1, 2, 3, 4), (1, 2)], ids=["another", "no longer", "shorter"])
async def test_on_another_text_it_begins_anew(prompt: tuple[int, ...]) -> None:
    engine = Engine()
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    await write(kept, "r", 1, 2, 3, id="first")
    await write(kept, "r", *prompt, id="second")
    await asyncio.sleep(0)
    assert engine.begun == ["first", "second"]
    assert engine.read[1] == list(prompt)
    assert engine.closed == ["first"]
    assert len(kept) == 1


async def test_for_other_logprobs_it_begins_anew() -> None:
    engine, glimpsing = Engine(), SamplingParams(max_tokens=2, logprobs=0)
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    await write(kept, "r", 1, 2, 3, id="first")
    await write(kept, "r", 1, 2, 3, 4, 5, 9, id="second", params=glimpsing)
    await write(kept, "r", 1, 2, 3, 4, 5, 9, 10, 11, 2, id="third", params=glimpsing)
    await asyncio.sleep(0)
    assert engine.begun == ["first", "second"]
    assert engine.read == [[1, 2, 3], [1, 2, 3, 4, 5, 9], [11, 2]]


async def test_none_waits_where_others_want_the_room() -> None:
    engine = Engine()
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    kept.prune(told_of(kv_use=0.99))
    await write(kept, "r", 1, 2, 3)
    await asyncio.sleep(0)
    assert len(kept) == 0
    assert engine.closed == ["s"]
    kept.prune(told_of(kv_use=0.1))
    await write(kept, "q", 1, 2, 3)
    assert len(kept) == 1


async def test_requests_have_sessions_of_their_own() -> None:
    engine = Engine()
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    await write(kept, "r", 1, 2, 3, id="r's")
    await write(kept, "q", 1, 2, 3, 4, 5, id="q's")
    assert engine.begun == ["r's", "q's"]
    assert len(kept) == 2


async def test_of_too_many_the_oldest_is_given_up() -> None:
    engine = Engine()
    kept = Sessions(engine, 2)  # type: ignore[arg-type]
    for request in "abc":
        await write(kept, request, 1, 2, 3, id=request)
    await asyncio.sleep(0)
    assert (len(kept), engine.closed) == (2, ["a"])


async def test_a_hop_that_was_asked_for_twice_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    kept = Sessions(engine, 2)  # type: ignore[arg-type]
    async with aclosing(kept.write("r", "first", [1, 2], PARAMS, salt=None, priority=0)) as slow:
        await anext(slow)
        await write(kept, "r", 1, 2, id="second")
        assert len([output async for output in slow]) == 1
    await asyncio.sleep(0)
    assert (len(kept), engine.closed) == (1, ["second"])


async def test_what_has_waited_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    await write(kept, "r", 1, 2, 3)
    kept.prune(told_of(kv_use=0.1))
    assert len(kept) == 1
    monkeypatch.setattr(sessions, "IDLE_S", -1.0)
    kept.prune(told_of(kv_use=0.1))
    await asyncio.sleep(0)
    assert (len(kept), engine.closed) == (0, ["s"])


@pytest.mark.parametrize("full", [{"kv_use": 0.6}, {"queued": 1}], ids=["the cache is crowded", "others wait"])
async def test_sessions_make_room(full: dict[str, float]) -> None:
    engine = Engine()
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    for request in "abc":
        await write(kept, request, 1, 2, 3, id=request)
    kept.prune(told_of(**full))
    await asyncio.sleep(0)
    assert (len(kept), sorted(engine.closed)) == (0, ["a", "b", "c"])


async def test_a_hop_that_is_left_gives_its_session_up() -> None:
    engine = Engine()
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    async with aclosing(kept.write("r", "s", [1, 2], PARAMS, salt=None, priority=0)) as outputs:
        await anext(outputs)
    assert (len(kept), engine.closed) == (0, ["s"])


async def test_an_aborted_hop_gives_its_session_up() -> None:
    engine = Engine(reason="abort")
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    await write(kept, "r", 1, 2, 3)
    assert (len(kept), engine.closed) == (0, ["s"])


async def test_a_request_that_is_over_is_forgotten() -> None:
    engine = Engine()
    kept = Sessions(engine, 4)  # type: ignore[arg-type]
    await write(kept, "r", 1, 2, 3, id="r's")
    await write(kept, "q", 1, 2, 3, id="q's")
    for request in "rx":
        await kept.forget(request)
    assert (len(kept), engine.closed) == (1, ["r's"])


@pytest.mark.parametrize(
    ("fields", "does"),
    [
        ({"max_steps": 1}, True),
        ({"max_steps": 1, "thinking": False}, False),
        ({"max_steps": 2}, False),
        ({"gate": 1.0}, True),
        ({"token_gate": 1.0}, True),
        ({"gate": 1.0, "thinking": False}, False),
    ],
)
def test_whose_request_comes_back(fields: dict[str, Any], does: bool) -> None:
    assert comes_back(hop(**fields)) is does


@pytest.mark.parametrize(
    ("fields", "params", "may"),
    [
        ({}, {}, True),
        ({"trace": {"traceparent": "00-1-2-01"}}, {}, False),
        ({}, {"seed": 1, "temperature": 0.7}, False),
        ({}, {"seed": 1, "temperature": 0.0}, True),
    ],
)
def test_which_hops_may_be_a_sessions(fields: dict[str, Any], params: dict[str, Any], may: bool) -> None:
    assert may_wait(hop(**fields), SamplingParams(**params)) is may


def hop(**fields: Any) -> Hop:
    return Hop(pair="p", prefix=array("i", [1]).tobytes(), sampling=Sampling(), **fields)
