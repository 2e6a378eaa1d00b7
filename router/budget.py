"""How a request's tokens are divided: the answer's part is set aside before the thinking starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of one request.

    tokens: committed tokens in all; answer_reserve: of these, kept back for the answer; steps: of thinking;
    step_tokens: a longer step is cut.
    """

    tokens: int
    answer_reserve: int
    steps: int = 256
    step_tokens: int = 512

    @classmethod
    def of(cls, tokens: int, *, reserve: int, **bounds: int) -> Budget:
        """`reserve` tokens for the answer, or a quarter of all if that is less."""
        return cls(tokens, min(reserve, tokens // 4), **bounds)

    @property
    def thinking(self) -> int:
        return self.tokens - self.answer_reserve
