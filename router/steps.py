"""Where steps end: delimiters, the end of thinking, the end of the text, and a model that repeats itself.

A *step* is the tokens up to and including a delimiter: a token whose text contains a blank line, or a token
that ends in a newline followed by one that starts with a newline. A step is never empty: a delimiter with
nothing but white space before it does not end one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

REPEATED_STEP_TOKENS = 8
"""A step of at least this many tokens that equals the step before it means that the model is going in circles."""


class Mark:
    """What a token's text says about steps; one byte per token ID. Plain integers: every token is asked, and an
    `IntFlag` takes some thirty times as long to tell."""

    BREAK: Final = 1  # contains a blank line
    NEWLINE_LAST: Final = 2
    NEWLINE_FIRST: Final = 4
    BLANK: Final = 8  # nothing but white space


@dataclass(frozen=True, slots=True)
class Marks:
    """A vocabulary as the step loop sees it.

    of_token: shape (vocabulary,), `Mark`s per token ID.
    close: ID of the end-of-thinking token, None for a model without think tags.
    ends: IDs that end the text (end of turn, end of text).
    breaks: IDs whose text contains a blank line.
    """

    of_token: bytes
    close: int | None
    ends: frozenset[int]
    breaks: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, texts: Iterable[bytes], *, close: int | None = None, ends: Iterable[int] = ()) -> Marks:
        """Marks for the UTF-8 text of every token ID, in order."""
        marks = bytes(map(mark, texts))
        breaks = tuple(i for i, m in enumerate(marks) if m & Mark.BREAK)
        return cls(marks, close, frozenset(ends), breaks)

    def __getitem__(self, token: int) -> int:
        # Engines pad the output matrix: such an ID has no text, so it marks nothing.
        return self.of_token[token] if token < len(self.of_token) else 0


def mark(text: bytes) -> int:
    """The `Mark`s of one token's text."""
    found = 0
    if b"\n\n" in text:
        found |= Mark.BREAK
    if text.endswith(b"\n"):
        found |= Mark.NEWLINE_LAST
    if text.startswith(b"\n"):
        found |= Mark.NEWLINE_FIRST
    if text and not text.strip():
        found |= Mark.BLANK
    return found


class StepCutter:
    """Cuts a stream of token IDs into steps.

    open: the tokens so far of a step that began before this hop; before: the complete step in front of it.
    """

    def __init__(self, marks: Marks, limit: int, *, open: Sequence[int] = (), before: Sequence[int] = ()) -> None:
        self._marks, self._limit = marks, limit
        self._before = list(before)
        self._step: list[int] = []
        self._blank = True
        self._newline = False
        for token in open:
            self.add(token)

    @property
    def at_start(self) -> bool:
        """Whether the next token is a step's first, the one that is glimpsed."""
        return not self._step

    @property
    def open_tokens(self) -> int:
        return len(self._step)

    def add(self, token: int) -> bool:
        """Take one token; True if it ends the step (then call `close`)."""
        seen = self._marks[token]
        self._step.append(token)
        self._blank = self._blank and bool(seen & Mark.BLANK)
        paragraph = seen & Mark.BREAK or (self._newline and seen & Mark.NEWLINE_FIRST)
        self._newline = bool(seen & Mark.NEWLINE_LAST)
        return bool(paragraph and not self._blank) or len(self._step) >= self._limit

    def close(self) -> bool:
        """End the open step; True if it repeats the one before it."""
        repeats = len(self._step) >= REPEATED_STEP_TOKENS and self._step == self._before
        self._before, self._step = self._step, []
        self._blank, self._newline = True, False
        return repeats
