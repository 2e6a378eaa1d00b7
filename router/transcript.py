"""A request as it is written: its prefix, what is left of its budget, and its account."""

from __future__ import annotations

import hashlib
import math
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from router.budget import Budget
from router.hop import UNBOUNDED, Chunk, CutStep, End, Ending, Guess, Hop, ReadAhead, unpack
from router.policy import Alone, Policy, Turn
from router.prefix import Prefix, other
from router.request import FinishReason, Model, ModelUsage, Sampling

SOME_WORDS = 16
"""Tokens: about a short step."""


@dataclass(frozen=True, slots=True)
class Task:
    """What stays the same while a request is written.

    answer_by: who writes the answer. deadline: on the monotonic clock, in seconds. plain: the pair has no think
    tags, so all is one text. closing: IDs that end the thinking when the router does it, per vocabulary.
    carries_lengths: whether a step has as many tokens for one model as for the other. dispensable: models that the
    other one may stand in for when they can't answer.
    """

    id: str
    pair: str
    policy: Policy
    answer_by: Model
    budget: Budget
    sampling: Sampling = field(default_factory=Sampling)
    deadline: float = float("inf")
    max_large_share: float = 1.0
    plain: bool = False
    closing: Mapping[Model, Sequence[int]] = field(default_factory=dict)
    carries_lengths: bool = True
    dispensable: frozenset[Model] = frozenset()
    streaming: bool = False
    glimpses: bool = False
    tenant: str = ""
    conversation: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """What one chunk added: IDs in the writer's vocabulary, and the steps that ended in it. `prefix_tokens` and
    `cached_tokens` are those of its hop; `end` is there on a hop's last passage."""

    model: Model
    thought: array[int]
    answer: array[int]
    steps: tuple[CutStep, ...]
    prefix_tokens: int
    cached_tokens: int
    end: End | None


class Transcript:
    """The state of one request. All of it is here, so a router replica holds nothing between requests."""

    def __init__(self, task: Task, prefix: Prefix) -> None:
        self.task, self.prefix = task, prefix
        self.thinking = task.budget.thinking > 0 or task.plain
        self.finish_reason: FinishReason | None = None
        self.last: Ending | None = None
        self.usage: dict[Model, ModelUsage] = {}
        self.reasoning_tokens = self.discarded_tokens = 0
        self.hops = self.resumed_hops = self.escalations = self.steps = 0
        self.large_share_spent = False
        self.policy = task.policy
        self.degraded: Model | None = None
        self._open_tokens = self._open_large_tokens = self._unseen = 0
        self._open_ms = 0.0
        self._open_entropy: float | None = None
        self._last_step: tuple[Model, int] = ("small", 0)
        self._hop_prefix_tokens: dict[Model, int] = {}
        self._guess: Guess | None = None
        self._guessed_after = -1
        self._portion = self._answered = 0
        if not self.thinking:
            self._close_thinking()

    @property
    def committed_tokens(self) -> int:
        return sum(used.completion_tokens for used in self.usage.values())

    @property
    def large_share(self) -> float:
        """The large model's share of the tokens committed so far, 0..1."""
        large = self.usage.get("large", ModelUsage()).completion_tokens
        return large / self.committed_tokens if large else 0.0

    def next(self) -> tuple[Model, Hop]:
        """Who writes on, and from where: a turn of the thinking, or the answer."""
        if not self.thinking:
            writer = self.answer_by
            self.large_share_spent |= writer != self.task.answer_by and self.degraded is None
            hop = replace(self._hop(writer), thinking=False)
            self._portion = min(hop.tokens, self._room(writer))
            return writer, replace(hop, tokens=self._portion)
        turn = self.policy.turn(self.last, self.large_share)
        return turn.model, self._think(turn)

    def _think(self, turn: Turn) -> Hop:
        task, budget = self.task, self.task.budget
        escalated = turn.model == "large" and self.last in (Ending.GLIMPSE, Ending.TOKEN)
        self.escalations += escalated
        self.large_share_spent |= turn.ungated_steps > 0
        # A step that the other model began has some length in this one's tokens, nobody knows which.
        known = task.carries_lengths
        self._unseen = 0 if known else self._open_tokens
        writer, tokens = self._last_step
        return replace(
            self._hop(turn.model),
            gate=turn.gate,
            token_gate=turn.token_gate,
            guesses=turn.guesses if turn.token_gate is not None else 0,
            guess=self._guess if escalated and self.committed_tokens == self._guessed_after else None,
            ungated_steps=turn.ungated_steps,
            max_steps=turn.steps if task.plain else min(turn.steps, budget.steps - self.steps),
            max_tokens=turn.tokens,
            thinking_tokens=(budget.tokens if task.plain else budget.thinking) - self.reasoning_tokens,
            answers=turn.tokens == UNBOUNDED and self._may_go_on(turn.model),
            open_tokens=self._open_tokens if known else 0,
            last_step_tokens=tokens if known or writer == turn.model else 0,
            open_entropy=self._open_entropy,
            open_ms=self._open_ms,
        )

    @property
    def answer_by(self) -> Model:
        if self.degraded:
            return other(self.degraded)
        share_spent = self.large_share >= self.task.max_large_share < 1.0
        return "small" if share_spent else self.task.answer_by

    def _room(self, model: Model) -> int:
        """Tokens that a model may write before the large one's share is spent, at least some words; one that stands in
        for the other writes all."""
        share = self.task.max_large_share
        if model == "small" or share >= 1.0 or self.degraded:
            return self.task.budget.tokens
        large = self.usage.get("large", ModelUsage()).completion_tokens
        return max(SOME_WORDS, math.ceil((share * self.committed_tokens - large) / (1.0 - share)))

    def commit(self, model: Model, chunk: Chunk) -> Passage:
        """Take in a chunk of `model`'s hop."""
        thought, answer = unpack(chunk.thought), unpack(chunk.answer)
        self.prefix.commit(model, thought + answer)
        self._count(model, len(thought) + len(answer), chunk.cached_tokens)
        self._answered += len(answer)
        self.reasoning_tokens += len(thought)
        self.steps += len(chunk.steps)
        written = self._whole(chunk.steps)
        left_open = self._open_tokens + len(thought) - sum(step.tokens for step in written)
        steps = tuple(self._ended(model, step) for step in written)
        self._begun(model, left_open - self._open_tokens)
        if steps:
            self._last_step = (model, chunk.steps[-1].tokens)
        self._open_entropy = chunk.open_entropy
        if chunk.guess is not None:
            self.last, self._open_ms = Ending.TOKEN, chunk.guess.open_ms
            self._guess, self._guessed_after = chunk.guess, self.committed_tokens
        if chunk.end is not None:
            self._hop_over(chunk.end, answering=chunk.answering)
        prefix_tokens = self._hop_prefix_tokens[model]
        return Passage(model, thought, answer, steps, prefix_tokens, chunk.cached_tokens, chunk.end)

    @property
    def as_guessed(self) -> bool:
        """Whether what was written since the last guess is that token and nothing else."""
        once = self.last is Ending.TOKENS and self.committed_tokens == self._guessed_after + 1
        return once and self._guess is not None and self.prefix.ids("small")[-1] == self._guess.token

    def ahead(self, model: Model) -> Hop:
        """A hop from all that is written so far, for a replica that is to write nothing."""
        return self._hop(model)

    def read_ahead(self, model: Model, read: ReadAhead) -> None:
        """What `model` had to read for this request alone is found in its cache later, and is no discount on it."""
        self.discarded_tokens += read.discarded_tokens
        if (used := self.usage.get(model)) is not None:
            self.usage[model] = replace(used, cached_tokens=min(used.cached_tokens, read.cached_tokens))

    def go_on_without(self, model: Model) -> bool:
        """Let the other model write the rest, if the profile says so."""
        if self.degraded or model not in self.task.dispensable:
            return False
        self.degraded = model
        self.policy = Alone(other(model))
        return True

    def finish(self, reason: FinishReason) -> None:
        self.thinking, self.finish_reason = False, reason

    def _hop(self, model: Model) -> Hop:
        task = self.task
        ids = self.prefix.ids(model)
        self._answered = 0
        self._hop_prefix_tokens[model] = len(ids)
        stop = task.sampling.stop if task.plain or not self.thinking else ()
        return Hop(
            pair=task.pair,
            prefix=ids.tobytes(),
            sampling=replace(task.sampling, seed=self._hop_seed(model, len(ids)), stop=stop),
            step_tokens=task.budget.step_tokens,
            tokens=task.budget.tokens - self.committed_tokens,
            plain=task.plain,
            # An entropy is the small model's, or nobody's.
            glimpses=task.glimpses and model == "small",
            streaming=task.streaming,
            timeout_s=task.deadline - time.monotonic(),
            request=task.id,
            tenant=task.tenant,
            conversation=task.conversation,
            priority=task.priority,
            opening=not self.committed_tokens,
        )

    def _hop_seed(self, model: Model, position: int) -> int | None:
        # With the request's own seed every hop would draw the same noise again.
        if self.task.sampling.seed is None:
            return None
        text = f"{self.task.sampling.seed}/{position}/{model}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1

    def _may_go_on(self, model: Model) -> bool:
        task = self.task
        # Whose the answer is by the share then is seen when it begins.
        answers = other(self.degraded) if self.degraded else task.answer_by
        share_bound = model == "large" and task.max_large_share < 1.0
        return not task.plain and model == answers and not task.sampling.stop and not share_bound

    def _count(self, model: Model, tokens: int, cached_tokens: int) -> None:
        used = self.usage.get(model)
        if used is None:
            prompt = self.prefix.prompt_tokens[model]
            used = ModelUsage(prompt_tokens=prompt, cached_tokens=min(cached_tokens, prompt))
        self.usage[model] = replace(used, completion_tokens=used.completion_tokens + tokens)

    def _whole(self, steps: tuple[CutStep, ...]) -> tuple[CutStep, ...]:
        """The steps of a chunk, the first with those of its tokens that its hop knew nothing of."""
        if not steps or not self._unseen:
            return steps
        unseen, self._unseen = self._unseen, 0
        return (replace(steps[0], tokens=steps[0].tokens + unseen), *steps[1:])

    def _begun(self, model: Model, tokens: int) -> None:
        self._open_tokens += tokens
        self._open_large_tokens += tokens if model == "large" else 0

    def _ended(self, model: Model, step: CutStep) -> CutStep:
        self._begun(model, step.tokens - self._open_tokens)
        large, self._open_tokens, self._open_large_tokens = self._open_large_tokens, 0, 0
        return replace(step, large_tokens=large) if large else step

    def _hop_over(self, end: End, *, answering: bool) -> None:
        self.last = end.ending
        self.hops += 1
        self.resumed_hops += end.resumed
        self.discarded_tokens += end.discarded_tokens
        self._open_ms = end.open_ms
        if not self._open_tokens and end.glimpse is not None:
            self._open_entropy = end.glimpse
        text_over = end.ending is Ending.TEXT and (self.task.plain or answering)
        if text_over or end.ending is Ending.STOP:
            self.finish("stop")
        elif end.ending is Ending.LIMIT and not self._answer_goes_on:
            self.finish("length")
        elif end.ending is Ending.THOUGHT:
            self.thinking = False
        elif end.ending in (Ending.REPEAT, Ending.BUDGET, Ending.TEXT) or self._steps_spent:
            self._close_thinking()
        if self.finish_reason is None and self.committed_tokens >= self.task.budget.tokens:
            self.finish("length")

    @property
    def _answer_goes_on(self) -> bool:
        """Whether a hop of the answer ended because only a portion of it was asked for."""
        return 0 < self._portion == self._answered and self.committed_tokens < self.task.budget.tokens

    @property
    def _steps_spent(self) -> bool:
        return not self.task.plain and self.steps >= self.task.budget.steps

    def _close_thinking(self) -> None:
        self.thinking = False
        if self.task.plain:
            self.finish("length")
        else:
            self.prefix.insert(self.task.closing)
