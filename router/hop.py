"""A hop: what the router hands a pool, and what comes back (`router.run` is the writing in between)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from router.request import Sampling

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


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """What came of reading a prefix before any hop needs it: tokens that were generated in doing so, and thrown away,
    and how many of the prefix were in the KV cache already."""

    discarded_tokens: int
    cached_tokens: int


PULSE = Chunk()
"""Says only that the replica lives which writes the hop."""
