"""A hop: what the router hands a pool, what comes back, and the writing in between.

`Run` is what a replica does with its engine's tokens: keep them, cut them into steps, look at each step's
first token, and say when the hop is over. It sees tokens and entropies only, so any engine can drive it.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from router.request import Sampling
from router.steps import Marks, StepCutter

UNBOUNDED = 1_000_000
"""Steps or tokens: no bound of the policy's own; the budget's still holds."""

LAST = 2**30
"""The priority of hops that nobody waits for: behind every live one."""


def unpack(packed: bytes) -> array[int]:
    """Token IDs from native int32 bytes, 4 per token: the form in which they cross from process to process."""
    ids = array("i")
    ids.frombytes(packed)
    return ids


class HopLost(Exception):
    """The replica that was writing the hop is gone; what it had passed on stands."""


class StrangePair(Exception):
    """The hop began on another pair of models than this replica serves."""


class QueueFull(Exception):
    """The engine takes no more requests now."""


class Ending(StrEnum):
    """Why a hop is over."""

    GLIMPSE = "glimpse"  # a step's first token was above the gate; it was not written
    TOKEN = "token"  # a token was above the token gate; it was not written
    STEPS = "steps"  # as many steps as were asked for
    TOKENS = "tokens"  # as many tokens as were asked for, in the middle of a step
    THOUGHT = "thought"  # the end-of-thinking token was written
    REPEAT = "repeat"  # the last two steps are the same
    BUDGET = "budget"  # no tokens left for thinking
    TEXT = "text"  # the model ended its text
    LIMIT = "limit"  # no tokens left for the answer
    LEFT = "left"  # a guess was wrong, and the request went on without it
    STOP = "stop"  # one of the client's stop strings


@dataclass(frozen=True, slots=True)
class Guess:
    """A token above the token gate that its writer went on from: all that it wrote after it stands if the other model
    writes the same token there. entropy: nats. open_ms: what the tokens before it took of their step."""

    token: int
    entropy: float
    open_ms: float


@dataclass(frozen=True, slots=True)
class Hop:
    """Work for one replica: write on from `prefix`.

    pair: fingerprint of the pair the request began with.
    prefix: prompt and body so far, packed, in this pool's own vocabulary.
    thinking: whether the prefix is still inside the thinking; else the answer is wanted.
    gate: threshold in nats on each step's first token; None writes ungated. token_gate: the same on every token.
    watched: nats; entropies of tokens above it are told in the end, whatever becomes of them.
    guesses: so many tokens above the token gate may be written on from, to the end of the step at most; each is told in
        a `Guess`. guess: the one that this hop, of the large model, is to tell right or wrong.
    ungated_steps: that many steps at the start are not gated.
    max_steps, max_tokens: steps and tokens of thinking to write at most.
    step_tokens: a longer step is cut here.
    thinking_tokens, tokens: budgets left, for thinking and in all.
    answers: go on with the answer when the thinking ends by itself.
    plain: the pair reasons in plain text until its end token, so the end-of-thinking token means nothing, and two
        equal paragraphs are what was asked for.
    open_tokens: tokens at the prefix's end that belong to a step already begun; last_step_tokens: length of the
        complete step before it (0: unknown); open_entropy: the glimpse at the step begun or, with no token of it
        yet, to be begun; open_ms: what its tokens took.
    glimpses: report entropies even without a gate.
    streaming: in chunks, as it is written; opening: the reply begins with it, so its first token is not kept waiting.
    timeout_s: seconds that the hop may take.
    conversation: hops of one conversation go to the replica that holds its prefix.
    trace: W3C headers of the hop's span; empty where the request has none.
    priority: among the hops that wait for an engine, lower comes first.
    """

    pair: str
    prefix: bytes = field(repr=False)
    sampling: Sampling
    thinking: bool = True
    gate: float | None = None
    token_gate: float | None = None
    watched: float | None = None
    guesses: int = 0
    guess: Guess | None = None
    ungated_steps: int = 0
    max_steps: int = 256
    max_tokens: int = UNBOUNDED
    step_tokens: int = 512
    thinking_tokens: int = 0
    tokens: int = 0
    answers: bool = False
    plain: bool = False
    open_tokens: int = 0
    last_step_tokens: int = 0
    open_entropy: float | None = None
    open_ms: float = 0.0
    glimpses: bool = False
    streaming: bool = False
    timeout_s: float = 600.0
    request: str = ""
    conversation: str = ""
    tenant: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    opening: bool = False

    @property
    def prefix_tokens(self) -> int:
        return len(self.prefix) // 4

    def after(self, chunk: Chunk) -> Hop:
        """The hop that is left once `chunk` has been passed on: what a lost replica's successor is asked for."""
        thought = chunk.thought + (array("i", [chunk.guess.token]).tobytes() if chunk.guess else b"")
        open_tokens, last = self.open_tokens + len(thought) // 4, self.last_step_tokens
        for step in chunk.steps:
            # The first step may have begun before this hop: its length counts what stood in the prefix.
            last, open_tokens = step.tokens, open_tokens - step.tokens
        return replace(
            self,
            prefix=self.prefix + thought + chunk.answer,
            thinking=self.thinking and not chunk.answering,
            guesses=self.guesses - (chunk.guess is not None),
            ungated_steps=max(0, self.ungated_steps - len(chunk.steps)),
            max_steps=self.max_steps - len(chunk.steps),
            max_tokens=self.max_tokens - len(thought) // 4,
            thinking_tokens=self.thinking_tokens - len(thought) // 4,
            tokens=self.tokens - (len(thought) + len(chunk.answer)) // 4,
            open_tokens=0 if chunk.answering else open_tokens,
            last_step_tokens=last,
            open_entropy=chunk.open_entropy,
            open_ms=0.0 if chunk.steps else self.open_ms,
        )


@dataclass(frozen=True, slots=True)
class CutStep:
    """A step that ended: its length in tokens (with what the prefix already held of it), the entropy at its first
    token in nats, None if nobody glimpsed, and how long the writing took. `large_tokens`, which only the router knows:
    those that the large model wrote."""

    tokens: int
    entropy: float | None
    duration_ms: float
    large_tokens: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """The close of a hop. `glimpse` is the entropy that failed a gate; `open_ms` what the tokens took of a step that
    has not ended; `discarded_tokens` were generated past the end; `resumed` counts the replicas that were lost on the
    way; `load` is the replica's as it closes: hops under way for each that it takes; `watched` are the entropies that
    were above the hop's mark."""

    ending: Ending
    glimpse: float | None = None
    open_ms: float = 0.0
    discarded_tokens: int = 0
    engine_ms: float = 0.0
    replica: str = ""
    resumed: int = 0
    load: float = 0.0
    watched: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of a hop in the order they were written: `thought` and `answer` packed, the steps that ended within,
    whether the thinking is over, the glimpse at a step that has begun and not ended, the `guess` that comes after these
    tokens and is none of them, `end` on the last chunk."""

    thought: bytes = field(default=b"", repr=False)
    answer: bytes = field(default=b"", repr=False)
    steps: tuple[CutStep, ...] = ()
    answering: bool = False
    cached_tokens: int = 0
    open_entropy: float | None = None
    guess: Guess | None = None
    end: End | None = None

    @property
    def tokens(self) -> int:
        return (len(self.thought) + len(self.answer)) // 4


PULSE = Chunk()
"""Says only that the replica lives which writes the hop."""


class Run:
    """One hop as it is being written.

    Feed `take` with the engine's tokens until it returns an `Ending`; `drain` hands out what has been written
    since the last call, and has to be called where there is a `guess`. `kept` of the tokens were written and were no
    guesses.
    """

    def __init__(self, hop: Hop, marks: Marks, now: float) -> None:
        self._hop, self._marks = hop, marks
        self.answering = not hop.thinking
        self.ending: Ending | None = None
        self.glimpse: float | None = None
        self.open_ms = 0.0
        self.guess: Guess | None = None
        self.watched: list[float] = []
        self._guesses = 0
        self.written = array("i")
        self._open, before = _tail(hop)
        self._cutter = StepCutter(marks, hop.step_tokens, open=self._open, before=before)
        self._entropy = hop.open_entropy
        self._began = now - hop.open_ms / 1000.0
        self._thought_tokens = self._steps_done = 0
        self._thought, self._answer = array("i"), array("i")
        self._steps: list[CutStep] = []
        # A replica may be lost after the last token that it was to write.
        if (hop.tokens if self.answering else hop.thinking_tokens) < 1:
            self.ending = Ending.LIMIT if self.answering else Ending.BUDGET
        elif not self.answering and hop.max_tokens < 1:
            self.ending = Ending.TOKENS

    @property
    def wants_entropy(self) -> bool:
        """Whether the next token's distribution is looked at."""
        return not self.answering and (self._cutter.at_start or self._hop.token_gate is not None)

    def take(self, token: int, entropy: float | None, now: float) -> Ending | None:
        """Take the engine's next token and, where that is wanted, the entropy of its distribution in nats.

        now: seconds, any monotonic clock. Returns why the hop is over, or None to go on.
        """
        self.ending = self._answer_on(token) if self.answering else self._think_on(token, entropy, now)
        return self.ending

    def drain(self, *, cached_tokens: int, end: End | None = None) -> Chunk:
        """What was written since the last `drain`."""
        chunk = Chunk(
            self._thought.tobytes(),
            self._answer.tobytes(),
            tuple(self._steps),
            self.answering,
            cached_tokens,
            self._entropy,
            self.guess,
            end,
        )
        self._thought, self._answer, self._steps, self.guess = array("i"), array("i"), [], None
        return chunk

    @property
    def kept(self) -> int:
        return len(self.written) - self._guesses

    def _think_on(self, token: int, entropy: float | None, now: float) -> Ending | None:
        hop = self._hop
        gated = self._steps_done >= hop.ungated_steps
        if self._cutter.at_start:
            if gated and _above(entropy, hop.gate):
                self.glimpse = entropy
                return Ending.GLIMPSE
            # A step that was glimpsed at before this hop keeps that glimpse.
            self._entropy = entropy if self._entropy is None else self._entropy
        if entropy is not None and _above(entropy, hop.watched):
            self.watched.append(entropy)
        if gated and _above(entropy, hop.token_gate):
            if entropy is not None and self._may_guess(token):
                self._go_on_from(Guess(token, entropy, self._open_for(now)))
                return None
            self.glimpse = entropy
            return self._leave_open(Ending.TOKEN, now)
        if token in self._marks.ends and not hop.plain:
            # A model that ends its turn while it thinks still owes an answer: this token must not reach the prefix.
            self._end_open_step(now)
            return Ending.TEXT
        self._thought.append(token)
        self.written.append(token)
        self._thought_tokens += 1
        step_over = self._cutter.add(token)
        if token in self._marks.ends:
            self._end_step(now)
            return Ending.TEXT
        if token == self._marks.close and not hop.plain:
            self._end_step(now)
            self.answering = True
            return None if hop.answers and self.tokens_left > 0 else Ending.THOUGHT
        if step_over and self._end_step(now) and not hop.plain:
            return Ending.REPEAT
        if self._thought_tokens >= hop.thinking_tokens:
            self._end_open_step(now)
            return Ending.BUDGET
        if step_over and (self._steps_done >= hop.max_steps or self._guesses):
            return Ending.STEPS
        return self._leave_open(Ending.TOKENS, now) if self._thought_tokens >= hop.max_tokens else None

    def _may_guess(self, token: int) -> bool:
        """Whether the hop is to guess, and nothing would end with this token."""
        hop, marks = self._hop, self._marks
        words_only = not marks[token] and token != marks.close and token not in marks.ends
        room = min(hop.thinking_tokens, hop.max_tokens) - self._thought_tokens
        return (
            self._guesses < hop.guesses and words_only and room > 1 and self._cutter.open_tokens + 1 < hop.step_tokens
        )

    def _go_on_from(self, guess: Guess) -> None:
        self.guess = guess
        self._guesses += 1
        self._thought_tokens += 1
        self.written.append(guess.token)
        self._cutter.add(guess.token)

    def _leave_open(self, ending: Ending, now: float) -> Ending:
        self.open_ms = self._open_for(now)
        return ending

    def _open_for(self, now: float) -> float:
        """Milliseconds."""
        return 0.0 if self._cutter.at_start else (now - self._began) * 1000.0

    def _answer_on(self, token: int) -> Ending | None:
        self._answer.append(token)
        self.written.append(token)
        if token in self._marks.ends:
            return Ending.TEXT
        return None if self.tokens_left > 0 else Ending.LIMIT

    def _end_step(self, now: float) -> bool:
        self._steps.append(CutStep(self._cutter.open_tokens, self._entropy, (now - self._began) * 1000.0))
        self._steps_done += 1
        self._began, self._entropy = now, None
        return self._cutter.close()

    def _end_open_step(self, now: float) -> None:
        if not self._cutter.at_start:
            self._end_step(now)

    @property
    def tokens_left(self) -> int:
        """How many more tokens an engine may be asked for."""
        if self.answering or self._hop.answers:
            return self._hop.tokens - len(self.written)
        return min(self._hop.thinking_tokens, self._hop.max_tokens) - self._thought_tokens

    @property
    def one_step(self) -> bool:
        """Whether the first delimiter ends the hop, so that the engine has to stop there by itself. A last token needs
        no telling."""
        hop = self._hop
        return not self.answering and hop.gate is None and hop.max_steps - self._steps_done == 1 < self.tokens_left


def _above(entropy: float | None, gate: float | None) -> bool:
    """Whether a gate closes, as it does before a token of which nothing is known."""
    return gate is not None and (entropy is None or entropy > gate)


def _tail(hop: Hop) -> tuple[array[int], array[int]]:
    """The begun step and the complete one before it, read off the prefix's end."""
    if not hop.open_tokens and not hop.last_step_tokens:
        return array("i"), array("i")
    tail = unpack(hop.prefix[-4 * (hop.open_tokens + hop.last_step_tokens) :])
    cut = len(tail) - hop.open_tokens
    return tail[cut:], tail[:cut]
