from __future__ import annotations

from pathlib import Path

import pytest

from deployments.config import PoolConfig
from loadtest.command import PROFILE
from loadtest.engines import command, own_environment, settings_of, stock
from loadtest.processes import CpuTime, kind
from loadtest.systems import Solved
from loadtest.versus import Round, pools_of, problems, read_options, row, shown


def solved(latency_s: float, *, tokens: int = 100, large: int = 25, ttft_s: float | None = 0.1) -> Solved:
    return Solved(latency_s, ttft_s, tokens, large, steps=10, content="")


def one_round(latency_s: float, *, seconds: float = 2.0, cpu_s: float = 1.0) -> Round:
    return Round((solved(latency_s), solved(3 * latency_s)), (True, False), seconds, {"client": cpu_s, "router": cpu_s})


def test_a_row_reports_medians_over_rounds_and_shares_over_all_problems() -> None:
    told = row("ours", 8, [one_round(1.0), one_round(2.0, seconds=4.0), one_round(9.0, seconds=20.0, cpu_s=5.0)])
    assert told["latency_p50_s"] == 4.0
    assert told["latency_p95_s"] == pytest.approx(5.8)
    assert told["tokens_per_s"] == 50.0
    assert told["steps_per_s"] == 5.0
    assert told["cpu_s_per_1k_tokens"] == 10.0
    assert told["cpu_s_per_1k_tokens_by_process"] == {"client": pytest.approx(35 / 3), "router": pytest.approx(35 / 3)}
    assert told["accuracy"] == 0.5
    assert told["large_token_share"] == 0.25
    assert told["problems"] == 6
    assert [[one["right"] for one in each] for each in told["each_problem"]] == [[True, False]] * 3
    assert [one["latency_s"] for one in told["each_problem"][2]] == [9.0, 27.0]


def test_what_was_not_measured_is_none() -> None:
    told = row("ours", 1, [Round((solved(1.0, ttft_s=None),), (True,), 1.0, None)])
    assert told["ttft_p50_s"] is None
    assert told["cpu_s_per_1k_tokens"] is None
    assert "–" in shown([told])


def test_ratios_stand_below_the_figures_where_both_were_measured() -> None:
    rows = [row("paper", 1, [one_round(2.0)]), row("ours", 1, [one_round(1.0)]), row("ours", 8, [one_round(1.0)])]
    report = shown(rows)
    assert report.count("ours / paper") == 1
    assert "ours / large_alone" not in report
    assert "0.50x" in report


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    theirs = [one_round(latency) for latency in (2.0, 8.0, 4.0)]
    mine = [one_round(latency) for latency in (1.0, 4.0, 3.6)]
    ratios = shown([row("paper", 1, theirs), row("ours", 1, mine)]).splitlines()[-1]
    assert "0.50x" in ratios
    assert "0.90x" not in ratios


def test_generated_problems_are_all_different() -> None:
    options = read_options(["--clients", "1,2", "--rounds", "2", "--problems", "3"])
    texts = [question.text for rounds in problems(options).values() for one in rounds for question in one]
    assert len(texts) == 12
    assert len(set(texts)) == 12


def test_a_files_problems_are_all_different_in_a_round_and_the_same_in_the_next(tmp_path: Path) -> None:
    data = tmp_path / "problems.jsonl"
    data.write_text("".join(f'{{"question": "{n}", "answer": "1"}}\n' for n in range(20)))
    asked = ["--data", f"{data}", "--clients", "1,2", "--rounds", "2", "--repeats", "3", "--problems", "2,4"]
    alone, both = problems(read_options(asked)).values()
    assert [len(one) for one in alone] == [2] * 6
    assert [len(one) for one in both] == [4] * 6
    texts = [question.text for one in alone[:3] + both[:3] for question in one]
    assert len(set(texts)) == len(texts) == 18
    assert alone[:3] == alone[3:]
    alone, both = problems(read_options([*asked[:6], "--problems", "2,4"])).values()
    assert alone == [alone[0]] * 2
    assert not {question.text for question in alone[0]} & {question.text for question in both[0]}


def test_an_interval_is_over_different_problems() -> None:
    rounds = [Round((solved(1.0),) * 4, (True, True, True, False), 1.0, None)] * 3
    told, new = row("ours", 1, rounds, asked=3), row("ours", 1, rounds)
    assert (told["problems"], told["accuracy"]) == (4, new["accuracy"]) == (4, 0.75)
    assert told["accuracy_interval"] == row("ours", 1, rounds[:1])["accuracy_interval"]
    assert told["accuracy_interval"][0] < new["accuracy_interval"][0]


def test_a_running_system_is_not_asked_a_files_problems_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["--url", "http://127.0.0.1:1", "--data", "x.jsonl"])
    assert "--rounds 1" in capsys.readouterr().err


def test_numbers_of_problems_are_one_for_all_or_one_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["--clients", "1,2,3", "--problems", "2,4"])
    assert "one for each of --clients" in capsys.readouterr().err


def test_engines_are_served_with_the_arguments_their_pool_gives_them() -> None:
    pool = PoolConfig(
        model="org/model",
        dtype="float32",
        max_model_len=512,
        engine={"enforce_eager": True, "block_size": 32, "a": {"b": 1}},
    )
    line = command("large", pool, 4321)
    text = " ".join(line)
    assert "--model org/model --served-model-name large" in text
    assert "--generation-config vllm" in text
    assert "--enforce-eager" in line
    assert "--block-size 32" in text
    assert "--max-model-len 512" in text
    assert line[line.index("--a") + 1] == '{"b": 1}'
    assert "--no-enforce-eager" in command("small", PoolConfig(model="org/m", engine={"enforce_eager": False}), 1)


def test_the_embedded_profile_is_read() -> None:
    assert settings_of(read_options([]).profile).small.path.endswith("small")


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        ("ray::ServeReplica:glimpse:small.write", "replica small"),
        ("ray::ServeReplica:glimpse:router", "replica router"),
        ("ray::ProxyActor", "proxy"),
        ("VLLM::EngineCore", "engine core"),
        ("VLLM::Worker", "engine worker"),
        ("python -m vllm.entrypoints.openai.api_server --model x", "vllm server"),
        ("/x/ray/core/src/ray/raylet/raylet --a", "ray"),
        ("python -m deployments.cli run", "supervisor"),
        ("python -m deployments.launcher", "starter"),
        ("python -m locust -f x", "other"),
    ],
)
def test_processes_are_known_by_their_command_lines(command_line: str, expected: str) -> None:
    assert kind(command_line) == expected


def test_cpu_time_is_told_apart_by_kind_and_new_processes_count_whole() -> None:
    before = CpuTime({1: 1.0, 2: 5.0, 3: 9.0}, {1: "client", 2: "ray", 3: "gone"})
    after = CpuTime({1: 1.5, 2: 6.0, 4: 2.0}, {1: "client", 2: "ray", 4: "ray"})
    assert after.since(before) == {"client": 0.5, "ray": 3.0}


def test_this_process_counts_as_the_client() -> None:
    began = CpuTime.now()
    sum(i * i for i in range(2_000_000))
    assert CpuTime.now().since(began)["client"] > 0


def test_stock_servers_are_told_the_model_and_no_more() -> None:
    pool = settings_of(PROFILE).large
    assert "--enforce-eager" in command("large", pool, 1)
    told = command("large", stock(pool), 1)
    assert pool.path in told
    assert {"--enforce-eager", "--block-size", "--distributed-executor-backend"}.isdisjoint(told)
    added = own_environment(stock(pool)).keys() - own_environment(stock(pool.model_copy(update={"env": {}}))).keys()
    assert added <= {"VLLM_CPU_KVCACHE_SPACE"}


def test_a_large_model_alone_may_have_the_threads_of_both_engines() -> None:
    config = settings_of(PROFILE)
    options = read_options(["--alone-threads", "2"])
    alone = pools_of("large_alone", config, options)
    assert set(alone) == {"large"}
    assert alone["large"].env["OMP_NUM_THREADS"] == "2"
    assert alone["large"].env.keys() == config.large.env.keys()
    assert pools_of("paper", config, options) == {"small": config.small, "large": config.large}
