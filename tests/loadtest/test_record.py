from __future__ import annotations

from pathlib import Path

from loadtest.receiver import Span
from loadtest.record import Writer, line, steps, writers
from loadtest.recorded import Step, read

SMALL, LARGE, GUESSED = Writer


def hop(name: str, prefix: int, tokens: int, *, kind: str = "run", guess: str | None = None) -> Span:
    attributes = {"glimpse.hop": kind, "glimpse.prefix.tokens": prefix, "gen_ai.usage.output_tokens": tokens}
    attributes |= {"glimpse.guess": guess} if guess else {}
    return Span("trace", "id", "parent", name, 0, 1, failed=False, attributes=attributes)


def test_who_wrote_each_token_is_told_by_where_the_large_models_hops_began() -> None:
    spans = [
        hop("run small", 5, 9),
        hop("step large", 7 + 1, 1, kind="token", guess="right"),
        hop("step large", 7 + 3, 1, kind="token", guess="wrong"),
        hop("step large", 7 + 5, 2, kind="step"),
        hop("step large", 7 + 9, 3, kind="answer"),
        hop("chat glimpse", 0, 9),
    ]
    assert writers(spans, 7, 8) == [SMALL, GUESSED, SMALL, LARGE, SMALL, LARGE, LARGE, SMALL]


def test_a_step_is_one_models_or_has_the_places_of_the_large_ones_tokens() -> None:
    by = [SMALL] * 5 + [LARGE] * 4 + [GUESSED, SMALL, SMALL, LARGE, SMALL, SMALL]
    assert steps([5, 4, 6], by) == [Step(5, False), Step(4, True), Step(6, False, (0, 3), (3,))]


def test_a_step_too_short_to_be_replayed_counts_to_the_one_before() -> None:
    by = [SMALL] * 5 + [GUESSED] * 2 + [SMALL] * 7
    assert steps([5, 2, 6, 1], by) == [Step(7, False, (5, 6)), Step(7, False)]
    assert steps([2, 6], [LARGE] * 8) == [Step(8, True)]


def test_what_was_recorded_is_read_as_it_was(tmp_path: Path) -> None:
    recorded = (Step(5, False), Step(4, True), Step(6, False, (0, 3), (3,)))
    path = tmp_path / "recording.jsonl"
    path.write_text(line(recorded))
    assert read(path) == [recorded]
