"""What is asked, and what would be right: the embedded generator's problems, or a file's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from deployments.pocket.problems import DELIMITER, Split, generate
from loadtest.command import MeasuringError
from router.answers import Answer, given

SPLIT: Split = "test"
"""The generator's stream for reporting: neither training ("train") nor the choice of a threshold ("tune") reads it."""

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True, slots=True)
class Question:
    """A chat, the right answer, and the right steps (delimiters included) where there is one right reasoning."""

    messages: tuple[dict[str, str], ...]
    answer: Answer
    steps: tuple[str, ...] | None = None

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]


def generated(seed: int, count: int, split: Split = SPLIT) -> list[Question]:
    """The embedded generator's."""
    return [
        Question(tuple(problem.messages), Fraction(problem.answer), tuple(step + DELIMITER for step in problem.steps))
        for problem in generate(seed, count, split)
    ]


def from_file(path: Path, count: int | None, suffix: str) -> list[Question]:
    """The first `count` of a JSONL file with `question` and `answer`, each question followed by `suffix`."""
    try:
        lines = [(number, line) for number, line in enumerate(path.read_text().split("\n"), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise MeasuringError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if count is not None and count > len(lines):
        raise MeasuringError(f"{path} has {len(lines)} problems; ask for that many or fewer with --problems")
    questions = [_question(path, number, line, suffix) for number, line in lines[:count]]
    if not questions:
        raise MeasuringError(f"{path} is empty; it needs lines with `question` and `answer`")
    return questions


def _question(path: Path, number: int, line: str, suffix: str) -> Question:
    try:
        fields: dict[str, Any] = json.loads(line)
        text, answer = str(fields["question"]), str(fields["answer"])
    except (ValueError, KeyError, TypeError):
        raise MeasuringError(f"{path}, line {number}: needs JSON with `question` and `answer`") from None
    return Question(({"role": "user", "content": text + suffix},), given(answer))
