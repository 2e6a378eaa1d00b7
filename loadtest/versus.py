"""This system next to what one would do without it, in turn on this machine.

    python -m loadtest.versus --clients 1,8,32
    python -m loadtest.versus --profile my-pair.yaml --data problems.jsonl --problems 40 --clients 1,8

Three systems answer the same problems with the same models and engine settings, greedily: `paper`, two `vllm serve`
and the paper's client (loadtest/paper.py), as many of them as there are to be clients; `large_alone`, one `vllm serve`
asked by itself; and `ours`. The first two write every token by itself, as the paper has it; with --draft their
engines draft as the profile's do. With --stock they have vLLM's own engine settings instead of the profile's: what
somebody has who follows the paper and sets nothing. A profile that shares the cores out between two engines
leaves a large model by itself some of them idle; --alone-threads gives it more.

In every round each is started, at every number of clients warmed with problems of its own (whose replies are cut at
512 tokens) and measured, and ended before the next is started: a machine that is faster now than in ten minutes is so
for all of them. Every client sends its next problem when it has the answer to the last.

Latencies are to the last byte, over all problems of a round. The time to first token is to the first text of the
reply; the paper's client has none before its first step is back. CPU seconds are those of every process of the
system and of this one, which plays the clients. Of the figures of each round the median is reported, and of the ratios
between two systems that of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from deployments.config import AppConfig, PoolConfig
from loadtest.client import each
from loadtest.command import MeasuringError, among, at_least_one, credentials, numbers, parser, run, serving
from loadtest.engines import drafting, environment_of, own_environment, served, settings_of, stock
from loadtest.hard_steps import opened, tokenizer_of
from loadtest.intervals import share
from loadtest.paper import Limits
from loadtest.processes import CpuTime
from loadtest.questions import BOXED, Question, from_file, generated
from loadtest.systems import Ask, LargeAlone, Ours, Paper, Solved, System
from loadtest.table import table
from router.answers import extract
from router.budget import Budget
from router.request import MODELS, Model
from router.vocabulary import Vocabulary

WARMING_TOKENS = 512
"""Replies that only warm a system are cut there."""

SYSTEMS: dict[str, type[System]] = {"paper": Paper, "large_alone": LargeAlone, "ours": Ours}


@dataclass(frozen=True, slots=True)
class Round:
    """A problem set worked off by so many clients: what came of each problem, and what it took all in all."""

    solved: tuple[Solved, ...]
    right: tuple[bool, ...]
    seconds: float
    cpu_s: Mapping[str, float] | None


async def measure(
    solve: Callable[[Question], Awaitable[Solved]],
    questions: Sequence[Question],
    clients: int,
    label: str,
    *,
    count_cpu: bool,
) -> Round:
    """One round."""
    before, began = CpuTime.now(), time.perf_counter()
    solved = tuple(await each(questions, solve, concurrency=clients, label=label))
    seconds, after = time.perf_counter() - began, CpuTime.now()
    right = tuple(extract(one.content) == question.answer for one, question in zip(solved, questions, strict=True))
    return Round(solved, right, seconds, after.since(before) if count_cpu else None)


def figures(one: Round) -> dict[str, float | None]:
    """What a round comes to."""
    tokens = sum(each.tokens for each in one.solved)
    latencies = [each.latency_s for each in one.solved]
    first = [each.ttft_s for each in one.solved if each.ttft_s is not None]
    return {
        "latency_p50_s": float(np.percentile(latencies, 50)),
        "latency_p95_s": float(np.percentile(latencies, 95)),
        "ttft_p50_s": float(np.median(first)) if first else None,
        "tokens_per_s": tokens / one.seconds,
        "steps_per_s": sum(each.steps for each in one.solved) / one.seconds,
        "cpu_s_per_1k_tokens": None if one.cpu_s is None else 1000.0 * sum(one.cpu_s.values()) / max(1, tokens),
    }


def row(system: str, clients: int, rounds: Sequence[Round], *, asked: int = 1) -> dict[str, Any]:
    """What is reported of a system at so many clients. asked: how often each problem was, over all rounds; an interval
    is over different problems."""
    each_round = [figures(one) for one in rounds]
    solved = [each for one in rounds for each in one.solved]
    different = len(solved) // asked
    accuracy = share(round(sum(sum(one.right) for one in rounds) / asked), different)
    tokens = max(1, sum(each.tokens for each in solved))
    spent = Counter[str]()
    for one in rounds:
        spent.update(one.cpu_s or {})
    return {
        "system": system,
        "clients": clients,
        **{name: median(one[name] for one in each_round) for name in each_round[0]},
        "accuracy": accuracy.value,
        "large_token_share": sum(each.large_tokens for each in solved) / tokens,
        "accuracy_interval": [accuracy.low, accuracy.high],
        "problems": different,
        "each_round": each_round,
        "each_problem": [[outcome(*each) for each in zip(one.solved, one.right, strict=True)] for one in rounds],
        "cpu_s_per_1k_tokens_by_process": {kind: 1000.0 * seconds / tokens for kind, seconds in sorted(spent.items())},
    }


def outcome(solved: Solved, right: bool) -> dict[str, Any]:
    """Of one problem, in the order in which they were put; without what was written."""
    return {name: value for name, value in asdict(solved).items() if name != "content"} | {"right": right}


def median(values: Iterable[float | None]) -> float | None:
    """Of what was measured."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures, then this system's against the others'."""

    def seconds(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f} s"

    heads = ("system", "clients", "p50", "p95", "first token", "tokens/s", "steps/s", "CPU s/1k", "right", "by large")
    cells = [
        (
            one["system"],
            str(one["clients"]),
            seconds(one["latency_p50_s"]),
            seconds(one["latency_p95_s"]),
            seconds(one["ttft_p50_s"]),
            f"{one['tokens_per_s']:.0f}",
            f"{one['steps_per_s']:.1f}",
            "–" if one["cpu_s_per_1k_tokens"] is None else f"{one['cpu_s_per_1k_tokens']:.2f}",
            f"{one['accuracy']:.1%}",
            f"{one['large_token_share']:.1%}",
        )
        for one in rows
    ]
    by = {(one["system"], one["clients"]): one for one in rows}
    ratios = [
        (
            f"ours / {other}",
            str(clients),
            *(ratio(ours, by[other, clients], name) for name in ("latency_p50_s", "latency_p95_s", "ttft_p50_s")),
            *(ratio(ours, by[other, clients], name) for name in ("tokens_per_s", "cpu_s_per_1k_tokens")),
        )
        for (system, clients), ours in by.items()
        for other in SYSTEMS
        if system == "ours" != other and (other, clients) in by
    ]
    parts = [table(heads, cells)]
    if ratios:
        parts.append(table(("", "clients", "p50", "p95", "first token", "tokens/s", "CPU s/1k"), ratios))
    return "\n\n".join(parts)


def ratio(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
    """Of a figure of two rows, round by round."""
    pairs = zip(one["each_round"], other["each_round"], strict=True)
    found = median(mine[name] / its[name] for mine, its in pairs if mine[name] and its[name])
    return "–" if found is None else f"{found:.2f}x"


def pools_of(system: str, config: AppConfig, options: argparse.Namespace) -> dict[Model, PoolConfig]:
    """What a system other than this one is to serve."""
    pools: dict[Model, PoolConfig] = {"small": config.small, "large": config.large}
    if system == "large_alone":
        del pools["small"]
    if options.stock:
        pools = {model: stock(pool) for model, pool in pools.items()}
    if options.draft:
        pools = {model: drafting(pool) for model, pool in pools.items()}
    if options.alone_threads and system == "large_alone":
        env = pools["large"].env | {"OMP_NUM_THREADS": str(options.alone_threads)}
        pools["large"] = pools["large"].model_copy(update={"env": env})
    return pools


@contextmanager
def started(system: str, config: AppConfig, options: argparse.Namespace) -> Iterator[dict[Model, str]]:
    """A system's servers, for as long as the block lasts."""
    if system == "ours":
        with serving(options.url, options.profile, options.port) as url:
            yield dict.fromkeys(MODELS, url)
        return
    pools, environment = pools_of(system, config, options), own_environment if options.stock else environment_of
    with served(pools, environment) as urls:
        yield urls


def problems(options: argparse.Namespace) -> dict[int, list[list[Question]]]:
    """For each number of clients the problems of every measurement. Those of the generator are all different, so that
    none is found in a cache, and so are a file's within a round. Each round, whose systems start anew, has them again.
    """
    measurements: dict[int, list[list[Question]]] = {}
    lines = from_file(options.data, None, BOXED) if options.data else []
    stop = 0
    for n, clients in enumerate(options.clients):
        count = options.problems[n % len(options.problems)] if options.problems else max(16, 4 * clients)
        if options.data is None:
            made = generated(options.seed + n, count * options.rounds * options.repeats)
            measurements[clients] = [made[i : i + count] for i in range(0, len(made), count)]
        else:
            start, stop = stop, stop + options.repeats * count
            read = lines[start:stop]
            if len(read) < stop - start:
                raise MeasuringError(
                    f"{options.data} has {len(lines)} problems; up to {clients} clients {stop} are needed, as none is "
                    "put twice: ask for fewer with --problems"
                )
            measurements[clients] = [read[i : i + count] for i in range(0, len(read), count)] * options.rounds
    return measurements


async def measured(
    system: str,
    urls: Mapping[Model, str],
    ask: Ask,
    asked: Mapping[int, Sequence[Sequence[Question]]],
    options: argparse.Namespace,
    turn: int,
) -> dict[int, list[Round]]:
    """One round of a system that runs, by the number of clients. asked: as `problems` has them."""
    done: dict[int, list[Round]] = defaultdict(list)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), headers=credentials()
    ) as http:
        solver, warmer = (SYSTEMS[system](http, urls, one) for one in (ask, ask.cut(WARMING_TOKENS)))
        for clients, measurements in asked.items():
            label = f"{system}, {clients} clients, round {turn + 1}"
            warming = generated(options.seed + 1000, clients)
            await measure(warmer.solve, warming, clients, f"{label}, warming", count_cpu=False)
            # A server that was there before is not below this process.
            count_cpu = system != "ours" or options.url is None
            for questions in measurements[turn * options.repeats :][: options.repeats]:
                done[clients].append(await measure(solver.solve, questions, clients, label, count_cpu=count_cpu))
                told = figures(done[clients][-1])
                said = f"p50 {told['latency_p50_s']:.2f} s, {told['tokens_per_s']:.0f} tokens/s"
                print(f"{label}: {said}", file=sys.stderr)
    return done


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.versus", __doc__, concurrency=None)
    made.add_argument("--clients", type=numbers, default=[1, 8, 16], metavar="N,…", help="(default: 1,8,16)")
    made.add_argument(
        "--systems", type=among(SYSTEMS), default=list(SYSTEMS), metavar="NAME,…", help=f"of {', '.join(SYSTEMS)}"
    )
    made.add_argument("--rounds", type=at_least_one, default=3, help="at each number of clients (default: %(default)s)")
    made.add_argument(
        "--repeats", type=at_least_one, default=1, help="measurements in each round (default: %(default)s)"
    )
    made.add_argument(
        "--problems",
        type=numbers,
        metavar="N,…",
        help="in a measurement, for all or for each of --clients, each time others (default: 4 a client, 16 or more)",
    )
    made.add_argument("--data", type=Path, metavar="FILE.jsonl", help="with `question` and `answer`, not the generator")
    made.add_argument("--threshold", type=float, help="nats (default: the profile's)")
    made.add_argument("--max-tokens", type=at_least_one, help="reasoning and answer (default: the profile's)")
    made.add_argument(
        "--stock",
        action="store_true",
        help="`vllm serve` with its own settings, not with those of the profile's engines",
    )
    made.add_argument("--draft", action="store_true", help="`vllm serve` drafts where the profile's pools do")
    made.add_argument(
        "--alone-threads",
        type=at_least_one,
        metavar="N",
        help="of the large model alone, on CPUs (default: the profile's)",
    )
    made.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="replies as they are written (default)"
    )
    options = made.parse_args(arguments)
    if options.problems and len(options.problems) not in (1, len(options.clients)):
        made.error("--problems: one number, or one for each of --clients")
    if options.url and options.data and options.rounds > 1 and "ours" in options.systems:
        made.error(
            "--url with --data: a system that is not started anew knows the problems in a second round: --rounds 1"
        )
    return options


def asking(config: AppConfig, options: argparse.Namespace) -> Ask:
    pools: dict[Model, PoolConfig] = {"small": config.small, "large": config.large}
    thinks = all(
        Vocabulary.load(pool.path, revision=pool.revision, think_tags=config.routing.think_tags).thinks
        for pool in pools.values()
    )
    tokenizers = {model: tokenizer_of(pool.path) for model, pool in pools.items()}

    def prompt(model: Model, question: Question) -> str:
        return opened(tokenizers[model], question.messages, thinks=thinks)

    max_tokens = options.max_tokens or config.limits.max_tokens
    budget = Budget.of(max_tokens, reserve=config.limits.answer_reserve if thinks else 0)
    threshold = config.routing.threshold if options.threshold is None else options.threshold
    limits = Limits(threshold, config.limits.step_tokens, budget.thinking, budget.answer_reserve)
    return Ask(limits, max_tokens, options.stream, prompt, thinks)


def main() -> None:
    options = read_options()
    config = settings_of(options.profile)
    ask, asked = asking(config, options), problems(options)
    taken: dict[tuple[str, int], list[Round]] = defaultdict(list)
    for turn in range(options.rounds):
        for system in options.systems:
            with started(system, config, options) as urls:
                for clients, done in asyncio.run(measured(system, urls, ask, asked, options, turn)).items():
                    taken[system, clients] += done
            rows = [
                row(system, clients, rounds, asked=len(rounds) // options.repeats if options.data else 1)
                for (system, clients), rounds in taken.items()
            ]
            if options.json:  # each time, for a run that does not come to its end
                options.json.write_text(json.dumps(saved(rows, ask, options), indent=1) + "\n")
    print(shown(rows))


def saved(rows: Sequence[Mapping[str, Any]], ask: Ask, options: argparse.Namespace) -> dict[str, Any]:
    """What is saved."""
    return {
        "rows": rows,
        "seed": options.seed,
        "stock": options.stock,
        "draft": options.draft,
        "alone_threads": options.alone_threads,
        "stream": ask.stream,
        "limits": asdict(ask.limits),
    }


if __name__ == "__main__":
    run(main)
