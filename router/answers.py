r"""The answer in a reply: the last \boxed{}, else what follows the last "####" or "answer is", else the last number."""

from __future__ import annotations

import re
from fractions import Fraction

Answer = Fraction | str

_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d[\d,]{0,30}(?:\.\d{1,30})?|\.\d{1,30})(?:\s*/\s*[1-9]\d{0,30})?")
_UNIT = r"%|[°€£$]|[^\W\d_]+(?:[\s/.,-]+[^\W\d_]+)*(?:\s*\^?[23²³])?"
_AMOUNT = re.compile(rf"[(+$€£\s]*({_NUMBER.pattern})\s*(?:{_UNIT})?[\s.,*)$]*")
_MARKED = re.compile(r"(?:####|answer\s+is)\s*:?", re.IGNORECASE)
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")


def extract(reply: str) -> Answer | None:
    """A number where there is one, else the marked text; None where nothing is marked and no number is found."""
    if (boxed := _last_boxed(reply)) is not None:
        return _value(boxed)
    marked = _marked(reply) or ""
    if isinstance(value := _value(marked), Fraction):
        return value
    if first := _NUMBER.search(_plain(marked).rpartition("=")[2]):
        return _number(first[0])  # what follows it explains
    numbers = _NUMBER.findall(_plain(reply))
    return _number(numbers[-1]) if numbers else value or None


def given(text: str) -> Answer:
    """An answer that somebody gives as the right one: read like a boxed one where it is nothing else, like a reply
    where it is worked out."""
    if _last_boxed(text) is None and (marked := _marked(text)) is not None:
        return _value(marked)
    found = extract(text) if "\\boxed{" in text or "\n" in text.strip() else _value(text)
    return text.strip().casefold() if found is None else found


def _marked(text: str) -> str | None:
    """The rest of the line behind the last mark."""
    parts = _MARKED.split(text)
    return parts[-1].strip().partition("\n")[0] if len(parts) > 1 else None


def _last_boxed(reply: str) -> str | None:
    start = reply.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for end in range(begin, len(reply)):
        if reply[end] == "}":
            if depth == 0:
                return reply[begin:end]
            depth -= 1
        elif reply[end] == "{":
            depth += 1
    return reply[begin:]


def _value(text: str) -> Answer:
    plain = _plain(text)
    # "x = 5 metres": what stands behind the last equals sign is the result; more than an amount and its unit is text.
    amount = _AMOUNT.fullmatch(plain.rpartition("=")[2].strip(" .*"))
    return _number(amount[1]) if amount else " ".join(plain.strip(" .*").casefold().split())


def _plain(text: str) -> str:
    text = _FRACTION.sub(r"\1/\2", text)
    text = _COMMAND.sub(r" \1 ", text)
    text = re.sub(r"\^\s*\{?\\circ\}?", "°", re.sub(r"\^\{([23])\}", r"^\1", text))
    text = re.sub(r"\\(?:quad|qquad|:)|~", " ", text)
    return re.sub(r"\\[,!; ]|\\(?=[$%])", "", text).replace("{,}", ",")


def _number(text: str) -> Fraction:
    # In two parts, as `Fraction` takes no decimal in front of a stroke.
    over, _, under = re.sub(r"[$,\s]", "", text).partition("/")
    return Fraction(over) / Fraction(under or 1)
