from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scripted import QUESTIONS, Scripted

from loadtest.calibrate import (
    TOKEN_GRID,
    Calibrated,
    Glimpses,
    TokenThresholds,
    by_share,
    highest,
    tokens_by_accuracy,
    tokens_by_share,
    write,
)
from loadtest.client import Client, Reply, Step
from loadtest.command import MeasuringError
from loadtest.intervals import Estimate
from loadtest.outcomes import Outcome, Way
from loadtest.quality import Bench
from router.glimpse import MAX_ENTROPY

PROFILES = sorted((Path(__file__).parents[2] / "deployments" / "profiles").glob("*.yaml"))


def reply(*steps: tuple[str, float, int], answer: int = 10) -> Reply:
    """A reply of such steps (writer, entropy, tokens), its answer by the large model."""
    told = tuple(Step(n, model, entropy, tokens, 1.0, "so") for n, (model, entropy, tokens) in enumerate(steps))
    thinking = sum(step.tokens for step in told)
    large = sum(step.tokens for step in told if step.model == "large") + answer
    return Reply("", "", thinking + answer, thinking, large, 1.0, 2, 1, told)


REPLIES = [
    reply(("small", 0.1, 40), ("large", 2.0, 30), ("small", 0.5, 20)),
    reply(("small", 0.2, 40), ("large", 1.5, 30), ("small", 0.4, 20)),
]


@pytest.mark.parametrize(
    ("share", "handed_over"), [(0.1, []), (0.25, [2.0]), (0.4, [2.0, 1.5]), (0.5, [2.0, 1.5, 0.5]), (1.0, None)]
)
def test_the_threshold_hands_over_as_many_steps_as_the_share_allows(
    share: float, handed_over: list[float] | None
) -> None:
    threshold = Glimpses(REPLIES).threshold(share)
    every = [step.entropy for one in REPLIES for step in one.steps if step.entropy is not None]
    assert sorted(h for h in every if h > threshold) == sorted(every if handed_over is None else handed_over)


def test_a_share_below_that_of_the_answers_is_refused() -> None:
    with pytest.raises(MeasuringError, match=r"10\.0% of the tokens"):
        Glimpses(REPLIES).threshold(0.05)


def test_what_single_tokens_give_the_large_model_counts_before_any_step_is_handed_over() -> None:
    whole, told = (
        REPLIES[0],
        (Step(0, "small", 0.1, 50, 1.0, "so", large_tokens=10), Step(1, "large", 2.0, 40, 1.0, "so")),
    )
    mixed = replace(whole, tokens=100, large_tokens=60, steps=told)
    glimpses = Glimpses([mixed])
    assert glimpses.threshold(0.2) > 2.0
    assert 0.1 < glimpses.threshold(0.6) < 2.0
    with pytest.raises(MeasuringError, match=r"20\.0% of the tokens"):
        glimpses.threshold(0.15)


def test_the_interval_holds_the_threshold_and_is_the_same_for_the_same_seed() -> None:
    glimpses = Glimpses(REPLIES * 10)
    low, high = glimpses.interval(0.4, 7)
    assert low <= glimpses.threshold(0.4) <= high
    assert (low, high) == glimpses.interval(0.4, 7)
    assert low < high


def test_the_grid_goes_from_always_large_to_always_small() -> None:
    grid = Glimpses(REPLIES).grid()
    assert grid[0] == 0.0
    assert grid[-1] == pytest.approx(MAX_ENTROPY, abs=1e-3)


def outcome(right: int, of: int = 100) -> Outcome:
    return Outcome(Way("routed"), (REPLIES[0],) * of, (None,) * of, (True,) * right + (False,) * (of - right))


def test_the_highest_threshold_that_is_right_often_enough_is_taken() -> None:
    found = highest({0.0: outcome(100), 0.5: outcome(98), 1.0: outcome(95), 1.5: outcome(91), 3.0: outcome(20)}, 0.95)
    assert found.threshold == Estimate(1.0, 0.0, 1.5)
    assert found.accuracy is not None
    assert found.accuracy.value == 0.95


def test_an_accuracy_out_of_reach_is_refused() -> None:
    with pytest.raises(MeasuringError, match=r"best is 60\.0%"):
        highest({0.0: outcome(60)}, 0.9)


async def test_a_share_is_tried_until_nothing_better_is_found(server: Scripted) -> None:
    async with Client("http://server", transport=server.transport) as client:
        bench = Bench(client, QUESTIONS, seed=7, concurrency=4, max_tokens=None)
        found = await by_share(bench, 0.25, 1.0)
    # Half the scripted problems have a third of their thinking, and all their answer, by the large model.
    assert found.large_token_share == 0.25
    assert found.threshold.value == 1.0
    assert found.problems == len(QUESTIONS)


@pytest.mark.parametrize("share", [0.15, 0.25, 0.5])
async def test_a_share_of_tokens_is_tried_where_those_that_were_tried_say_it_lies(
    server: Scripted, share: float
) -> None:
    async with Client("http://server", transport=server.transport) as client:
        bench = Bench(client, QUESTIONS, seed=7, concurrency=4, max_tokens=None)
        found = await tokens_by_share(bench, share, 1.0)
    assert found.gate == "token_threshold"
    assert found.large_token_share == pytest.approx(share, abs=0.011)
    assert found.threshold.value == pytest.approx(-math.log((share - 0.1) / 0.9) / 2, abs=0.15)
    assert found.threshold.low <= found.threshold.value <= found.threshold.high
    assert all(body["glimpse"]["threshold"] == 1.0 for body in server.bodies)


async def test_a_share_of_tokens_below_that_of_the_answers_is_refused(server: Scripted) -> None:
    async with Client("http://server", transport=server.transport) as client:
        bench = Bench(client, QUESTIONS, seed=7, concurrency=4, max_tokens=None)
        with pytest.raises(MeasuringError, match=r"10\.0% of the tokens"):
            await tokens_by_share(bench, 0.05, 1.0)


def by_tokens(*large: int) -> Outcome:
    """Replies of a hundred tokens, so many of each by the large model, none of them the answer's."""
    replies = tuple(
        Reply("", "", 100, 100, n, 1.0, 2, 1, (Step(0, "small", 0.1, 100, 1.0, "so", large_tokens=n),)) for n in large
    )
    return Outcome(Way("routed"), replies, (None,) * len(large), (True,) * len(large))


def test_a_token_threshold_lies_between_those_that_came_to_more_and_to_less() -> None:
    tried = TokenThresholds({0.5: by_tokens(40, 20), 1.0: by_tokens(20, 4)}, 3.0)
    assert 0.5 < tried.threshold(0.2) < 1.0
    assert tried.threshold(0.3) == pytest.approx(0.5)
    assert 0.0 < tried.threshold(0.6) < 0.5
    assert 1.0 < tried.threshold(0.05) < MAX_ENTROPY
    assert tried.threshold(0.0) == pytest.approx(MAX_ENTROPY)
    low, high = tried.interval(0.2, 7)
    assert low < tried.threshold(0.2) < high


def test_steps_that_the_other_threshold_hands_over_are_the_least_there_is() -> None:
    steps = (Step(0, "small", 0.1, 60, 1.0, "so", large_tokens=6), Step(1, "large", 2.0, 40, 1.0, "so"))
    outcome = Outcome(Way("routed"), (replace(REPLIES[0], tokens=100, large_tokens=46, steps=steps),), (None,), (True,))
    tried = TokenThresholds({1.0: outcome}, 1.5)
    assert tried.threshold(0.46) == pytest.approx(1.0)
    assert 1.0 < tried.threshold(0.42) < MAX_ENTROPY
    with pytest.raises(MeasuringError, match=r"40\.0% of the tokens"):
        tried.threshold(0.3)


async def test_the_highest_token_threshold_that_is_right_often_enough_is_taken(server: Scripted) -> None:
    async with Client("http://server", transport=server.transport) as client:
        bench = Bench(client, QUESTIONS, seed=7, concurrency=4, max_tokens=None)
        found = await tokens_by_accuracy(bench, 0.9, 1.0)
    assert (found.gate, found.threshold.value) == ("token_threshold", max(TOKEN_GRID))


FOUND = Calibrated(Estimate(0.731, 0.6, 0.9), 0.25, Estimate(0.9, 0.8, 0.95), 100)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_gets_the_threshold_and_keeps_all_else(profile: Path, tmp_path: Path) -> None:
    copy = tmp_path / profile.name
    copy.write_text(profile.read_text())
    write(copy, FOUND)
    assert yaml.safe_load(copy.read_text())["applications"][0]["args"]["routing"]["threshold"] == 0.731
    before, after = profile.read_text().splitlines(), copy.read_text().splitlines()
    assert len(after) == len(before) + 1
    assert len(set(after) - set(before)) == 2
    assert "95 %: 0.6 to 0.9" in copy.read_text()
    write(copy, FOUND)
    assert copy.read_text().splitlines() == after


def test_a_threshold_that_wins_over_the_profiles_is_replaced_too(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "applications:\n  - import_path: deployments.app:build\n    args: {small: {}, routing: {threshold: 0.5}}\n"
        "    deployments:\n      - name: router\n        user_config: {threshold: 0.8, answer_by: large}\n"
    )
    write(path, FOUND)
    (application,) = yaml.safe_load(path.read_text())["applications"]
    assert application["args"]["routing"]["threshold"] == FOUND.threshold.value
    assert application["deployments"][0]["user_config"] == {"threshold": FOUND.threshold.value, "answer_by": "large"}


def test_a_token_threshold_is_written_beside_the_other(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PROFILES[0].read_text())
    routing = yaml.safe_load(path.read_text())["applications"][0]["args"]["routing"]
    write(path, replace(FOUND, gate="token_threshold"))
    written = yaml.safe_load(path.read_text())["applications"][0]["args"]["routing"]
    assert written == routing | {"token_threshold": 0.731}
    assert "token_threshold 0.731 nats" in path.read_text()


def test_a_profile_without_a_threshold_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "applications:\n  - import_path: deployments.app:build\n    args:\n      small: {model: a} # mine\n"
    )
    write(path, FOUND)
    assert yaml.safe_load(path.read_text())["applications"][0]["args"]["routing"] == {"threshold": 0.731}
    assert "# mine" in path.read_text()


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("a: 1\n")
    with pytest.raises(MeasuringError, match="is no profile"):
        write(path, FOUND)
