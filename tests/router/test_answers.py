from fractions import Fraction

import pytest

from router.answers import extract, given


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("First \\boxed{3}, in the end \\boxed{1,234}.", 1234),
        ("\\boxed{\\$18}", 18),
        ("\\boxed{5 \\text{ m}^2}", 5),
        ("\\boxed{x = 12}", 12),
        ("\\boxed{\\frac{3}{4}}", Fraction(3, 4)),
        ("\\boxed{ -7.0 }", -7),
        ("cut off in \\boxed{42", 42),
        ("She pays 9 + 9 = 18.\n#### 18", 18),
        ("The answer is 48.", 48),
        ("The answer is 18 dollars, since Tom had 20 and spent 2.", 18),
        ("#### 18 (9 x 2)", 18),
        ("\\boxed{30^\\circ}", 30),
        ("\\boxed{30^{\\circ}}", 30),
        ("\\boxed{30°}", 30),
        ("\\boxed{€5}", 5),
        ("\\boxed{5 €}", 5),
        ("\\boxed{(5)}", 5),
        ("\\boxed{+5}", 5),
        ("\\boxed{$5$}", 5),
        ("\\boxed{5~\\text{cm}}", 5),
        ("\\boxed{5\\quad\\text{cm}}", 5),
        ("\\boxed{5\\,\\mathrm{m}^{2}}", 5),
        ("**The answer is:**\n 12 coins", 12),
        ("The answer is not far: 4 + 5 = 9", 9),
        ("It was $3.50, then 20%.", 20),
        ("He has 1,000.00 dollars", 1000),
        ("from 3-4", 4),
        ("10 - 3 = 7.0", 7),
        ("The answer is 4.5/5", Fraction(9, 10)),
        ("It comes to 7.5 / 2", Fraction(15, 4)),
        ("1" * 10_000, int("1" * 31)),
    ],
)
def test_number(reply: str, answer: int | Fraction) -> None:
    assert extract(reply) == answer


@pytest.mark.parametrize(
    ("key", "reply"),
    [
        ("42", "\\boxed{42}"),
        ("He has 6 * 7 = 42.\n#### 42", "so it is 42"),
        ("\\boxed{\\frac{1}{2}}", "\\boxed{0.5}"),
        ("10 m^2", "\\boxed{10 \\text{ m}^2}"),
        ("2 1/2", "\\boxed{2 1/2}"),
        ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}"),
        ("Blue.", "\\boxed{blue}"),
        ("First 3, then 4 more.\nThat makes 7", "\\boxed{7}"),
        ("He works 5 days.\n#### Friday", "\\boxed{Friday}"),
        ("2\\sqrt{3}", "\\boxed{2\\sqrt{3}}"),
        ("7:30", "\\boxed{7:30}"),
    ],
)
def test_an_answer_key_is_read_as_a_reply_is(key: str, reply: str) -> None:
    assert given(key) == extract(reply)


@pytest.mark.parametrize(
    ("key", "reply"),
    [
        ("2\\sqrt{3}", "\\boxed{2\\sqrt{5}}"),
        ("7:30", "\\boxed{7:45}"),
        ("3:2", "\\boxed{3:1}"),
        ("1+2i", "\\boxed{1-2i}"),
        ("\\frac{\\sqrt{3}}{2}", "\\boxed{\\frac{\\sqrt{3}}{4}}"),
    ],
)
def test_what_begins_with_the_same_number_is_not_the_same(key: str, reply: str) -> None:
    assert given(key) != extract(reply)


def test_marked_text_without_a_number() -> None:
    assert extract("\\boxed{\\text{Blue}}") == "blue"
    assert extract("The answer is Blue.") == "blue"


@pytest.mark.parametrize("reply", ["", "I do not know."])
def test_no_answer(reply: str) -> None:
    assert extract(reply) is None
