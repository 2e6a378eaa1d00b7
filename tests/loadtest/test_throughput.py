from __future__ import annotations

import pytest
import yaml

from loadtest.questions import Question
from loadtest.systems import Solved
from loadtest.throughput import Row, measured, paced, read_options, row, shown
from loadtest.versus import Round


def a_round(tokens: int, client_s: float) -> Round:
    return Round((Solved(1.0, None, tokens, 0, 0, ""),), (True,), 2.0, {"client": client_s, "engine core": 1.0})


def test_a_row_is_the_median_of_its_rounds() -> None:
    found = row("small", [a_round(100, 0.2), a_round(300, 0.6), a_round(200, 0.4)], streamed=True)
    assert found == Row("small", True, 100.0, 0.2, 0.7)


def test_a_system_is_compared_with_the_engine_that_replied_the_same_way() -> None:
    rows = [
        Row("engine", False, 1000.0, 0.1, 1.1),
        Row("engine", True, 500.0, 0.1, 1.1),
        Row("glimpse", False, 500.0, 0.1, 2.0),
        Row("glimpse", True, 400.0, 0.1, 2.0),
    ]
    shares = [line.split("|")[4].strip() for line in shown(rows).splitlines()[2:]]
    assert shares == ["1.00", "1.00", "0.50", "0.80"]


async def test_no_problem_is_asked_twice() -> None:
    asked: list[str] = []

    async def solve(question: Question) -> Solved:
        asked.append(question.text)
        return Solved(0.0, None, 10, 0, 0, "")

    options = read_options(["--clients", "2", "--each", "3", "--rounds", "2"])
    found = await measured("engine", solve, options, streamed=False)
    assert found.tokens_per_s > 0
    assert len(asked) == len(set(asked)) == 2 + 2 * 2 * 3


def test_the_stand_in_is_told_its_pace() -> None:
    with paced(read_options(["--paced", "--token-ms", "5"])) as profile:
        application = yaml.safe_load(profile.read_text())["applications"][0]
    assert application["import_path"] == "loadtest.paced:build"
    assert application["args"]["small"]["env"]["PACED_TOKEN_MS"] == "5.0"
    assert application["args"]["small"]["model"] != application["args"]["large"]["model"]


def test_a_running_server_cannot_be_compared() -> None:
    with pytest.raises(SystemExit):
        read_options(["--url", "http://127.0.0.1:8000"])
