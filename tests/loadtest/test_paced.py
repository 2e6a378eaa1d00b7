from __future__ import annotations

from array import array

import pytest

from loadtest.paced import Script, drive
from router.hop import Chunk, Ending, Hop, unpack
from router.request import Sampling
from router.steps import Marks

WORDS = [*(f" w{n}".encode() for n in range(120)), b".\n\n", b"</think>", b"<end>"]
BREAK, CLOSE, END = 120, 121, 122
MARKS = Marks.of(WORDS, close=CLOSE, ends=[END])
SCRIPT = Script(MARKS, step_tokens=10, easy_steps=3)


def hop(prefix_tokens: int = 50, **fields: object) -> Hop:
    told = {"thinking_tokens": 1000, "tokens": 1000, "gate": 1.0} | fields
    prefix = array("i", [1] * prefix_tokens).tobytes()
    return Hop(pair="p", prefix=prefix, sampling=Sampling(), **told)  # type: ignore[arg-type]


async def chunks(of: Hop, *, token_s: float = 0.0, chunked: bool = False) -> list[Chunk]:
    return [chunk async for chunk in drive(of, MARKS, SCRIPT, token_s, chunked=chunked)]


async def test_a_gated_hop_writes_its_easy_steps_and_then_a_glimpse_fails() -> None:
    (only,) = await chunks(hop())
    assert only.end is not None
    assert only.end.ending is Ending.GLIMPSE
    assert [step.tokens for step in only.steps] == [10, 10, 10]
    assert len(unpack(only.thought)) == 30


async def test_an_ungated_hop_writes_the_steps_that_it_is_asked_for() -> None:
    (only,) = await chunks(hop(gate=None, max_steps=1))
    assert only.end is not None
    assert only.end.ending is Ending.STEPS
    assert unpack(only.thought)[-1] == BREAK


async def test_no_step_repeats_the_one_before_it() -> None:
    (only,) = await chunks(hop(gate=None, max_steps=50))
    assert only.end is not None
    assert only.end.ending is Ending.STEPS


async def test_an_answer_ends_its_text() -> None:
    (only,) = await chunks(hop(thinking=False))
    assert only.end is not None
    assert only.end.ending is Ending.TEXT
    assert unpack(only.answer)[-1] == END


@pytest.mark.parametrize("token_s", [0.0, 0.01])
async def test_chunks_add_up_to_the_whole(token_s: float) -> None:
    (whole,) = await chunks(hop())
    pieces = await chunks(hop(), token_s=token_s, chunked=True)
    assert b"".join(piece.thought for piece in pieces) == whole.thought
    assert (len(pieces) > 1) == (token_s > 0)
