from __future__ import annotations

from pathlib import Path

from loadtest.receiver import Span
from loadtest.record import line, steps, writers
from loadtest.recorded import Step, read


def hop(name: str, began: int, tokens: int) -> Span:
    attributes = {"gen_ai.usage.output_tokens": tokens}
    return Span("trace", str(began), "parent", name, began, began + 1, failed=False, attributes=attributes)


def test_who_wrote_each_token_is_told_by_the_hops_in_their_order() -> None:
    spans = [hop("step large", 2, 1), hop("run small", 1, 2), hop("chat glimpse", 0, 9), hop("run small", 3, 0)]
    assert writers(spans) == [False, False, True]


def test_a_step_is_one_models_or_has_the_places_of_the_large_ones_tokens() -> None:
    by_large = [False] * 5 + [True] * 4 + [True, False, False, True, False, False]
    assert steps([5, 4, 6], by_large) == [Step(5, False), Step(4, True), Step(6, False, (0, 3))]


def test_a_step_too_short_to_be_replayed_counts_to_the_one_before() -> None:
    assert steps([5, 2, 6, 1], [False] * 5 + [True] * 2 + [False] * 7) == [Step(7, False, (5, 6)), Step(7, False)]
    assert steps([2, 6], [True] * 8) == [Step(8, True)]


def test_what_was_recorded_is_read_as_it_was(tmp_path: Path) -> None:
    recorded = (Step(5, False), Step(4, True), Step(6, False, (0, 3)))
    path = tmp_path / "recording.jsonl"
    path.write_text(line(recorded))
    assert read(path) == [recorded]
