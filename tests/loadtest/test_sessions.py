from __future__ import annotations

import pytest

from loadtest.sessions import Cost, middle, read_options, shown


def test_of_several_rounds_each_figure_is_the_median() -> None:
    rounds = [Cost("new", 512, 30.0, 1.0, 3.0), Cost("new", 512, 20.0, 3.0, 2.0), Cost("new", 512, 25.0, 2.0, 9.0)]
    assert middle(rounds) == Cost("new", 512, 25.0, 2.0, 3.0)


def test_a_hop_is_told_in_time_and_in_cpu() -> None:
    text = shown([Cost("session", 8192, 24.04, 0.5, 0.75)])
    assert [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]] == [
        "8192",
        "session",
        "24.0",
        "0.50",
        "0.75",
        "1.25",
    ]


@pytest.mark.parametrize("asked", [["--model", "medium"], ["--hops", "0"], ["--url", "http://localhost"]])
def test_what_cannot_be_measured_is_refused(asked: list[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(asked)
