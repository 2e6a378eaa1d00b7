"""What share of the bare engine's rate reaches the clients, on the same cores.

    python -m loadtest.throughput                              # the embedded pair's own engine
    python -m loadtest.throughput --paced                      # a stand-in paced like a GPU, so the router is the limit

`engine`: the small model's vLLM engine in this process, asked the same chats with nothing around it and without the
entropies that the gate needs; replies whole, or a token at a time. Beside it this system's model `small`, and
routing at a threshold above every entropy: `small, routed` with answers by the small model, so that what is lost on the
way is the price of serving and of routing, not of another model; `glimpse` as it comes, where the large model reads all
of the reasoning and writes the answer. Replies whole and streamed. Every client sends its next problem when it
has the answer to the last; the clients run on the same cores, and what they take stands beside each row. Of the
figures of each round the median is reported.

With --paced the stand-in (loadtest/paced.py) takes the engines' place, and `engine` is what its pace comes to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import yaml

from deployments.config import AppConfig
from loadtest.command import at_least_one, parser, run, serving
from loadtest.engines import own_engine, settings_of
from loadtest.paced import stand_in
from loadtest.paper import Limits
from loadtest.questions import Question, generated
from loadtest.systems import Ask, Ours, OursAnsweredBySmall, OursSmall, Solved
from loadtest.table import table
from loadtest.versus import Round, measure
from router.vocabulary import Vocabulary

ALL_EASY = 3.0
"""Nats; the entropy over the 20 likeliest tokens is below it."""

STEP_TOKENS, EASY_STEPS = 24, 4
"""How the stand-in writes."""

SYSTEMS: dict[str, type[Ours]] = {"small": OursSmall, "small, routed": OursAnsweredBySmall, "glimpse": Ours}


@dataclass(frozen=True, slots=True)
class Row:
    """Of the median round: tokens a second, and the cores that the clients, and that all processes took."""

    system: str
    streamed: bool
    tokens_per_s: float
    client_cores: float
    cores: float


def row(system: str, rounds: Sequence[Round], *, streamed: bool) -> Row:
    def median(figure: Callable[[Round], float]) -> float:
        return statistics.median(figure(one) / one.seconds for one in rounds)

    return Row(
        system=system,
        streamed=streamed,
        tokens_per_s=median(lambda one: sum(each.tokens for each in one.solved)),
        client_cores=median(lambda one: (one.cpu_s or {}).get("client", 0.0)),
        cores=median(lambda one: sum((one.cpu_s or {}).values())),
    )


async def measured(
    system: str, solve: Callable[[Question], Awaitable[Solved]], options: argparse.Namespace, *, streamed: bool
) -> Row:
    """Rounds of problems that nobody asked before, after one to warm up."""
    count, label = options.clients * options.each, f"{system}, {'streamed' if streamed else 'whole'}"
    asked = generated(options.seed, options.clients + options.rounds * count)
    await measure(solve, asked[: options.clients], options.clients, f"{label}, warming", count_cpu=False)
    rounds = [
        await measure(
            solve, asked[options.clients + n * count :][:count], options.clients, f"{label}, {n + 1}", count_cpu=True
        )
        for n in range(options.rounds)
    ]
    return row(system, rounds, streamed=streamed)


async def engine(config: AppConfig, options: argparse.Namespace) -> list[Row]:
    """The small pool's engine in this process."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    small = config.small
    vocabulary = Vocabulary.load(small.path, revision=small.revision, think_tags=config.routing.think_tags)
    with own_engine("small", small) as core:

        def solver(*, streamed: bool) -> Callable[[Question], Awaitable[Solved]]:
            kind = RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY

            async def solve(question: Question) -> Solved:
                prompt: array[int] = vocabulary.render(question.messages)
                params = SamplingParams(
                    temperature=0.0, max_tokens=options.max_tokens or config.limits.max_tokens, output_kind=kind
                )
                began, tokens, text = time.perf_counter(), 0, ""
                async for output in core.generate(tokens_input(prompt.tolist()), params, uuid4().hex):
                    tokens, text = tokens + len(output.outputs[0].token_ids), text + output.outputs[0].text
                return Solved(time.perf_counter() - began, None, tokens, 0, 0, text)

            return solve

        return [
            await measured("engine", solver(streamed=streamed), options, streamed=streamed)
            for streamed in (False, True)
        ]


async def served(url: str, config: AppConfig, options: argparse.Namespace) -> list[Row]:
    """This system over HTTP."""
    limits = Limits(ALL_EASY, config.limits.step_tokens, 0, 0)
    ask = Ask(limits, options.max_tokens or config.limits.max_tokens, False, lambda _model, _question: "", True)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        return [
            await measured(
                name,
                system(http, {"small": url}, replace(ask, stream=streamed)).solve,
                options,
                streamed=streamed,
            )
            for streamed in (False, True)
            for name, system in SYSTEMS.items()
        ]


@contextmanager
def paced(options: argparse.Namespace) -> Iterator[Path]:
    """The profile with the stand-in for both engines."""
    config: dict[str, Any] = yaml.safe_load(options.profile.read_text())
    stand_in(config["applications"][0], token_ms=options.token_ms, step_tokens=STEP_TOKENS, easy_steps=EASY_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "paced.yaml")
        path.write_text(yaml.safe_dump(config))
        yield path


def shown(rows: Sequence[Row]) -> str:
    bare = {one.streamed: one.tokens_per_s for one in rows if one.system == "engine"}
    cells = [
        (
            one.system,
            "streamed" if one.streamed else "whole",
            f"{one.tokens_per_s:.0f}",
            f"{one.tokens_per_s / bare[one.streamed]:.2f}",
            f"{one.client_cores:.2f}",
            f"{one.cores:.2f}",
        )
        for one in rows
    ]
    return table(("system", "replies", "tokens/s", "of the engine", "client, cores", "all, cores"), cells)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.throughput", __doc__, concurrency=None)
    made.add_argument("--clients", type=at_least_one, default=64, help="(default: %(default)s)")
    made.add_argument("--each", type=at_least_one, default=4, help="problems of a client in a round (default: 4)")
    made.add_argument("--rounds", type=at_least_one, default=3, help="(default: %(default)s)")
    made.add_argument(
        "--max-tokens", type=at_least_one, help="reasoning and answer (default: the profile's; with --paced 512)"
    )
    made.add_argument("--paced", action="store_true", help="a stand-in for the engines, at a rate of its own")
    made.add_argument("--token-ms", type=float, default=10.0, help="of the stand-in (default: %(default)s)")
    options = made.parse_args(arguments)
    if options.url:
        made.error("--url: the engine must be alone on the cores first, so the system is this command's own")
    if options.paced:
        options.max_tokens = options.max_tokens or 512
    return options


def main() -> None:
    options = read_options()
    config = settings_of(options.profile)
    if options.paced:
        pace = 1000.0 * options.clients / options.token_ms
        rows = [Row("engine", streamed, pace, 0.0, 0.0) for streamed in (False, True)]
        with paced(options) as profile, serving(None, profile, options.port) as url:
            rows += asyncio.run(served(url, config, options))
    else:
        rows = asyncio.run(engine(config, options))
        with serving(None, options.profile, options.port) as url:
            rows += asyncio.run(served(url, config, options))
    print(shown(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")


if __name__ == "__main__":
    run(main)
