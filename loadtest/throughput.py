"""What share of the bare engine's rate reaches the clients, on the same cores.

    python -m loadtest.throughput                              # the embedded pair's own engine
    python -m loadtest.throughput --paced                      # a stand-in paced like a GPU, so the router is the limit

`engine`: the small model's vLLM engine in this process, asked the same chats with nothing around it and without the
entropies that the gate needs; replies whole, or a token at a time. Beside it this system's model `small`, and
routing at a threshold above every entropy: `small, routed` with answers by the small model, so that what is lost on the
way is the price of serving and of routing, not of another model; `glimpse` as it comes, where the large model reads all
of the reasoning and writes the answer. Replies whole and streamed. Every client sends its next problem when it
has the answer to the last; the clients run on the same cores, and what they take stands beside each row.

In every round the engine and then the system is started, warmed, measured and ended, and none is asked a problem twice.
Of the figures of each round the median is reported, and of the shares of the engine's rate that of the rounds' shares.

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
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import yaml

from deployments.config import AppConfig
from loadtest.command import at_least_one, credentials, parser, run, serving
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
    """Medians of the rounds: tokens a second, that rate's share of the engine's, and the cores that the clients, and
    that all processes took."""

    system: str
    streamed: bool
    tokens_per_s: float
    of_engine: float
    client_cores: float
    cores: float


Taken = dict[tuple[str, bool], Round]
"""A round, by system and by whether replies were streamed."""


def rows(taken: Sequence[Taken], *, pace: float | None = None) -> list[Row]:
    """Of each round the shares are those of its own engine, or of the pace (tokens a second) that stands for it."""
    made = [] if pace is None else [Row("engine", streamed, pace, 1.0, 0.0, 0.0) for streamed in (False, True)]
    for system, streamed in taken[0]:
        rounds = [one[system, streamed] for one in taken]
        bare = [_rate(one["engine", streamed]) if pace is None else pace for one in taken]
        shares = (_rate(one) / its for one, its in zip(rounds, bare, strict=True))
        cpu_s = [(one.cpu_s or {}, one.seconds) for one in rounds]
        made.append(
            Row(
                system,
                streamed,
                tokens_per_s=statistics.median(map(_rate, rounds)),
                of_engine=statistics.median(shares),
                client_cores=statistics.median(spent.get("client", 0.0) / seconds for spent, seconds in cpu_s),
                cores=statistics.median(sum(spent.values()) / seconds for spent, seconds in cpu_s),
            )
        )
    return made


def _rate(one: Round) -> float:
    return sum(each.tokens for each in one.solved) / one.seconds


def fresh(options: argparse.Namespace, turn: int) -> Iterator[Question]:
    """As many problems as a system is asked in a round, all different."""
    return iter(generated(options.seed + turn, 2 * len(SYSTEMS) * options.clients * (1 + options.each)))


async def measured(
    label: str, solve: Callable[[Question], Awaitable[Solved]], asked: Iterator[Question], options: argparse.Namespace
) -> Round:
    """One for each client to warm up, then so many for each."""
    warming, questions = (list(islice(asked, options.clients * some)) for some in (1, options.each))
    await measure(solve, warming, options.clients, f"{label}, warming", count_cpu=False)
    return await measure(solve, questions, options.clients, label, count_cpu=True)


def _label(system: str, turn: int, *, streamed: bool) -> str:
    return f"{system}, {'streamed' if streamed else 'whole'}, round {turn + 1}"


async def engine(config: AppConfig, options: argparse.Namespace, turn: int) -> Taken:
    """The small pool's engine in this process."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    small = config.small
    vocabulary = Vocabulary.load(small.path, revision=small.revision, think_tags=config.routing.think_tags)
    asked = fresh(options, turn)
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

        return {
            ("engine", streamed): await measured(
                _label("engine", turn, streamed=streamed), solver(streamed=streamed), asked, options
            )
            for streamed in (False, True)
        }


async def served(url: str, config: AppConfig, options: argparse.Namespace, turn: int) -> Taken:
    """This system over HTTP."""
    limits = Limits(ALL_EASY, config.limits.step_tokens, 0, 0)
    ask = Ask(limits, options.max_tokens or config.limits.max_tokens, False, lambda _model, _question: "", True)
    asked, timeout = fresh(options, turn), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=credentials()
    ) as http:
        return {
            (name, streamed): await measured(
                _label(name, turn, streamed=streamed),
                system(http, {"small": url}, replace(ask, stream=streamed)).solve,
                asked,
                options,
            )
            for streamed in (False, True)
            for name, system in SYSTEMS.items()
        }


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
    cells = [
        (
            one.system,
            "streamed" if one.streamed else "whole",
            f"{one.tokens_per_s:.0f}",
            f"{one.of_engine:.2f}",
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
    pace = 1000.0 * options.clients / options.token_ms if options.paced else None
    taken: list[Taken] = []
    with paced(options) if options.paced else nullcontext(options.profile) as profile:
        for turn in range(options.rounds):
            bare = {} if options.paced else asyncio.run(engine(config, options, turn))
            with serving(None, profile, options.port) as url:
                taken.append(bare | asyncio.run(served(url, config, options, turn)))
            if options.json:  # each time, for a run that does not come to its end
                told = [asdict(one) for one in rows(taken, pace=pace)]
                options.json.write_text(json.dumps(told, indent=1) + "\n")
    print(shown(rows(taken, pace=pace)))


if __name__ == "__main__":
    run(main)
