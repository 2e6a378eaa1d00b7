import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import QUESTIONS, Scripted, Words

from loadtest import frontier, quality
from loadtest.client import Client
from loadtest.hard_steps import cases, steps_of
from loadtest.outcomes import Outcome, Way, oracle, pairings
from loadtest.quality import Bench, as_json, measure, read_options, shown, with_right_steps


@pytest.fixture
async def bench(server: Scripted) -> Bench:
    return Bench(Client("http://scripted", transport=server.transport), QUESTIONS, 7, 4, None)


async def outcomes(bench: Bench) -> list[Outcome]:
    routed = await bench.attempt(Way("routed", 1.0))
    alone = [await bench.attempt(Way(mode)) for mode in ("small", "large")]
    return [*alone, routed, await bench.attempt_at_random(routed)]


async def test_rows(bench: Bench) -> None:
    small, large, routed, random = (outcome.row() for outcome in await outcomes(bench))
    assert (small["mode"], small["accuracy"], small["large_token_share"], small["hops"]) == ("small", 0.5, 0.0, None)
    assert (large["accuracy"], large["large_token_share"], large["tokens"]) == (1.0, 1.0, 2000)
    assert (routed["threshold"], routed["accuracy"], routed["large_token_share"]) == (1.0, 1.0, 0.25)
    assert (routed["hops"], routed["escalations"], routed["problems"]) == (40, 10, 20)
    assert (random["threshold"], random["matches_threshold"], random["accuracy"]) == (None, 1.0, 0.5)


async def test_replies_that_were_cut_off_are_counted(bench: Bench, server: Scripted) -> None:
    server.cut_below = 3
    cut = await bench.attempt(Way("large"))
    assert cut.row()["cut"] == 3
    assert shown([cut], [], None).splitlines()[-1].split("|")[9].strip() == "3"


async def test_random_routing_gets_at_least_the_share_it_is_compared_at(bench: Bench) -> None:
    routed = await bench.attempt(Way("routed", 1.0))
    random = await bench.attempt_at_random(routed)
    assert 0 <= random.large_token_share - routed.large_token_share <= 0.03


async def test_models_alone_are_asked_without_routing(bench: Bench, server: Scripted) -> None:
    await bench.attempt(Way("small"))
    assert all("glimpse" not in body and body["model"] == "small" for body in server.bodies)
    assert all(body["temperature"] == 0 for body in server.bodies)


async def test_chance_differs_between_problems_and_not_between_runs(bench: Bench, server: Scripted) -> None:
    way = Way("random", 1.0, random_share=0.5)
    for _ in range(2):
        await bench.attempt(way)
    runs = (server.bodies[:20], server.bodies[20:])
    seeds = [{body["messages"][-1]["content"]: body["seed"] for body in run} for run in runs]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0].values())) == 20


@pytest.mark.parametrize("first", [4, 3, 1])
async def test_the_frontier_is_drawn_of_whatever_was_run(bench: Bench, tmp_path: Path, first: int) -> None:
    results, picture = tmp_path / "quality.json", tmp_path / "frontier.png"
    results.write_text(json.dumps({"rows": [outcome.row() for outcome in (await outcomes(bench))[:first]]}))
    frontier.main([str(results), str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_holds_no_results_is_said_in_one_line(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "loadtest.frontier", tmp_path / "missing.json", tmp_path / "none.png"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "missing.json holds no results" in done.stderr


async def test_the_oracle_asks_the_large_model_for_what_only_that_gets_right(bench: Bench) -> None:
    small, large = [await bench.attempt(Way(mode)) for mode in ("small", "large")]
    best = oracle(small, large).row()
    assert (best["accuracy"], best["large_token_share"], best["hops"]) == (1.0, 0.5, None)
    assert oracle(large, large).replies == large.replies
    beaten = oracle(large, small)  # asked first, the large model leaves nothing that only the other gets right
    assert beaten.replies == large.replies


async def test_pairings(bench: Bench) -> None:
    found = {(one.way.mode, one.other.mode): one.difference for one in pairings(await outcomes(bench))}
    assert found["routed", "large"].value == 0
    assert found["routed", "large"].low < 0 < found["routed", "large"].high
    assert found["routed", "random"].value == 0.5
    assert found["routed", "random"].low > 0


async def test_measure_prints_one_table_and_writes_json(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "tokenizer_of", lambda name: Words())
    file = tmp_path / "quality.json"
    await measure(bench, await bench.client.served(), read_options(["--json", str(file)]))
    printed = capsys.readouterr().out
    assert "| routed |         1 |       20 |   100.0% |" in printed
    assert "AUROC of first-token entropy: 1.0000 (10 of 60 steps differ" in printed
    written = json.loads(file.read_text())
    assert [row["mode"] for row in written["rows"]] == ["small", "large", "routed", "random"]
    assert written["oracle"]["large_token_share"] == 0.5
    assert "+0.0 points" in next(line for line in printed.splitlines() if "routed at 1 − oracle" in line)
    contract = {"mode", "threshold", "problems", "accuracy", "large_token_share", "mean_latency_s", "tokens"}
    assert all(contract <= row.keys() for row in written["rows"])
    assert written["auroc"] == 1.0
    assert written["problems"][1]["replies"][0]["right"] is False


async def test_the_servers_own_token_threshold_is_the_one_tried_and_told(
    bench: Bench, server: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    served = replace(await bench.client.served(), token_threshold=0.5)
    await measure(bench, served, read_options(["--modes", "routed", "--no-auroc"]))
    assert {body["glimpse"]["token_threshold"] for body in server.bodies} == {0.5}
    assert "| routed |   1 / 0.5 |       20 |" in capsys.readouterr().out


async def test_each_threshold_is_tried_with_each_of_tokens(
    bench: Bench, server: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "frontier.png"
    asked = "--modes routed --no-auroc --thresholds 1 3 --token-thresholds 3 0.5 --plot"
    await measure(bench, await bench.client.served(), read_options([*asked.split(), str(picture)]))
    gates = [(body["glimpse"]["threshold"], body["glimpse"]["token_threshold"]) for body in server.bodies[::20]]
    assert gates == [(1.0, 3.0), (1.0, 0.5), (3.0, 3.0), (3.0, 0.5)]
    assert "| routed |   1 / 0.5 |       20 |" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


async def test_report_without_comparisons_is_the_table_alone(bench: Bench) -> None:
    alone = [await bench.attempt(Way("small"))]
    assert shown(alone, pairings(alone), None).count("\n") == 2
    assert as_json(bench, await bench.client.served(), alone, [], None)["auroc"] is None


async def test_right_steps_of_a_file_are_the_large_models_where_it_was_right(bench: Bench) -> None:
    small = await bench.attempt(Way("small"))
    unknown = [quality.Question(question.messages, question.answer) for question in QUESTIONS]
    assert len(with_right_steps(unknown, small, thinks=False)) == 10
    assert with_right_steps(QUESTIONS, None, thinks=True) == QUESTIONS


def test_cases_hold_the_right_steps_before_and_end_with_the_end_of_thinking() -> None:
    first, second, last = cases(Words(), QUESTIONS[1].messages, QUESTIONS[1].steps or (), thinks=True)
    assert first.prompt == "user: Question 1?\nassistant: <think>\n"
    assert second.prompt == first.prompt + "1 coins.\n\n"
    assert (last.prompt, last.step) == (second.prompt + "hard 1.\n\n", "</think>")
    assert [case.tokens for case in (first, second, last)] == [2, 2, 1]


def test_thinking_that_the_template_opens_is_not_opened_again() -> None:
    class Opening(Words):
        def apply_chat_template(self, messages: list[dict[str, str]], **how: bool) -> str:
            return super().apply_chat_template(messages, **how) + "<think>\n"

    assert cases(Opening(), QUESTIONS[0].messages, ["a"], thinks=True)[0].prompt.count("<think>") == 1


def test_steps_of_a_text_keep_their_delimiters() -> None:
    assert steps_of("a\nb\n\nc\n\n\nd") == ("a\nb\n\n", "c\n\n\n", "d")
    assert steps_of("") == ()


@pytest.mark.parametrize(
    "arguments", ["--modes small,routed --thresholds 0.5,1", "--modes small routed --thresholds 0.5 1"]
)
def test_lists_come_with_commas_or_spaces(arguments: str) -> None:
    options = read_options(arguments.split())
    assert (options.modes, options.thresholds) == (["small", "routed"], [0.5, 1.0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modes", "both"], "'both' is none of small, large, routed, random"),
        (["--modes", "random"], "add routed to --modes"),
        (["--data", "x", "--auroc", "--modes", "small"], "add large to --modes"),
        (["--thresholds=-1"], "0 or more"),
        (["--thresholds", "low"], "not a number of nats"),
        (["--thresholds", "nan"], "0 or more"),
        (["--problems", "0"], "whole number of 1 or more"),
    ],
)
def test_options_that_will_not_do(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(arguments)
    assert said in capsys.readouterr().err


def test_auroc_is_for_the_generator_unless_asked_for() -> None:
    assert read_options([]).auroc
    assert not read_options(["--data", "x"]).auroc
    assert read_options(["--data", "x", "--auroc"]).auroc
