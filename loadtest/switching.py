"""What the engines ask of a router: what a look at every token costs them, and what a switch of models costs.

    python -m loadtest.switching --profile my-pair.yaml --streams 1,32 --prefixes 512,2048,8192

The engine of each pool, in this process, one after the other. `decode`: streams of --tokens each, at once, without
logprobs; with the 20 likeliest of each token, from which the paper's client takes the entropy; and with the entropy
taken in the engine (deployments/glimpses.py). `switch`: one token after a prefix that the engine has not seen; after a
prefix that it has and a step that the other model wrote (--step-tokens); and after a prefix that it has seen whole.
Milliseconds, medians of --rounds; a switch also in tokens, of those that the engine writes by itself in that time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from deployments.config import PoolConfig
from loadtest.command import MeasuringError, at_least_one, numbers, parser, run
from loadtest.engines import own_engine, settings_of
from loadtest.table import table
from router.glimpse import TOP
from router.request import Model


@dataclass(frozen=True, slots=True)
class Decoding:
    """A token's milliseconds in one of so many streams."""

    model: Model
    streams: int
    plain_ms: float
    logprobs_ms: float
    entropy_ms: float


@dataclass(frozen=True, slots=True)
class Switch:
    """Milliseconds to one token after a prefix: never seen, seen but for a step, seen whole; and to decode one."""

    model: Model
    prefix_tokens: int
    unseen_ms: float
    step_ms: float
    seen_ms: float
    token_ms: float


class Engine:
    """A pool's engine, and prompts for it that are like no others."""

    def __init__(self, core: Any, seed: int) -> None:
        self._core, self._chance = core, random.Random(seed)
        self._vocabulary = core.model_config.get_vocab_size()

    def prompt(self, tokens: int) -> list[int]:
        return [self._chance.randrange(self._vocabulary // 2) for _ in range(tokens)]

    async def entropies(self) -> None:
        """From now on logprobs=0 is answered with the entropy."""
        from deployments.engine import glimpse_logprobs

        if await glimpse_logprobs(self._core):
            raise MeasuringError("this vLLM samples in a way in which the entropy cannot be taken in the engine")

    async def first_and_last(self, prompt: list[int], tokens: int, logprobs: int | None = None) -> tuple[float, float]:
        """Seconds from asking to the first and to the last token."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            ignore_eos=True,
            logprobs=logprobs,
            flat_logprobs=logprobs is not None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        began, first = time.perf_counter(), 0.0
        async for _ in self._core.generate(tokens_input(prompt), params, uuid4().hex):
            first = first or time.perf_counter() - began
        return first, time.perf_counter() - began

    async def token_ms(self, streams: int, tokens: int, logprobs: int | None = None) -> float:
        prompts = [self.prompt(64) for _ in range(streams)]
        took = await asyncio.gather(*(self.first_and_last(prompt, tokens, logprobs) for prompt in prompts))
        return 1000.0 * statistics.median(last - first for first, last in took) / (tokens - 1)

    async def switch_ms(self, prefix_tokens: int, step_tokens: int) -> list[float]:
        """To one token after a prefix never seen, seen but for a step, and seen."""
        prefix = self.prompt(prefix_tokens)
        grown = prefix + self.prompt(step_tokens)
        return [1000.0 * (await self.first_and_last(asked, 1))[1] for asked in (prefix, grown, grown)]


async def measured(model: Model, pool: PoolConfig, options: argparse.Namespace) -> tuple[list[Decoding], list[Switch]]:
    """One engine's figures."""
    with own_engine(model, pool) as core:
        engine = Engine(core, options.seed)

        async def median(streams: int, logprobs: int | None) -> float:
            return statistics.median(
                [await engine.token_ms(streams, options.tokens, logprobs) for _ in range(options.rounds)]
            )

        for streams in options.streams:
            await engine.token_ms(streams, 16, TOP)
        apart = [(streams, await median(streams, None), await median(streams, TOP)) for streams in options.streams]
        switches = []
        for prefix_tokens in options.prefixes:
            await engine.switch_ms(prefix_tokens, options.step_tokens)
            took = [await engine.switch_ms(prefix_tokens, options.step_tokens) for _ in range(options.rounds)]
            unseen, step, seen = (statistics.median(one) for one in zip(*took, strict=True))
            switches.append(Switch(model, prefix_tokens, unseen, step, seen, apart[0][1]))
        # The last, as there is no way back.
        await engine.entropies()
        decodings = [Decoding(model, *one, await median(one[0], 0)) for one in apart]
    print(shown(decodings, switches), file=sys.stderr)
    return decodings, switches


def shown(decodings: Sequence[Decoding], switches: Sequence[Switch]) -> str:
    decoded = [
        (
            one.model,
            str(one.streams),
            f"{one.plain_ms:.2f}",
            f"{one.logprobs_ms:.2f}",
            f"{one.entropy_ms:.2f}",
        )
        for one in decodings
    ]
    switched = [
        (
            one.model,
            str(one.prefix_tokens),
            *(f"{ms:.1f} ({ms / one.token_ms:.1f})" for ms in (one.unseen_ms, one.step_ms, one.seen_ms)),
        )
        for one in switches
    ]
    return "\n\n".join(
        (
            table(("decode, ms a token", "streams", "plain", f"{TOP} logprobs", "entropy"), decoded),
            table(("switch, ms (tokens)", "prefix", "unseen", "all but a step seen", "seen"), switched),
        )
    )


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.switching", __doc__, concurrency=None)
    made.add_argument("--models", type=models, default=["small", "large"], metavar="NAME,…", help="(default: both)")
    made.add_argument("--streams", type=numbers, default=[1, 32], metavar="N,…", help="(default: 1,32)")
    made.add_argument("--prefixes", type=numbers, default=[512, 2048], metavar="N,…", help="tokens (default: 512,2048)")
    made.add_argument("--step-tokens", type=at_least_one, default=44, metavar="N", help="(default: %(default)s)")
    made.add_argument(
        "--tokens", type=at_least_one, default=128, metavar="N", help="of a stream (default: %(default)s)"
    )
    made.add_argument("--rounds", type=at_least_one, default=3, help="(default: %(default)s)")
    options = made.parse_args(arguments)
    if options.url:
        made.error("--url: the engines are this command's own")
    return options


def models(text: str) -> list[Model]:
    names: list[Model] = [name for name in ("small", "large") if name in text.split(",")]  # type: ignore[misc]
    if len(names) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: small, large, or both")
    return names


def main() -> None:
    options = read_options()
    config = settings_of(options.profile)
    pools: dict[Model, PoolConfig] = {"small": config.small, "large": config.large}
    done = [asyncio.run(measured(model, pools[model], options)) for model in options.models]
    decodings = [one for decoded, _ in done for one in decoded]
    switches = [one for _, switched in done for one in switched]
    print(shown(decodings, switches))
    if options.json:
        told = {"decode": [asdict(one) for one in decodings], "switch": [asdict(one) for one in switches]}
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
