from pathlib import Path

import pytest
import yaml

from deployments.config import AppConfig
from loadtest.command import PROFILE, MeasuringError
from loadtest.warm_up import FirstEscalation, Pair, Prompts, Row, shown, side_by_side

PREFILLED = {"with": 4000, "without": 3000}


def pair(ahead: float | None, plain: float | None, *, easy_steps: int = 2) -> Pair:
    told = {"with": ahead, "without": plain}
    return Pair(
        1000, {way: None if ms is None else FirstEscalation(easy_steps, ms, 2 * ms) for way, ms in told.items()}
    )


def test_medians_are_of_requests_that_escalate_after_an_easy_step() -> None:
    pairs = [pair(10, 30), pair(20, 40), pair(30, 50), pair(900, 900, easy_steps=0), pair(None, None)]
    row = Row.of(pairs, PREFILLED)
    assert (row.requests, row.step_ms_with, row.step_ms_without, row.arrival_ms_with) == (3, 20, 40, 40)
    assert (row.never_escalated, row.unused_tokens) == (1, 1000)
    assert "0.50" in shown([row])


def test_nothing_to_tell() -> None:
    with pytest.raises(MeasuringError):
        Row.of([pair(None, None)], PREFILLED)


def test_one_application_reads_ahead_and_the_other_never() -> None:
    with side_by_side(PROFILE) as (path, model):
        applications = yaml.safe_load(path.read_text())["applications"]
    assert Path(model).is_dir()
    assert [one["route_prefix"] for one in applications] == ["/", "/without"]
    assert [AppConfig.read(one["args"]).limits.warm_up_tokens for one in applications] == [1, None]


def test_prompts_are_as_long_as_asked_and_never_the_same() -> None:
    prompts = Prompts(str(PROFILE.parent.parent / "pocket" / "models" / "small"), seed=1)
    found = [prompts(500) for _ in range(3)]
    assert all(450 < tokens <= 500 for _, tokens in found)
    assert len({question.text[:20] for question, _ in found}) == 3
