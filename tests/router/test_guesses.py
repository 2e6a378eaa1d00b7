"""The small model's guesses at tokens that are the large one's: they change nothing but who waits for whom."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import AbsentPool, ToyModel, ToyPool, following, prefix, run, task, tokens

from router.hop import Chunk, Ending, Hop
from router.leftovers import unwanted
from router.loop import write
from router.policy import EntropyGate, Turn
from router.request import Unavailable
from router.transcript import Transcript

seeds = st.integers(0, 10**6).map(str)


@dataclass(frozen=True)
class Guessless:
    gate: EntropyGate

    def turn(self, last: Ending | None, large_share: float) -> Turn:
        return replace(self.gate.turn(last, large_share), guesses=0)


@given(seed=seeds, threshold=st.floats(1.0, 3.0), token=st.floats(0.0, 3.0), chunk=st.integers(1, 9))
@settings(max_examples=80)
async def test_guesses_change_nothing_but_the_hops(seed: str, threshold: float, token: float, chunk: int) -> None:
    gate = EntropyGate(threshold, token)
    patient, plain = await run(task(Guessless(gate)), following(seed, chunk=chunk))
    served = following(seed, chunk=chunk)
    page, guessing = await run(task(gate), served)
    assert [(p.model, i) for p in guessing for i in p.thought + p.answer] == [
        (p.model, i) for p in plain for i in p.thought + p.answer
    ]
    assert [(s.tokens, s.entropy, s.large_tokens) for p in guessing for s in p.steps] == [
        (s.tokens, s.entropy, s.large_tokens) for p in plain for s in p.steps
    ]
    assert (page.usage, page.escalations, page.finish_reason) == (
        patient.usage,
        patient.escalations,
        patient.finish_reason,
    )
    assert page.committed_tokens + page.discarded_tokens == sum(pool.generated for pool in served.values())
    assert page.hops == sum(len(pool.hops) for pool in served.values()) <= patient.hops + page.steps
    assert all(pool.closed == len(pool.hops) for pool in served.values())


class Forsaken(ToyPool):
    """Refuses whatever is still wanted of a hop after a guess."""

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        async for chunk in super().write(hop):
            yield chunk
            if chunk.guess is not None:
                raise Unavailable("small")


async def test_what_is_left_of_a_wrong_guess_may_come_to_nothing() -> None:
    gate, left = EntropyGate(3.0, 2.5), 0
    for seed in map(str, range(20)):
        served = following(seed, follows=0.0)
        _, whole = await run(task(gate), served)
        page, passages = await run(task(gate), served | {"small": Forsaken(served["small"].model)})
        assert tokens(passages) == tokens(whole)
        left += page.escalations
    assert left > 20


class Obstinate(ToyPool):
    """Ends a hop that nobody wants any more when another one comes, and no sooner."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__(model)
        self._another = asyncio.Event()

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        self._another.set()
        another = self._another = asyncio.Event()
        async for chunk in super().write(hop):
            yield chunk
            if unwanted.get():
                await another.wait()


async def test_where_no_other_hop_would_come_an_empty_one_calls_the_last_one_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.leftovers.PATIENCE_S", 60.0)
    called_off = 0
    for seed in map(str, range(40)):
        served = following(seed, follows=0.0)
        served["small"] = Obstinate(served["small"].model)
        async with asyncio.timeout(30):
            page, _ = await run(task(EntropyGate(3.0, 2.0)), served)
        assert page.committed_tokens + page.discarded_tokens == sum(pool.generated for pool in served.values())
        assert page.hops == sum(len(pool.hops) for pool in served.values())
        last = served["small"].hops[-1]
        called_off += not last.thinking and not last.tokens
    assert called_off > 5


@pytest.mark.parametrize("after", ["small", "large"])
async def test_a_reader_may_set_an_end_to_it_and_all_is_counted(after: str) -> None:
    """As a stop string does that no engine could see, be it complete with the large model's word for a guess."""
    guessing = 0
    for seed in map(str, range(40)):
        served = following(seed)
        page = Transcript(task(EntropyGate(3.0, 2.0)), prefix())
        left = None
        async for passage in write(page, served):
            if page.escalations and passage.model == after and page.finish_reason is None:
                page.finish("stop")
                left = (len(served["large"].hops), page.committed_tokens)
        assert page.finish_reason == "stop"
        assert left in (None, (len(served["large"].hops), page.committed_tokens)), "nobody wants more"
        assert page.committed_tokens + page.discarded_tokens == sum(pool.generated for pool in served.values())
        guessing += any(hop.guess for hop in served["large"].hops)
    assert guessing > 20


async def test_a_right_guess_spares_a_hop_of_the_small_model() -> None:
    """Of every four unsure tokens the large model would write three as well."""
    spared, asked = 0, 0
    for seed in map(str, range(40)):
        page, _ = await run(task(EntropyGate(3.0, 2.0)), following(seed))
        patient, _ = await run(task(Guessless(EntropyGate(3.0, 2.0))), following(seed))
        spared, asked = spared + patient.hops - page.hops, asked + page.escalations
    assert spared > asked / 3


async def test_an_account_stays_whole_where_the_large_model_is_gone_before_it_told_of_a_guess() -> None:
    guessed = 0
    for seed in map(str, range(20)):
        served = following(seed)
        served["large"] = AbsentPool(served["large"].model, after_hops=1)
        page, passages = await run(task(EntropyGate(3.0, 2.0), dispensable=frozenset({"large"})), served)
        assert page.committed_tokens == len(tokens(passages))
        assert page.committed_tokens + page.discarded_tokens == sum(pool.generated for pool in served.values())
        assert page.hops == sum(len(pool.hops) for pool in served.values())
        guessed += page.degraded == "large" and any(hop.guess for hop in served["large"].hops)
    assert guessed > 5
