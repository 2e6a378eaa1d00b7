from array import array
from contextlib import aclosing
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import (
    BLANK,
    CLOSE,
    END,
    OPEN,
    STOP,
    WORD,
    AbsentPool,
    MortalPool,
    ToyModel,
    ToyPool,
    following,
    pools,
    prefix,
    run,
    task,
    tokens,
)

from router.hop import Chunk, CutStep, End, Ending, Hop
from router.loop import write
from router.policy import Alone, EntropyGate, RandomShare
from router.request import Sampling, Unavailable
from router.transcript import Transcript

seeds = st.integers(0, 10**6).map(str)


@given(seed=seeds, threshold=st.floats(0.0, 3.0), chunk=st.integers(1, 9))
@settings(max_examples=60)
async def test_the_account_adds_up(seed: str, threshold: float, chunk: int) -> None:
    served = pools(seed, chunk=chunk)
    page, passages = await run(task(EntropyGate(threshold)), served)
    written = tokens(passages)
    assert page.committed_tokens == len(written) <= page.task.budget.tokens
    assert sum(len(p.thought) for p in passages) == page.reasoning_tokens <= page.task.budget.thinking
    assert sum(s.tokens for p in passages for s in p.steps) == page.reasoning_tokens
    assert page.hops == sum(len(pool.hops) for pool in served.values())
    assert page.escalations == len([h for h in served["large"].hops if h.thinking])
    assert len(served["small"].hops) <= page.escalations + 1


@given(seed=seeds, threshold=st.floats(0.0, 3.0))
@settings(max_examples=60)
async def test_the_gate_decides_each_step(seed: str, threshold: float) -> None:
    _page, passages = await run(task(EntropyGate(threshold)), pools(seed))
    for passage in passages:
        for step in passage.steps:
            assert step.entropy is not None
            assert (step.entropy <= threshold) == (passage.model == "small")


@given(seed=seeds, threshold=st.floats(0.0, 3.0), token=st.floats(0.0, 3.0), chunk=st.integers(1, 9))
@settings(max_examples=80)
async def test_the_token_gate_decides_each_token(seed: str, threshold: float, token: float, chunk: int) -> None:
    served = pools(seed, chunk=chunk)
    page, passages = await run(task(EntropyGate(threshold, token)), served)
    small, body, given_whole = ToyModel("small" + seed), [9, OPEN], False
    begins = {2 + tokens for tokens in (0, *accumulate(s.tokens for p in passages for s in p.steps))}
    for passage in passages:
        for word in passage.thought:
            _, entropy = small.next(body)
            given_whole = entropy > threshold if len(body) in begins else given_whole
            assert (passage.model == "large") == (given_whole or entropy > token)
            body.append(word)
    steps = [step for passage in passages for step in passage.steps]
    large = sum(len(p.thought) for p in passages if p.model == "large")
    assert (sum(s.tokens for s in steps), sum(s.large_tokens for s in steps)) == (page.reasoning_tokens, large)
    assert page.escalations == len([h for h in served["large"].hops if h.thinking])


@given(seed=seeds)
@settings(max_examples=40)
async def test_always_small_is_small_alone(seed: str) -> None:
    """Design rule 8."""
    _, alone = await run(task(Alone("small"), answer_by="small"), pools(seed))
    for policy in (EntropyGate(3.0), EntropyGate(3.0, 3.0)):
        _, routed = await run(task(policy, answer_by="small"), pools(seed))
        assert tokens(routed) == tokens(alone)


gates = st.builds(EntropyGate, st.floats(0.0, 3.0), st.none() | st.floats(1.0, 3.0))


@given(seed=seeds, policy=gates, follows=st.booleans(), chunk=st.integers(1, 5), lives=st.integers(1, 3))
@settings(max_examples=120)
async def test_lost_hops_leave_no_gap_and_no_repeat(
    seed: str, policy: EntropyGate, follows: bool, chunk: int, lives: int
) -> None:
    """Design rule 9."""
    work = task(policy)
    served = following(seed) if follows else pools(seed)
    page, whole = await run(work, served)
    mortal = {name: MortalPool(pool.model, chunk=chunk, lives=lives) for name, pool in served.items()}
    resumed_page, resumed = await run(work, mortal)
    assert tokens(resumed) == tokens(whole)
    assert [(s.tokens, s.entropy, s.large_tokens) for p in resumed for s in p.steps] == [
        (s.tokens, s.entropy, s.large_tokens) for p in whole for s in p.steps
    ]
    assert resumed_page.finish_reason == page.finish_reason


@given(seed=seeds, threshold=st.floats(0.0, 3.0))
@settings(max_examples=40)
async def test_a_transcript_replays_hop_by_hop(seed: str, threshold: float) -> None:
    served = pools(seed)
    _, passages = await run(task(EntropyGate(threshold)), served)
    replayed = {model: ToyPool(ToyModel(model + seed)) for model in served}
    again = []
    hops: list[tuple[str, Hop]] = []
    order = [p.model for p in passages if p.end is not None]
    queues = {model: iter(pool.hops) for model, pool in served.items()}
    for model in order:
        hops.append((model, next(queues[model])))
    for model, hop in hops:
        async for chunk in replayed[model].write(hop):
            ids = array("i")
            ids.frombytes(chunk.thought + chunk.answer)
            again += ids
    assert again == tokens(passages)


@given(seed=seeds, threshold=st.floats(0.0, 2.9))
@settings(max_examples=40)
async def test_the_answer_follows_exactly_one_end_of_thinking(seed: str, threshold: float) -> None:
    served = pools(seed)
    page, _ = await run(task(EntropyGate(threshold)), served)
    body = list(page.prefix.ids("small"))
    thinking_over = page.finish_reason == "stop" or page.committed_tokens > page.reasoning_tokens
    if thinking_over:
        answer_at = body.index(CLOSE)
        assert CLOSE not in body[2:answer_at]
    for pool in served.values():
        for hop in pool.hops:
            assert list(_ids(hop)).count(CLOSE) == (0 if hop.thinking else 1)


def _ids(hop: Hop) -> array:
    ids = array("i")
    ids.frombytes(hop.prefix)
    return ids


class Scripted(ToyModel):
    """Writes the given tokens one after another, then ends."""

    def __init__(self, script: list[int], entropy: float = 0.0) -> None:
        super().__init__("scripted")
        self.script, self.entropy = script, entropy

    def next(self, prefix) -> tuple[int, float]:  # type: ignore[no-untyped-def]
        at = len(prefix) - 2
        return (self.script[at] if at < len(self.script) else END), self.entropy


async def test_a_model_in_circles_is_stopped() -> None:
    step = [10, 11, 12, 13, 14, 15, 16, 3]
    served = {"small": ToyPool(Scripted(step * 40)), "large": ToyPool(Scripted([CLOSE] * 99))}
    _, passages = await run(task(EntropyGate(1.0)), served)
    assert sum(len(p.thought) for p in passages) == 16
    assert next(p.end for p in passages if p.end).ending is Ending.REPEAT
    assert list(_ids(served["large"].hops[0]))[-2:] == [CLOSE, BLANK], "the router closed the thinking itself"


async def test_thinking_never_eats_the_answer() -> None:
    script = [10 + n % 17 for n in range(999)]
    served = {"small": ToyPool(Scripted(script)), "large": ToyPool(Scripted(script))}
    page, _ = await run(task(EntropyGate(1.0), tokens=100), served)
    assert page.reasoning_tokens == 75
    assert page.committed_tokens == 100
    assert page.finish_reason == "length"


async def test_a_model_that_ends_its_turn_while_thinking_still_owes_an_answer() -> None:
    served = {"small": ToyPool(Scripted([10, 3, END])), "large": ToyPool(Scripted([10, 3, CLOSE, BLANK, 12, END]))}
    page, passages = await run(task(EntropyGate(1.0)), served)
    assert END not in _ids(served["large"].hops[0])
    assert tokens(passages) == [10, 3, 12, END]
    assert page.discarded_tokens == 1
    assert page.finish_reason == "stop"


async def test_a_pair_without_think_tags_ends_with_its_text() -> None:
    served = {"small": ToyPool(Scripted([10, 3, CLOSE, 3, 11, END])), "large": ToyPool(Scripted([END]))}
    page, passages = await run(task(EntropyGate(1.0), plain=True), served)
    assert tokens(passages) == [10, 3, CLOSE, 3, 11, END]
    assert page.finish_reason == "stop"
    assert not served["large"].hops


async def test_a_plain_text_may_repeat_itself_and_have_any_number_of_paragraphs() -> None:
    text = [10, 11, 12, 13, 14, 15, 16, 3] * 80
    served = {"small": ToyPool(Scripted([*text, END])), "large": ToyPool(Scripted([END]))}
    work = task(EntropyGate(1.0), plain=True, tokens=2000)
    page, passages = await run(work, served)
    assert tokens(passages) == [*text, END]
    assert page.steps > work.budget.steps
    assert page.finish_reason == "stop"


async def test_a_model_that_stands_in_for_the_other_writes_the_answer_in_one_go() -> None:
    served = {
        "small": AbsentPool(Scripted([END]), after_hops=0, absent="small"),
        "large": ToyPool(Scripted([10] * 900)),
    }
    work = task(EntropyGate(1.0, None, 0.1), max_large_share=0.1, dispensable=frozenset({"small"}))
    page, _ = await run(work, served)
    assert page.degraded == "small"
    assert page.finish_reason == "length"
    assert len(served["large"].hops) == 2, "the thinking and the answer"


async def test_the_large_models_share_is_bounded() -> None:
    served = pools("share")
    for model in ("small", "large"):
        served[model].model.close_rate = 0.0
    work = task(EntropyGate(0.0, max_large_share=0.2), tokens=2000, max_large_share=0.2)
    page = Transcript(work, prefix())
    async for _passage in write(page, served):
        assert page.large_share * page.committed_tokens <= 0.2 * page.committed_tokens + 20
    assert page.large_share_spent


@given(seed=seeds, share=st.floats(0.05, 0.9), token=st.none() | st.floats(0.0, 3.0), chunk=st.integers(1, 9))
@settings(max_examples=60)
async def test_the_answer_keeps_to_the_large_models_share_too(
    seed: str, share: float, token: float | None, chunk: int
) -> None:
    served = pools(seed, chunk=chunk)
    work = task(EntropyGate(1.5, token, share), tokens=900, max_large_share=share)
    page = Transcript(work, prefix())
    written = [passage async for passage in write(page, served)]
    assert page.committed_tokens == len(tokens(written)) <= 900
    large = page.large_share * page.committed_tokens
    # One step, or one portion of the answer, may begin just below the bound.
    assert large <= share * page.committed_tokens + 21
    writers = {passage.model for passage in written if passage.answer}
    assert writers <= {"small", "large"}
    if writers == {"small", "large"}:
        assert page.large_share_spent


@given(seed=seeds, threshold=st.floats(0.0, 3.0))
@settings(max_examples=40)
async def test_only_the_replys_first_words_are_in_a_hurry(seed: str, threshold: float) -> None:
    served = pools(seed)
    page, _ = await run(task(EntropyGate(threshold)), served)
    for model, pool in served.items():
        for hop in (hop for hop in pool.hops if hop.thinking):
            assert hop.opening == (hop.prefix_tokens == page.prefix.prompt_tokens[model])


async def test_hops_draw_from_seeds_of_their_own() -> None:
    served = pools("seeds")
    await run(task(EntropyGate(1.0), sampling=Sampling(seed=7, temperature=1.0)), served)
    drawn = [hop.sampling.seed for pool in served.values() for hop in pool.hops]
    assert len(drawn) > 2
    assert len(set(drawn)) == len(drawn)
    again = pools("seeds")
    await run(task(EntropyGate(1.0), sampling=Sampling(seed=7, temperature=1.0)), again)
    assert [h.sampling.seed for h in again["small"].hops] == [h.sampling.seed for h in served["small"].hops]


async def test_stop_strings_are_the_answers_alone() -> None:
    served = pools("stop")
    await run(task(EntropyGate(1.0), sampling=Sampling(stop=("x",))), served)
    for pool in served.values():
        for hop in pool.hops:
            assert hop.sampling.stop == (() if hop.thinking else ("x",))
            assert not hop.answers


async def test_leaving_cancels_the_hop_under_way() -> None:
    served = pools("leave", chunk=1)
    page = Transcript(task(EntropyGate(3.0)), prefix())
    async with aclosing(write(page, served)) as passages:
        async for _ in passages:
            break
    assert served["small"].closed == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
async def test_random_routing_holds_its_share(share: float) -> None:
    policy = RandomShare(share, seed=1)
    written = {"small": 0, "large": 0}
    turns = [policy.turn(None, 0.0) for _ in range(4000 if 0 < share < 1 else 40)]
    for turn in turns:
        written[turn.model] += turn.steps
    assert written["large"] / sum(written.values()) == pytest.approx(share, abs=0.03)
    if 0 < share < 1:
        assert all(a.model != b.model for a, b in pairwise(turns))


@pytest.mark.parametrize(("share", "spent"), [(0.3, False), (0.0, True)])
async def test_who_answers_is_seen_when_the_answer_begins(share: float, spent: bool) -> None:
    """Not when the hop begins that comes to the end of the thinking: by then the share may be another."""
    page = Transcript(task(EntropyGate(1.5, None, share), max_large_share=share), prefix())
    page.next()
    if not spent:
        page.ahead("large")
        page.commit("large", Chunk(array("i", [WORD] * 9 + [STOP]).tobytes(), steps=(CutStep(10, 2.0, 0.0),)))
    model, hop = page.next()
    assert model == "small"
    assert not hop.answers
    written = array("i", [WORD] * 60 + [CLOSE]).tobytes()
    page.commit("small", Chunk(written, steps=(CutStep(61, 0.1, 0.0),), answering=True, end=End(Ending.THOUGHT)))
    model, hop = page.next()
    assert model == ("small" if spent else "large")
    assert page.large_share_spent is spent


@pytest.mark.parametrize("after_hops", [0, 1])
async def test_the_small_model_stands_in_for_an_absent_large_one(after_hops: int) -> None:
    served = pools("absent") | {"large": AbsentPool(ToyModel("largeabsent"), after_hops)}
    for pool in served.values():
        pool.model.close_rate = 0.0
    page, passages = await run(task(EntropyGate(0.5), dispensable=frozenset({"large"})), served)
    assert page.degraded == "large"
    assert page.finish_reason is not None
    assert page.committed_tokens == len(tokens(passages))
    assert passages[-1].model == "small"


async def test_without_leave_an_absent_model_ends_the_request() -> None:
    served = pools("absent") | {"large": AbsentPool(ToyModel("largeabsent"), 0)}
    with pytest.raises(Unavailable):
        await run(task(EntropyGate(0.5)), served)
