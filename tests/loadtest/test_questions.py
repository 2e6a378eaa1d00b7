from fractions import Fraction
from pathlib import Path

import pytest

from deployments.pocket.problems import generate
from loadtest.command import MeasuringError
from loadtest.questions import from_file, generated


def test_generated_come_from_the_stream_for_reporting() -> None:
    questions = generated(7, 3)
    problems = list(generate(7, 3, "test"))
    assert [question.text for question in questions] == [problem.question for problem in problems]
    assert "".join(questions[0].steps or ()) == problems[0].reasoning
    assert questions[0].answer == problems[0].answer


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(
        '{"question": "How many?", "answer": "9 + 9 = 18\\n#### 1,018"}\n\n{"question": "Colour?", "answer": "Blue"}\n'
    )
    numbers, words = from_file(file, None, " Think.")
    assert numbers.messages == ({"role": "user", "content": "How many? Think."},)
    assert numbers.answer == Fraction(1018)
    assert words.answer == "blue"
    assert numbers.steps is None
    assert len(from_file(file, 1, "")) == 1


@pytest.mark.parametrize(
    ("text", "count", "said"),
    [
        ('{"question": "How many?"}\n', None, "line 1: needs JSON with `question` and `answer`"),
        ("\n", None, "is empty"),
        ('{"question": "", "answer": 1}\n', 2, "has 1 problems"),
    ],
)
def test_file_that_will_not_do(tmp_path: Path, text: str, count: int | None, said: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(MeasuringError, match=said):
        from_file(file, count, "")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MeasuringError, match="cannot be read: No such file"):
        from_file(tmp_path / "none.jsonl", None, "")
