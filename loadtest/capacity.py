"""How many replicas of each pool so many users need.

    python -m loadtest.capacity --check                        # measures a system, simulates it, tells the difference
    python -m loadtest.capacity --traces traces.json --users 10,1000,100000 --p95-s 60 \\
        --small 7.0,0.1,48,0.02 --large 21.0,0.3,48,0.1

The simulation (loadtest/simulation.py) is fed with requests as they were routed and with the paces of both engines.
--check measures both: how long each model reads; each alone at several numbers of requests in flight, which gives
the time of an iteration over n hops; each beside the other one at work, because here they share a machine; then routed
requests, one at a time (what hops cost beside the engines) and --concurrency at a time. The last is what the
simulation, which has not seen it, is compared with. --json then holds the traces and the paces.

More users than --slice are not all simulated: of ten times the slice, a tenth, on a tenth of the replicas. Beyond a
slice replicas are many enough for the rest of them to change nothing for it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from tqdm import tqdm

from loadtest.client import Client, Reply, each
from loadtest.command import MeasuringError, at_least_one, numbers, parser, run, serving
from loadtest.engines import settings_of
from loadtest.questions import Question, generated
from loadtest.simulation import HopWork, Pace, Simulated, System, Trace, lengthened, simulate, trace_of
from loadtest.table import table
from router.prefix import other
from router.request import MODELS, Model

IN_FLIGHT = (1, 4, 16)
CROWD = 4
SHORT, LONG, READINGS = 64, 512, 5
"""Tokens of the prompts that are only read, and how many of each."""


async def measured(client: Client, questions: Sequence[Question], options: argparse.Namespace) -> dict[str, Any]:
    """A server's paces, the traces of its routed requests, and what they took at --concurrency."""

    async def token_s(model: Model, n: int, read_s: float) -> float:
        """Seconds a token with n requests in flight, without what their prompts took to read."""

        async def ask(question: Question) -> Reply:
            return await client.chat(question.messages, model, glimpse={"include_steps": True})

        replies = await each(questions[: max(8, 2 * n)], ask, concurrency=n, label=f"{model}, {n}")
        return fmean((one.latency_s - read_s * _read(one)) / one.tokens for one in replies)

    reads_s = {model: await reading_s(client, model) for model in MODELS}
    paces = {model: [(n, await token_s(model, n, reads_s[model])) for n in IN_FLIGHT] for model in MODELS}

    async def crowded(model: Model) -> float:
        """How many times longer a token takes beside the other model at work."""
        working = asyncio.create_task(endlessly(client, other(model), questions))
        try:
            return await token_s(model, CROWD, reads_s[model]) / dict(paces[model])[CROWD]
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def routed(question: Question) -> Reply:
        return await client.chat(question.messages, "glimpse", glimpse={"include_steps": True})

    few = await each(questions[:8], routed, concurrency=1, label="routed, 1")
    many = await each(questions, routed, concurrency=options.concurrency, label=f"routed, {options.concurrency}")
    try:
        alone, traces = ([trace_of(one) for one in replies] for replies in (few, many))
    except ValueError as error:
        raise MeasuringError(f"requests that are {error} are not simulated: set no token_threshold") from None
    return {
        "seen": paces,
        "read_s": reads_s,
        "crowded": {model: max(1.0, await crowded(model)) for model in MODELS},
        "alone_s": fmean(one.latency_s for one in few),
        "alone": alone,
        "traces": traces,
        "latency_p50_s": median(one.latency_s for one in many),
        "latency_p95_s": float(np.percentile([one.latency_s for one in many], 95)),
        # Of all places filled: towards the end of the questions they are not.
        "tokens_per_s": options.concurrency * sum(one.tokens for one in many) / sum(one.latency_s for one in many),
    }


async def reading_s(client: Client, model: Model) -> float:
    """Seconds for a token of prompt, from prompts of two lengths that the server has not seen."""
    took: dict[int, float] = {}
    for tokens in SHORT, LONG:
        seconds = []
        for n in range(READINGS):
            began = time.perf_counter()
            await client.complete([n + 1, *range(1, tokens)], model, max_tokens=1)
            seconds.append(time.perf_counter() - began)
        took[tokens] = median(seconds)
    return max(0.0, (took[LONG] - took[SHORT]) / (LONG - SHORT))


def _read(reply: Reply) -> int:
    """Tokens of its prompt that were in no cache."""
    return reply.steps[0].prefix_tokens - reply.steps[0].cached_tokens if reply.steps else 0


async def endlessly(client: Client, model: Model, questions: Sequence[Question]) -> None:
    """Keeps a model at work until it is cancelled."""

    async def ask(n: int) -> None:
        for turn in itertools.count(n, CROWD):
            await client.chat(questions[turn % len(questions)].messages, model)

    await asyncio.gather(*map(ask, range(CROWD)))


def hop_s(alone_s: float, alone: Sequence[Trace], paces: dict[Model, Pace]) -> float:
    """What a hop costs beside the engine: what is left of the time of requests that had the engines to themselves."""
    engines = fmean(sum(paces[hop.pool].alone_s(hop) for hop in trace) for trace in alone)
    return max(0.0, (alone_s - engines) / fmean(len(trace) for trace in alone))


def needed(
    system: System, traces: Sequence[Trace], users: int, options: argparse.Namespace
) -> tuple[dict[Model, int], Simulated]:
    """Few replicas with which `users` keep within --p95-s: whichever pool is fuller gets one more, or a thirtieth."""
    cycle_s = options.think_s + options.p95_s
    replicas = {model: _at_least(system, traces, model, users / cycle_s) for model in MODELS}
    limit = {model: n + users for model, n in replicas.items()}
    with tqdm(desc=f"{users} users", unit=" tried", leave=False) as progress:
        while True:
            tried = replace(system, replicas=dict(replicas))
            seen = simulate(
                tried, traces, users=users, think_s=options.think_s, seconds=options.seconds, seed=options.seed
            )
            if not seen.latencies_s:
                raise MeasuringError("no request came to its end: simulate longer with --seconds")
            if seen.latency_s(95) <= options.p95_s:
                return replicas, seen
            progress.set_postfix(replicas, p95=f"{seen.latency_s(95):.1f} s")
            progress.update()
            fuller: Model = max(MODELS, key=lambda model: seen.taken[model])
            if replicas[fuller] > limit[fuller]:
                raise MeasuringError(
                    f"no number of replicas keeps p95 within {options.p95_s:g} s: engines are too slow"
                )
            replicas[fuller] += max(1, replicas[fuller] // 30)


def _at_least(system: System, traces: Sequence[Trace], model: Model, requests_per_s: float) -> int:
    """Replicas that could bear the load if it came evenly."""
    pace = system.paces[model]
    tokens = fmean(sum(hop.tokens for hop in trace if hop.pool == model) for trace in traces)
    return max(1, math.ceil(requests_per_s * tokens * pace.iteration_s(pace.places) / pace.places))


def compared(system: System, told: dict[str, Any], options: argparse.Namespace) -> list[tuple[str, float, float]]:
    """(figure, measured, simulated) of the routed requests at --concurrency."""
    seen = simulate(
        system, told["traces"], users=options.concurrency, think_s=0.0, seconds=options.seconds, seed=options.seed
    )
    tokens = sum(hop.tokens for trace in told["traces"] for hop in trace)
    # A failed glimpse costs a token that is none of the reply's.
    kept = 1 - sum(hop.pool == "large" for trace in told["traces"] for hop in trace[:-1]) / tokens
    return [
        ("p50, s", told["latency_p50_s"], seen.latency_s(50)),
        ("p95, s", told["latency_p95_s"], seen.latency_s(95)),
        ("tokens/s", told["tokens_per_s"], seen.tokens_per_s * kept),
    ]


def traces_of(path: Path) -> list[Trace]:
    """From what --check wrote."""
    try:
        read = json.loads(path.read_text())["traces"]
        return [tuple(HopWork(*hop) for hop in trace) for trace in read]
    except (OSError, ValueError, KeyError, TypeError):
        raise MeasuringError(f"{path} has no traces: it needs what --check writes with --json") from None


def pace(text: str) -> Pace:
    """BASE_MS,EACH_MS,PLACES[,READ_MS]"""
    try:
        base_ms, each_ms, places, read_ms = (float(word) for word in f"{text},0".split(",")[:4])
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ms, ms a hop, places, ms a token read") from None
    return Pace(base_ms / 1000, each_ms / 1000, int(places), read_ms / 1000)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.capacity", __doc__, concurrency=8)
    made.add_argument("--check", action="store_true", help="measure a system and compare the simulation with it")
    made.add_argument("--problems", type=at_least_one, default=128, help="of --check (default: %(default)s)")
    made.add_argument("--traces", type=Path, metavar="FILE", help="requests: the --json of an earlier --check")
    for model in MODELS:
        made.add_argument(
            f"--{model}",
            type=pace,
            metavar="MS,MS,N[,MS]",
            help="time of an iteration: base, each hop; places; each token read",
        )
    made.add_argument(
        "--tokens", type=int, default=0, help="that each request writes at least: the traces go on so long"
    )
    made.add_argument("--hop-ms", type=float, default=5.0, help="of a hop beside the engine (default: %(default)s)")
    made.add_argument("--users", type=numbers, default=[10, 1000, 100_000], metavar="N,…")
    made.add_argument("--think-s", type=float, default=30.0, help="between reply and question (default: %(default)s)")
    made.add_argument("--p95-s", type=float, default=60.0, help="wanted latency (default: %(default)s)")
    made.add_argument("--seconds", type=float, default=600.0, help="simulated (default: %(default)s)")
    made.add_argument("--slice", type=at_least_one, default=500, help="users simulated at most (default: %(default)s)")
    options = made.parse_args(arguments)
    if not options.check and not (options.traces and options.small and options.large):
        made.error("give --check, or --traces, --small and --large")
    return options


def checked(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    config = settings_of(options.profile)

    async def ask(url: str) -> dict[str, Any]:
        async with Client(url) as client:
            return await measured(client, generated(options.seed, options.problems), options)

    with serving(options.url, options.profile, options.port) as url:
        told = asyncio.run(ask(url))
    places: dict[Model, int] = {
        "small": config.small.max_ongoing_requests,
        "large": config.large.max_ongoing_requests,
    }
    paces = {
        model: replace(
            Pace.fitted(told["seen"][model], places[model]),
            read_s=told["read_s"][model],
            crowded=told["crowded"][model],
        )
        for model in MODELS
    }
    system = System(dict.fromkeys(MODELS, 1), paces, hop_s(told["alone_s"], told["alone"], paces))
    rows = compared(system, told, options)
    report = [(name, f"{real:.2f}", f"{made:.2f}", f"{made / real - 1:+.0%}") for name, real, made in rows]
    text = table((f"{options.concurrency} at a time", "measured", "simulated", "off by"), report)
    return {
        "paces": {model: asdict(one) for model, one in paces.items()},
        "hop_s": system.hop_s,
        "traces": [[(hop.pool, hop.tokens, hop.reads) for hop in trace] for trace in told["traces"]],
        "check": [{"figure": name, "measured": real, "simulated": made} for name, real, made in rows],
    }, text


def planned(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    traces = lengthened(traces_of(options.traces), options.tokens, options.seed)
    paces: dict[Model, Pace] = {"small": options.small, "large": options.large}
    system = System({}, paces, options.hop_ms / 1000)
    parts = {users: min(users, options.slice) for users in options.users}
    found = {part: needed(system, traces, part, options) for part in sorted(set(parts.values()))}
    rows = []
    for users, part in parts.items():
        replicas, seen = found[part]
        rows.append(
            {
                "users": users,
                **{f"{model}_replicas": math.ceil(n * users / part) for model, n in replicas.items()},
                "latency_p50_s": seen.latency_s(50),
                "latency_p95_s": seen.latency_s(95),
                "tokens_per_s": seen.tokens_per_s * users / part,
                "places": seen.taken,
            }
        )
    cells = [
        (
            f"{one['users']}",
            *(f"{one[f'{model}_replicas']}" for model in MODELS),
            f"{one['latency_p50_s']:.1f} s",
            f"{one['latency_p95_s']:.1f} s",
            f"{one['tokens_per_s']:.0f}",
            *(f"{one['places'][model]:.0%}" for model in MODELS),  # type: ignore[index]
        )
        for one in rows
    ]
    heads = ("users", "small", "large", "p50", "p95", "tokens/s", "small places", "large places")
    return {"rows": rows}, table(heads, cells)


def main() -> None:
    options = read_options()
    told, text = checked(options) if options.check else planned(options)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
