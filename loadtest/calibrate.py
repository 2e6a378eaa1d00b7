"""The threshold at which a pair of models comes to a wanted share of tokens by the large one, or to a wanted accuracy.

Share: a routed run tells the entropy at which each of its steps began, and so what share any other threshold would
have come to had the text stayed the same. It does not quite, so the threshold found is tried, until the share it
comes to is the wanted one. The interval is that of the threshold found, over problems drawn again with replacement.

Accuracy: thresholds over the range of the entropies are tried; the highest that is as right as wanted is taken. The
interval goes from the highest that surely is to the highest that may be (95 % each).

A token threshold is found in the same way, but that no run tells the entropies of its tokens: its share is tried where
those that were tried say that it lies.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from deployments.plan import is_ours
from loadtest.client import Reply, Step
from loadtest.command import MeasuringError
from loadtest.intervals import Estimate
from loadtest.outcomes import Outcome, Way
from loadtest.quality import Bench
from router.glimpse import MAX_ENTROPY

TOLERANCE = 0.01
LEAST = 1e-4
"""A share that is as good as none."""
TRIES = 5
DRAWS = 1000
GRID = 8
TOKEN_START = 0.5
TOKEN_GRID = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Nats. Nothing near 0, where every token takes two hops."""
Gate = Literal["threshold", "token_threshold"]
Weights = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """threshold in nats, with its 95 % interval; the share and the accuracy that it came to on the sample. gate: which
    of `routing`'s thresholds it is."""

    threshold: Estimate
    large_token_share: float
    accuracy: Estimate | None
    problems: int
    gate: Gate = "threshold"

    @property
    def note(self) -> str:
        right = f", {self.accuracy.value:.1%} right" if self.accuracy else ""
        return (
            f"{self.gate} {self.threshold.value:g} nats (95 %: {self.threshold.low:g} to {self.threshold.high:g}): "
            f"{self.large_token_share:.1%} of tokens by large{right}, {self.problems} problems"
        )


class Glimpses:
    """The steps of routed replies by how unsure the small model was at their beginning."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        steps = [
            (n, step.entropy, step.tokens, _single(step))
            for n, reply in enumerate(replies)
            for step in reply.steps
            if step.entropy is not None
        ]
        if not steps:
            raise MeasuringError("the server told of no step's entropy: is this a routed model?")
        steps.sort(key=lambda step: -step[1])
        self.entropies: NDArray[np.float64] = np.array([step[1] for step in steps])
        self._problem = np.array([step[0] for step in steps])
        self._more = np.array([step[2] - step[3] for step in steps], dtype=float)
        self._always = _answers(replies) + np.array([sum(map(_single, reply.steps)) for reply in replies])
        self._all = np.array([reply.tokens for reply in replies], dtype=float)

    def threshold(self, share: float, weights: Weights | None = None) -> float:
        """The lowest at which the large model's share would be no more than `share`. weights: how often each reply
        counts. Raises `MeasuringError` where no threshold reaches it."""
        weights = np.ones(len(self._all)) if weights is None else weights
        total = float(weights @ self._all)
        always = float(weights @ self._always)
        _reachable(share, always / total)
        shares = (always + np.cumsum(weights[self._problem] * self._more)) / total
        easy = int(np.searchsorted(shares, share, side="right"))
        if easy == len(shares):
            return 0.0
        # Between the last step that is handed over and the first that is not.
        above = min(MAX_ENTROPY, self.entropies[easy - 1]) if easy else MAX_ENTROPY
        return float(above + self.entropies[easy]) / 2

    def interval(self, share: float, seed: int) -> tuple[float, float]:
        """95 % of the thresholds found when the problems are drawn again."""
        return _interval(lambda weights: self.threshold(share, weights), len(self._all), seed)

    def grid(self) -> list[float]:
        """Thresholds from always large to always small, most of them where steps differ."""
        unsure = self.entropies[self.entropies > 0.01]
        inner = np.quantile(unsure, np.linspace(0.05, 0.95, GRID - 2)) if len(unsure) else ()
        return sorted({0.0, *(round(float(value), 3) for value in inner), round(MAX_ENTROPY, 3)})


class TokenThresholds:
    """Token thresholds that were tried on the same problems, and the large model's share at each. threshold: of steps,
    the same with all of them."""

    def __init__(self, tried: Mapping[float, Outcome], threshold: float) -> None:
        self._thresholds = sorted(tried)
        replies = [tried[threshold].replies for threshold in self._thresholds]
        self._large = np.array([[reply.large_tokens for reply in one] for one in replies], dtype=float)
        self._all = np.array([[reply.tokens for reply in one] for one in replies], dtype=float)
        hard = [sum(step.tokens for step in reply.steps if (step.entropy or 0.0) > threshold) for reply in replies[-1]]
        self._always = _answers(replies[-1]) + np.array(hard, dtype=float)

    def threshold(self, share: float, weights: Weights | None = None) -> float:
        """Where the share would be `share`: the logarithm of it falls evenly between two that were tried, from all
        tokens at 0 to those that are large's anyway at the highest entropy. Raises `MeasuringError` where these are
        more."""
        weights = np.ones(len(self._always)) if weights is None else weights
        least = float(weights @ self._always / (weights @ self._all[-1]))
        _reachable(share, least)
        shares = np.array([1.0, *(self._large @ weights / (self._all @ weights)), least])
        # Where texts part, a higher threshold may have come to more.
        logs = np.log(np.maximum(np.minimum.accumulate(shares), LEAST))
        return float(np.interp(-np.log(max(share, LEAST)), -logs, [0.0, *self._thresholds, MAX_ENTROPY]))

    def interval(self, share: float, seed: int) -> tuple[float, float]:
        """95 % of the thresholds found when the problems are drawn again."""
        return _interval(lambda weights: self.threshold(share, weights), len(self._always), seed)


def _answers(replies: Sequence[Reply]) -> NDArray[np.float64]:
    """Tokens by the large model that are of no step."""
    return np.array([reply.large_tokens - sum(step.by_large for step in reply.steps) for reply in replies], dtype=float)


def _single(step: Step) -> int:
    """Tokens by the large model in a step of the small one's: what a token threshold gives it."""
    return step.by_large if step.by_large < step.tokens else 0


def _reachable(share: float, least: float) -> None:
    if least > share:
        raise MeasuringError(
            f"{least:.1%} of the tokens are the large model's at any such threshold, by its answers and by the other "
            "threshold; ask for more, raise that one, or let the small model answer (routing.answer_by)"
        )


def _interval(find: Callable[[Weights], float], problems: int, seed: int) -> tuple[float, float]:
    dice = np.random.default_rng(seed)
    found = []
    for _ in range(DRAWS):
        weights = np.bincount(dice.integers(problems, size=problems), minlength=problems).astype(float)
        try:
            found.append(find(weights))
        except MeasuringError:
            found.append(MAX_ENTROPY)
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


async def by_share(bench: Bench, share: float, start: float) -> Calibrated:
    """The threshold for that share of tokens by the large model, 0..1."""
    threshold = start
    tried: list[tuple[float, Outcome]] = []
    while True:
        outcome = await bench.attempt(Way("routed", threshold))
        tried.append((threshold, outcome))
        off = abs(outcome.large_token_share - share)
        glimpses = Glimpses(outcome.replies)
        following = round(glimpses.threshold(share), 3)
        if off <= TOLERANCE or len(tried) == TRIES or any(following == one for one, _ in tried):
            break
        threshold = following
    threshold, outcome = min(tried, key=lambda one: abs(one[1].large_token_share - share))
    low, high = Glimpses(outcome.replies).interval(share, bench.seed)
    found = Estimate(threshold, round(min(low, threshold), 3), round(max(high, threshold), 3))
    return Calibrated(found, outcome.large_token_share, outcome.accuracy, len(outcome.replies))


async def by_accuracy(bench: Bench, accuracy: float, start: float) -> Calibrated:
    """The highest threshold that is right on that share of the problems, 0..1."""
    first = await bench.attempt(Way("routed", start))
    tried = {start: first}
    for threshold in Glimpses(first.replies).grid():
        if threshold not in tried:
            tried[threshold] = await bench.attempt(Way("routed", threshold))
    return highest(tried, accuracy)


async def tokens_by_share(bench: Bench, share: float, threshold: float) -> Calibrated:
    """The token threshold for that share of tokens by the large model, 0..1. threshold: of steps, as it stays."""
    tried: dict[float, Outcome] = {}
    following = TOKEN_START
    while following not in tried and len(tried) < TRIES:
        tried[following] = outcome = await bench.attempt(Way("routed", threshold, following))
        if abs(outcome.large_token_share - share) <= TOLERANCE:
            break
        following = round(TokenThresholds(tried, threshold).threshold(share), 3)
    nearest = min(tried, key=lambda one: abs(tried[one].large_token_share - share))
    outcome = tried[nearest]
    low, high = TokenThresholds(tried, threshold).interval(share, bench.seed)
    found = Estimate(nearest, round(min(low, nearest), 3), round(max(high, nearest), 3))
    return Calibrated(found, outcome.large_token_share, outcome.accuracy, len(outcome.replies), "token_threshold")


async def tokens_by_accuracy(bench: Bench, accuracy: float, threshold: float) -> Calibrated:
    """The highest token threshold that is right on that share of the problems, 0..1. threshold: of steps."""
    tried = {gate: await bench.attempt(Way("routed", threshold, gate)) for gate in TOKEN_GRID}
    return replace(highest(tried, accuracy), gate="token_threshold")


def highest(tried: dict[float, Outcome], accuracy: float) -> Calibrated:
    """Of what was tried, the highest threshold that is right often enough. Raises `MeasuringError` if none is."""

    def most(figure: str) -> float:
        return max((t for t, outcome in tried.items() if getattr(outcome.accuracy, figure) >= accuracy), default=0.0)

    if all(outcome.accuracy.value < accuracy for outcome in tried.values()):
        best = max(outcome.accuracy.value for outcome in tried.values())
        raise MeasuringError(f"no threshold is right on {accuracy:.1%}; the best is {best:.1%}: ask for that or less")
    found = Estimate(most("value"), most("low"), most("high"))
    outcome = tried[found.value]
    return Calibrated(found, outcome.large_token_share, outcome.accuracy, len(outcome.replies))


def read(profile: Path) -> tuple[YAML, Any, Any]:
    """A profile as it is to be written again: how, the whole of it, and our application. Raises `MeasuringError`."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        config: Any = yaml.load(profile.read_text())
        application = next(one for one in config["applications"] if is_ours(one) and "small" in one["args"])
    except (OSError, YAMLError, KeyError, TypeError, StopIteration):
        raise MeasuringError(f"{profile} is no profile; `glimprouter profiles` lists those that come along") from None
    return yaml, config, application


def _tuned(application: Any) -> Iterator[Any]:
    """What the router's `user_config` says, which wins over `args`."""
    for deployment in application.get("deployments") or ():
        if deployment.get("name") == "router" and deployment.get("user_config"):
            yield deployment["user_config"]


def write(profile: Path, found: Calibrated) -> None:
    """Put the threshold into the profile, with a comment line about it; all else stays as it is."""
    yaml, config, application = read(profile)
    application["args"].setdefault("routing", {})[found.gate] = found.threshold.value
    for tuned in _tuned(application):
        if tuned.get(found.gate) is not None:
            tuned[found.gate] = found.threshold.value
    text = io.StringIO()
    yaml.dump(config, text)
    lines = text.getvalue().splitlines()
    # Where the key ended up; ruamel only knows where it was read.
    again = YAML().load(text.getvalue())
    which = next(n for n, one in enumerate(config["applications"]) if one is application)
    row, column = again["applications"][which]["args"].lc.key("routing")
    mark = " " * column + "# calibrated "
    if row and lines[row - 1].startswith(mark):
        del lines[row - 1]
        row -= 1
    lines.insert(row, f"{mark}{date.today()}: {found.note}")
    try:
        profile.write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise MeasuringError(f"{profile} can't be written: {error.strerror}") from None
