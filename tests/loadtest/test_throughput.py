from __future__ import annotations

import pytest
import yaml

from loadtest.questions import Question
from loadtest.systems import Solved
from loadtest.throughput import Row, Taken, fresh, measured, paced, read_options, rows, shown
from loadtest.versus import Round


def a_round(tokens: int, client_s: float) -> Round:
    return Round((Solved(1.0, None, tokens, 0, 0, ""),), (True,), 2.0, {"client": client_s, "engine core": 1.0})


def test_a_row_is_the_median_of_its_rounds() -> None:
    told = [a_round(100, 0.2), a_round(300, 0.6), a_round(200, 0.4)]
    taken: list[Taken] = [{("small", True): one} for one in told]
    assert rows(taken, pace=400.0)[-1] == Row("small", True, 100.0, 0.25, 0.2, 0.7)


def test_a_share_is_of_the_engine_of_the_same_round_that_replied_the_same_way() -> None:
    engines, others = [(200, 100), (1000, 500), (400, 200)], [(100, 80), (600, 300), (200, 180)]
    taken: list[Taken] = [
        {
            ("engine", False): a_round(whole, 0.1),
            ("engine", True): a_round(streamed, 0.1),
            ("glimpse", False): a_round(mine, 0.1),
            ("glimpse", True): a_round(mine_streamed, 0.1),
        }
        for (whole, streamed), (mine, mine_streamed) in zip(engines, others, strict=True)
    ]
    shares = [line.split("|")[4].strip() for line in shown(rows(taken)).splitlines()[2:]]
    assert shares == ["1.00", "1.00", "0.50", "0.80"]


async def test_no_problem_is_asked_twice() -> None:
    asked: list[str] = []

    async def solve(question: Question) -> Solved:
        asked.append(question.text)
        return Solved(0.0, None, 10, 0, 0, "")

    options = read_options(["--clients", "2", "--each", "3"])
    questions = fresh(options, 0)
    for _ in range(6):
        assert len((await measured("small", solve, questions, options)).solved) == 6
    assert len(asked) == len(set(asked)) == 6 * (2 + 2 * 3)


def test_the_stand_in_is_told_its_pace() -> None:
    with paced(read_options(["--paced", "--token-ms", "5"])) as profile:
        application = yaml.safe_load(profile.read_text())["applications"][0]
    assert application["import_path"] == "loadtest.paced:build"
    assert application["args"]["small"]["env"]["PACED_TOKEN_MS"] == "5.0"
    assert application["args"]["small"]["model"] != application["args"]["large"]["model"]


def test_a_running_server_cannot_be_compared() -> None:
    with pytest.raises(SystemExit):
        read_options(["--url", "http://127.0.0.1:8000"])
