from array import array

import pytest
from toy import BLANK, CLOSE, END, MARKS, STOP

from router.hop import Chunk, CutStep, Ending, Guess, Hop, unpack
from router.request import Sampling
from router.run import Run

A, B = 10, 11


def hop(*prefix: int, **fields: object) -> Hop:
    defaults: dict = {"step_tokens": 20, "thinking_tokens": 50, "tokens": 60}
    return Hop(pair="p", prefix=pack(*(prefix or (9,))), sampling=Sampling(), **(defaults | fields))


def pack(*ids: int) -> bytes:
    return array("i", ids).tobytes()


def test_a_hop_that_is_cut_ends_the_step_under_way() -> None:
    run = write(hop(gate=1.0), A, B)
    run.cut(Ending.STOP, 1.0)
    assert [step.tokens for step in run.drain(cached_tokens=0).steps] == [2]
    answering = write(hop(thinking=False), A, B)
    answering.cut(Ending.STOP, 1.0)
    assert answering.drain(cached_tokens=0).steps == ()


def write(asked: Hop, *tokens: int, entropy: float | None = 0.0) -> Run:
    """Feed tokens until the hop is over."""
    run = Run(asked, MARKS, 0.0)
    for n, token in enumerate(tokens, start=1):
        if run.take(token, entropy, float(n)) is not None:
            break
    return run


@pytest.mark.parametrize("guesses", [0, 1])
def test_what_is_watched_is_told_whatever_becomes_of_it(guesses: int) -> None:
    run = Run(hop(token_gate=1.0, watched=0.5, guesses=guesses), MARKS, 0.0)
    for entropy in (0.4, 0.5, 0.7, 1.2):
        run.take(A, entropy, 0.0)
    assert run.watched == [0.7, 1.2]
    assert (run.ending is None) is bool(guesses)


def test_ids_cross_processes_in_four_bytes_each() -> None:
    assert len(pack(1, 151_936)) == 8
    assert list(unpack(pack(1, 151_936))) == [1, 151_936]


def test_what_is_left_after_part_of_a_step() -> None:
    left = hop(9, max_steps=3, ungated_steps=2).after(Chunk(thought=pack(A, B), open_entropy=0.5))
    assert list(unpack(left.prefix)) == [9, A, B]
    assert (left.open_tokens, left.last_step_tokens, left.open_entropy) == (2, 0, 0.5)
    assert (left.max_steps, left.ungated_steps) == (3, 2)
    assert (left.thinking_tokens, left.tokens) == (48, 58)


def test_a_step_that_ends_in_a_later_chunk_closes_what_was_open() -> None:
    asked = hop(9, max_steps=3, ungated_steps=1)
    left = asked.after(Chunk(thought=pack(A, B))).after(
        Chunk(thought=pack(STOP, A, STOP, B), steps=(CutStep(3, 0.1, 1.0), CutStep(2, 0.1, 1.0)), open_entropy=0.7)
    )
    assert (left.open_tokens, left.last_step_tokens) == (1, 2)
    assert (left.max_steps, left.ungated_steps) == (1, 0)
    assert (left.thinking_tokens, left.tokens) == (44, 54)


def test_once_the_answer_is_begun_the_thinking_is_over() -> None:
    chunk = Chunk(thought=pack(A, CLOSE), answer=pack(BLANK, B), steps=(CutStep(2, 0.1, 1.0),), answering=True)
    left = hop(9, answers=True).after(chunk)
    assert not left.thinking
    assert left.open_tokens == 0
    assert (left.thinking_tokens, left.tokens) == (48, 56)
    assert list(unpack(left.prefix)) == [9, A, CLOSE, BLANK, B]
    assert Run(left, MARKS, 0.0).answering


def test_a_run_taken_up_in_the_middle_of_a_step_counts_all_of_it() -> None:
    left = hop(9).after(Chunk(thought=pack(A, B), open_entropy=0.25))
    run = Run(left, MARKS, 0.0)
    assert not run.wants_entropy, "the step's first token was glimpsed before"
    run.take(STOP, None, 1.0)
    assert run.drain(cached_tokens=0).steps == (CutStep(3, 0.25, 1000.0),)


@pytest.mark.parametrize("cut", range(17))
def test_a_repeat_is_found_wherever_the_hop_was_lost(cut: int) -> None:
    circle = [*range(10, 17), STOP] * 2
    asked = hop(9)
    first = write(asked, *circle[:cut])
    if first.ending is not None:
        assert cut == 16
        assert first.ending is Ending.REPEAT
        return
    second = write(asked.after(first.drain(cached_tokens=0)), *circle[cut:])
    assert second.ending is Ending.REPEAT


@pytest.mark.parametrize(
    ("fields", "tokens", "entropy", "ending", "written"),
    [
        ({"gate": 1.0}, [A, STOP], 1.0, None, [A, STOP]),
        ({"gate": 1.0}, [A, STOP], 1.01, Ending.GLIMPSE, []),
        ({"gate": 1.0}, [A], None, Ending.GLIMPSE, []),
        ({"gate": 1.0, "ungated_steps": 1}, [A, STOP, B], 2.0, Ending.GLIMPSE, [A, STOP]),
        ({"token_gate": 1.0}, [A], 1.01, Ending.TOKEN, []),
        ({"token_gate": 1.0, "open_tokens": 1}, [A], 1.01, Ending.TOKEN, []),
        ({"token_gate": 1.0, "open_tokens": 1}, [A], None, Ending.TOKEN, []),
        ({"token_gate": 1.0, "gate": 1.2}, [A, B, STOP], 1.0, None, [A, B, STOP]),
        ({"token_gate": 1.0, "gate": 0.5}, [A], 1.01, Ending.GLIMPSE, []),
        ({"token_gate": 1.0, "ungated_steps": 1, "open_tokens": 1}, [A, STOP, B], 2.0, Ending.TOKEN, [A, STOP]),
        ({"max_steps": 1, "max_tokens": 1}, [STOP, A], 0.0, Ending.STEPS, [STOP]),
        ({"max_steps": 2}, [A, STOP, B, STOP, A], 0.0, Ending.STEPS, [A, STOP, B, STOP]),
        ({}, [A, CLOSE, B], 0.0, Ending.THOUGHT, [A, CLOSE]),
        ({"answers": True}, [A, CLOSE, B, END], 0.0, Ending.TEXT, [A, CLOSE, B, END]),
        ({"answers": True, "tokens": 2}, [A, CLOSE, B], 0.0, Ending.THOUGHT, [A, CLOSE]),
        ({"answers": True, "tokens": 4}, [A, CLOSE, B, B, B], 0.0, Ending.LIMIT, [A, CLOSE, B, B]),
        ({"thinking_tokens": 2}, [A, B, A], 0.0, Ending.BUDGET, [A, B]),
        ({}, [A, END], 0.0, Ending.TEXT, [A]),
        ({}, [END], 0.0, Ending.TEXT, []),
        ({"plain": True}, [A, CLOSE, B, END], 0.0, Ending.TEXT, [A, CLOSE, B, END]),
        ({}, 2 * [*[A] * 8, STOP], 0.0, Ending.REPEAT, 2 * [*[A] * 8, STOP]),
        ({"plain": True}, [*(2 * [*[A] * 8, STOP]), END], 0.0, Ending.TEXT, [*(2 * [*[A] * 8, STOP]), END]),
        ({"thinking": False}, [A, CLOSE, STOP, END], 0.0, Ending.TEXT, [A, CLOSE, STOP, END]),
        ({"thinking": False, "tokens": 1}, [A, B], 0.0, Ending.LIMIT, [A]),
    ],
)
def test_why_a_hop_is_over(
    fields: dict, tokens: list[int], entropy: float | None, ending: Ending | None, written: list[int]
) -> None:
    run = write(hop(**fields), *tokens, entropy=entropy)
    assert run.ending is ending
    assert list(run.written) == written
    chunk = run.drain(cached_tokens=0)
    assert [*unpack(chunk.thought), *unpack(chunk.answer)] == written
    if ending not in (None, Ending.LIMIT, Ending.TOKEN):
        assert sum(step.tokens for step in chunk.steps) == len(unpack(chunk.thought)), "no thought without a step"


def test_a_guess_is_told_and_written_on_from_to_the_end_of_its_step() -> None:
    asked = hop(9, token_gate=1.0, guesses=2)
    run = Run(asked, MARKS, 0.0)
    assert [run.take(token, entropy, 1.0) for token, entropy in ((A, 0.5), (B, 1.5))] == [None, None]
    first = run.drain(cached_tokens=0)
    assert first == Chunk(pack(A), open_entropy=0.5, guess=Guess(B, 1.5, 1000.0))
    assert [run.take(token, 0.5, 2.0) for token in (A, STOP)] == [None, Ending.STEPS]
    assert run.drain(cached_tokens=0) == Chunk(pack(A, STOP), steps=(CutStep(4, 0.5, 2000.0),))
    assert (list(run.written), run.kept) == ([A, B, A, STOP], 3)
    left = asked.after(first)
    assert (list(unpack(left.prefix)), left.open_tokens, left.guesses) == ([9, A, B], 2, 1)
    assert (left.thinking_tokens, left.tokens) == (48, 58)


@pytest.mark.parametrize("token", [STOP, BLANK, CLOSE, END])
def test_a_token_that_may_end_something_is_no_guess(token: int) -> None:
    run = write(hop(token_gate=1.0, guesses=9), A, token, entropy=1.5)
    assert (run.ending, list(run.written)) == (Ending.TOKEN, [A])


@pytest.mark.parametrize(
    ("fields", "guessed"),
    [({"guesses": 2}, 2), ({"step_tokens": 4}, 3), ({"thinking_tokens": 4}, 3), ({"max_tokens": 4}, 3), ({}, 9)],
)
def test_as_many_guesses_as_were_asked_for_and_there_is_room_for(fields: dict, guessed: int) -> None:
    run = write(hop(**({"token_gate": 1.0, "guesses": 9} | fields)), *[A] * 20, entropy=1.5)
    assert (run.ending, list(run.written)) == (Ending.TOKEN, [A] * guessed)


def test_a_failed_glimpse_is_told() -> None:
    assert write(hop(gate=1.0), A, entropy=1.5).glimpse == 1.5


def test_a_token_written_in_the_middle_of_a_step_leaves_it_open() -> None:
    run = write(hop(9, A, open_tokens=1, open_entropy=0.5, open_ms=250.0, max_steps=1, max_tokens=1), B)
    assert (run.ending, run.open_ms) == (Ending.TOKENS, 1250.0)
    chunk = run.drain(cached_tokens=0)
    assert (list(unpack(chunk.thought)), chunk.steps, chunk.open_entropy) == ([B], (), 0.5)


def test_a_step_that_was_glimpsed_at_before_keeps_that_glimpse() -> None:
    run = write(hop(max_steps=1, open_entropy=2.5), A, STOP, entropy=0.1)
    assert run.drain(cached_tokens=0).steps == (CutStep(2, 2.5, 2000.0),)


def test_each_token_is_handed_out_once() -> None:
    run = write(hop(), A, STOP, B)
    first, second = run.drain(cached_tokens=3), run.drain(cached_tokens=3)
    assert list(unpack(first.thought)) == [A, STOP, B]
    assert [step.tokens for step in first.steps] == [2]
    assert (second.thought, second.steps) == (b"", ())


def test_the_engine_may_stop_at_a_delimiter_only_in_a_hop_of_one_ungated_step() -> None:
    assert Run(hop(max_steps=1), MARKS, 0.0).one_step
    assert not Run(hop(max_steps=1, gate=1.0), MARKS, 0.0).one_step
    assert not Run(hop(max_steps=2), MARKS, 0.0).one_step
    assert not Run(hop(max_steps=1, thinking=False), MARKS, 0.0).one_step
    assert not Run(hop(max_steps=1, max_tokens=1), MARKS, 0.0).one_step


def test_a_step_that_ends_with_the_budget_leaves_nothing_to_think() -> None:
    """Another hop would be asked for no tokens at all, which no engine takes."""
    assert write(hop(max_steps=1, thinking_tokens=3), A, B, STOP).ending is Ending.BUDGET
    assert write(hop(max_steps=1, thinking_tokens=4), A, B, STOP).ending is Ending.STEPS


def test_a_hop_of_one_token_that_was_lost_after_it_is_over() -> None:
    assert Run(hop(max_tokens=1).after(Chunk(thought=pack(A))), MARKS, 0.0).ending is Ending.TOKENS


@pytest.mark.parametrize(("thinking", "ending"), [(True, Ending.BUDGET), (False, Ending.LIMIT)])
def test_a_hop_whose_replica_was_lost_after_its_last_token_is_over(thinking: bool, ending: Ending) -> None:
    asked = hop(thinking=thinking, thinking_tokens=2, tokens=2)
    chunk = Chunk(thought=pack(A, B)) if thinking else Chunk(answer=pack(A, B), answering=True)
    assert Run(asked.after(chunk), MARKS, 0.0).ending is ending
