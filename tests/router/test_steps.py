import pytest

from router.steps import Marks, StepCutter


def cut(texts: list[str], limit: int = 100) -> list[str]:
    """The steps that a text, given token by token, is cut into; what is left open comes last."""
    vocabulary = sorted(set(texts))
    marks = Marks.of([text.encode() for text in vocabulary])
    cutter, steps, open_step = StepCutter(marks, limit), [], ""
    for text in texts:
        open_step += text
        if cutter.add(vocabulary.index(text)):
            cutter.close()
            steps.append(open_step)
            open_step = ""
    return [*steps, open_step]


@pytest.mark.parametrize(
    ("texts", "steps"),
    [
        (["a", "b", ".\n\n", "c"], ["ab.\n\n", "c"]),
        (["a", "\n\n", "b"], ["a\n\n", "b"]),
        (["a", ":\n\n\n", "b"], ["a:\n\n\n", "b"]),
        (["a.\n", "\n", "b"], ["a.\n\n", "b"]),
        (["a", ".\n", "\n  ", "b"], ["a.\n\n  ", "b"]),
        (["a", "\n", "b", "\n", "c"], ["a\nb\nc"]),
        (["a", " \n\nb", "c"], ["a \n\nb", "c"]),
        (["a"], ["a"]),
    ],
)
def test_where_steps_end(texts: list[str], steps: list[str]) -> None:
    assert cut(texts) == steps


@pytest.mark.parametrize("blank", [["\n\n"], ["\n", "\n"], [" ", "\n\n"], ["\n\n", "\n\n"]])
def test_a_step_is_never_empty(blank: list[str]) -> None:
    assert cut([*blank, "a", "\n\n", "b"]) == ["".join(blank) + "a\n\n", "b"]


def test_a_newline_of_the_step_before_does_not_count() -> None:
    assert cut(["a", "\n\n", "\n", "b", "\n\n"]) == ["a\n\n", "\nb\n\n", ""]


def test_a_long_step_is_cut() -> None:
    assert cut(["a"] * 7, limit=3) == ["aaa", "aaa", "a"]


def test_repeats_need_eight_tokens() -> None:
    marks = Marks.of([b"a", b"\n\n"])
    for length, repeats in [(7, False), (8, True)]:
        cutter = StepCutter(marks, 100)
        seen = []
        for _ in range(2):
            for token in [0] * (length - 1) + [1]:
                cutter.add(token)
            seen.append(cutter.close())
        assert seen == [False, repeats]


def test_a_padded_id_marks_nothing() -> None:
    assert Marks.of([b"a"])[5000] == 0


def test_taken_up_in_the_middle() -> None:
    vocabulary = [b"a", b"\n", b"\n\n"]
    cutter = StepCutter(Marks.of(vocabulary), 100, open=[0, 1])
    assert not cutter.at_start
    assert cutter.add(1), "the newline before the break still counts"
