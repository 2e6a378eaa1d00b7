"""A hop as it is written: what a replica does with its engine's tokens.

It keeps them, cuts them into steps, looks at each step's first token, and says when the hop is over. It sees tokens and
entropies only, so any engine can drive it.
"""

from __future__ import annotations

from array import array

from router.hop import Chunk, CutStep, End, Ending, Guess, Hop, unpack
from router.steps import Marks, StepCutter


class Run:
    """One hop under way.

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

    def cut(self, ending: Ending, now: float) -> None:
        """End it for a reason that is no token's, and the step under way with it."""
        if not self.answering:
            self._end_open_step(now)
        self.ending = ending

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
