"""What it costs an engine to be asked again for a request that it knows: as a new request, and in a session.

    python -m loadtest.sessions --profile replay/profile.yaml --prefixes 512,2048,8192,32768

The engine of a pool, in this process. --streams at once are asked --hops times each for one token, with --new tokens
that the other model wrote meanwhile. Milliseconds a hop, medians of --rounds: from asking to the token, and CPU of this
process, where a replica's part is done, and of the engine's core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

import psutil
from tqdm import tqdm

from deployments.config import PoolConfig
from loadtest.command import at_least_one, numbers, parser, run
from loadtest.engines import own_engine, settings_of
from loadtest.table import table

WAYS = ("new", "session")


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds a hop."""

    way: str
    prefix_tokens: int
    took_ms: float
    replica_ms: float
    core_ms: float


class Asked:
    """An engine, asked in both ways."""

    def __init__(self, core: Any, options: argparse.Namespace) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from deployments.sessions import Sessions

        self._core, self._options = core, options
        self._params = SamplingParams(
            temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        self._sessions = Sessions(core, options.streams)
        self._process = psutil.Process(core.engine_core.resources.engine_manager.processes[0].pid)
        self._chance = random.Random(options.seed)

    async def cost(self, way: str, prefix_tokens: int) -> Cost:
        """Of hops after a prefix that the engine has seen."""
        options = self._options
        size = self._core.model_config.get_vocab_size() // 2
        count = prefix_tokens + options.hops * options.new
        texts = [[self._chance.randrange(size) for _ in range(count)] for _ in range(options.streams)]
        ids = [uuid4().hex for _ in texts]
        await asyncio.gather(*(self._hop(way, id, text[:prefix_tokens]) for id, text in zip(ids, texts, strict=True)))
        began, before = time.perf_counter(), self._cpu()
        await asyncio.gather(*(self._hops(way, id, text, prefix_tokens) for id, text in zip(ids, texts, strict=True)))
        took, after = time.perf_counter() - began, self._cpu()
        replica, core = (1000.0 * (now - then) for now, then in zip(after, before, strict=True))
        hops = options.streams * options.hops
        return Cost(way, prefix_tokens, 1000.0 * took / options.hops, replica / hops, core / hops)

    async def end(self) -> None:
        """Gives up the sessions, before their engine goes."""
        self._sessions.prune()
        await asyncio.sleep(0.1)

    async def _hops(self, way: str, id: str, text: list[int], prefix_tokens: int) -> None:
        for n in range(1, self._options.hops + 1):
            await self._hop(way, id, text[: prefix_tokens + n * self._options.new])

    async def _hop(self, way: str, id: str, prompt: list[int]) -> None:
        async for _ in self._outputs(way, id, prompt):
            pass

    def _outputs(self, way: str, id: str, prompt: list[int]) -> AsyncGenerator[Any]:
        from vllm.inputs.engine import tokens_input

        if way == "session":
            return self._sessions.write(id, id, prompt, self._params, salt=None, priority=0)
        return self._core.generate(tokens_input(prompt), self._params, uuid4().hex)  # type: ignore[no-any-return]

    def _cpu(self) -> tuple[float, float]:
        """Seconds of this process and of the engine's core."""
        times = self._process.cpu_times()
        return time.process_time(), times.user + times.system


async def measured(pool: PoolConfig, options: argparse.Namespace) -> list[Cost]:
    with own_engine(options.model, pool) as core:
        asked = Asked(core, options)
        # The first round of each is to warm up.
        turns = [(tokens, turn) for tokens in options.prefixes for turn in range(options.rounds + 1)]
        taken: dict[tuple[int, str], list[Cost]] = defaultdict(list)
        for prefix_tokens, turn in tqdm(turns, desc="rounds"):
            for way in WAYS:
                cost = await asked.cost(way, prefix_tokens)
                if turn:
                    taken[prefix_tokens, way].append(cost)
        await asked.end()
        return [middle(done) for done in taken.values()]


def middle(costs: Sequence[Cost]) -> Cost:
    """Of each figure the median."""
    figures = ("took_ms", "replica_ms", "core_ms")
    of = {name: statistics.median(getattr(one, name) for one in costs) for name in figures}
    return Cost(costs[0].way, costs[0].prefix_tokens, **of)


def shown(costs: Sequence[Cost]) -> str:
    rows = [
        (
            str(one.prefix_tokens),
            one.way,
            f"{one.took_ms:.1f}",
            f"{one.replica_ms:.2f}",
            f"{one.core_ms:.2f}",
            f"{one.replica_ms + one.core_ms:.2f}",
        )
        for one in costs
    ]
    return table(("prefix", "asked as", "ms a hop", "CPU, replica's part", "CPU, engine's core", "CPU"), rows)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.sessions", __doc__, concurrency=None)
    made.add_argument("--model", choices=("small", "large"), default="large", help="(default: %(default)s)")
    made.add_argument("--prefixes", type=numbers, default=[512, 2048], metavar="N,…", help="tokens (default: 512,2048)")
    made.add_argument("--streams", type=at_least_one, default=8, metavar="N", help="(default: %(default)s)")
    made.add_argument("--hops", type=at_least_one, default=20, metavar="N", help="of a stream (default: %(default)s)")
    made.add_argument("--new", type=at_least_one, default=6, metavar="N", help="tokens a hop (default: %(default)s)")
    made.add_argument("--rounds", type=at_least_one, default=3, help="(default: %(default)s)")
    options = made.parse_args(arguments)
    if options.url:
        made.error("--url: the engine is this command's own")
    return options


def main() -> None:
    options = read_options()
    config = settings_of(options.profile)
    pool = config.small if options.model == "small" else config.large
    costs = asyncio.run(measured(pool, options))
    print(shown(costs))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in costs], indent=1) + "\n")


if __name__ == "__main__":
    run(main)
