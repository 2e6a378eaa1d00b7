from __future__ import annotations

import pytest

from loadtest.switching import Decoding, Switch, read_options, shown


def test_a_switch_is_told_in_milliseconds_and_in_tokens() -> None:
    text = shown([Decoding("large", 8, 16.0, 17.5, 16.25)], [Switch("large", 2048, 160.0, 32.0, 16.0, 16.0)])
    assert "| large " in text
    assert [cell.strip() for cell in text.splitlines()[-1].split("|")[2:-1]] == [
        "2048",
        "160.0 (10.0)",
        "32.0 (2.0)",
        "16.0 (1.0)",
    ]


@pytest.mark.parametrize(("asked", "models"), [("small", ["small"]), ("large,small", ["small", "large"])])
def test_models_are_named(asked: str, models: list[str]) -> None:
    assert read_options(["--models", asked]).models == models


@pytest.mark.parametrize("asked", [["--models", "medium"], ["--models", "small,small"], ["--url", "http://localhost"]])
def test_what_cannot_be_measured_is_refused(asked: list[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(asked)
