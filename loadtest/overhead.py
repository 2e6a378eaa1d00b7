"""What routing costs: the CPU time of everything but the forward pass, and how it grows with the prefix.

    python -m loadtest.overhead                               # the embedded pair's own engine
    python -m loadtest.overhead --paced --clients 64          # a stand-in paced like a GPU, so the router is the limit

Three layers do the same work, one inside the other. `engine`: a vLLM engine in this process writes runs of steps,
with what the gate needs. `hop`: such runs asked of a pool over its Serve handle. `stack`: whole requests
over HTTP, in which a large step follows every run. With --paced, which has no engine to try by itself, a stand-in
(loadtest/paced.py) writes the steps.

CPU time is that of all processes without the forward passes (loadtest/timed_worker.py); in `stack` this process, which
only plays the clients, is left out as well. Sampling counts. Steps are cut at --step-tokens, so that a model which
reads a prefix beyond its training still writes steps of a known length.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import yaml
from tqdm import tqdm

from deployments.config import AppConfig
from loadtest.command import among, at_least_one, attached, credentials, numbers, parser, run, serving
from loadtest.engines import own_engine, settings_of
from loadtest.forward import FOLDER, forward_s
from loadtest.paced import stand_in
from loadtest.processes import CpuTime
from loadtest.questions import generated
from loadtest.systems import posted
from loadtest.table import table
from router.hop import Hop
from router.request import Sampling
from router.vocabulary import Vocabulary

LAYERS = ("engine", "hop", "stack")
FORWARD = "forward pass"
EASY_STEPS = 4
"""Steps of a run, in every layer; with an engine that writes as it likes, the most it may write."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one piece of work wrote."""

    steps: int
    tokens: int


Piece = Callable[[int], Awaitable[Work]]
"""Does the n-th piece of a client's work."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked for: clients at a time, tokens of prefix, how long, and how long a step may be."""

    clients: int
    prefix_tokens: int
    seconds: float
    step_tokens: int


async def worked(piece: Piece, load: Load) -> tuple[Work, float]:
    """All that the clients got done in the time given, and how long it took to the last of it."""
    began = time.perf_counter()
    done: list[Work] = []

    async def client(n: int) -> None:
        count = 0
        while time.perf_counter() - began < load.seconds:
            done.append(await piece(n * 1000 + count))
            count += 1

    await asyncio.gather(*(client(n) for n in range(load.clients)))
    return Work(sum(one.steps for one in done), sum(one.tokens for one in done)), time.perf_counter() - began


async def measured(layer: str, piece: Piece, load: Load, *, paced: bool, count_cpu: bool = True) -> dict[str, Any]:
    """One row, after a round that fills the prefix cache."""
    await asyncio.gather(*(piece(n * 1000) for n in range(load.clients)))
    before = Spent.now()
    done, seconds = await worked(piece, load)
    spent = Spent.now().since(before) if count_cpu else None
    return row(layer, spent, done, seconds, load, paced=paced)


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU time of every process, and what of it went into forward passes."""

    cpu: CpuTime
    forward_s: dict[int, float]

    @classmethod
    def now(cls) -> Spent:
        folder = os.environ.get(FOLDER)
        return cls(CpuTime.now(), forward_s(Path(folder)) if folder else {})

    def since(self, earlier: Spent) -> dict[str, float]:
        """Seconds by kind of process; forward passes apart."""
        spent = self.cpu.since(earlier.cpu)
        for pid, seconds in self.forward_s.items():
            if pid in self.cpu.kinds:
                took = seconds - earlier.forward_s.get(pid, 0.0)
                spent[self.cpu.kinds[pid]] -= took
                spent[FORWARD] = spent.get(FORWARD, 0.0) + took
        return spent


def row(
    layer: str, cpu_s: dict[str, float] | None, done: Work, seconds: float, load: Load, *, paced: bool
) -> dict[str, Any]:
    """The figures of one measurement. cpu_s: by kind of process, None where they are not this command's own."""
    left_out = {FORWARD, "client"} if layer == "stack" else {FORWARD}
    steps = max(1, done.steps)
    by_kind = {kind: 1000.0 * spent / steps for kind, spent in sorted((cpu_s or {}).items())}
    per_step = sum(spent for kind, spent in by_kind.items() if kind not in left_out)
    return {
        "layer": layer,
        "paced": paced,
        "clients": load.clients,
        "prefix_tokens": load.prefix_tokens,
        "cpu_ms_per_step": None if cpu_s is None else per_step,
        "steps_per_s": done.steps / seconds,
        "tokens_per_s": done.tokens / seconds,
        "cpu_ms_per_step_by_process": by_kind,
    }


@asynccontextmanager
async def engine(config: AppConfig, prompts: Prompts) -> AsyncGenerator[Callable[[Load], Piece]]:
    """The small pool's engine in this process."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    from deployments.engine import glimpse_logprobs

    with own_engine("small", config.small) as core:
        logprobs = await glimpse_logprobs(core)

        def pieces(load: Load) -> Piece:
            prompt = prompts.ids(load.prefix_tokens).tolist()
            tokens = EASY_STEPS * load.step_tokens
            params = SamplingParams(
                temperature=0.0,
                max_tokens=tokens,
                ignore_eos=True,
                logprobs=logprobs,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )

            async def piece(n: int) -> Work:
                async for _ in core.generate(tokens_input(prompt), params, uuid4().hex):
                    pass
                return Work(EASY_STEPS, tokens)

            return piece

        yield pieces


@asynccontextmanager
async def hop(address: str | None, prompts: Prompts) -> AsyncGenerator[Callable[[Load], Piece]]:
    """The small pool over its handle. The system has to be one of this machine that was just started."""
    from ray import serve

    from router.pools import ServedPool

    with attached(address):
        pool = ServedPool("small", serve.get_deployment_handle("small", "glimpse"), attempts=1)
        pair = (await pool.ask("describe"))["pair"]

        def pieces(load: Load) -> Piece:
            prompt = prompts.ids(load.prefix_tokens).tobytes()

            async def piece(n: int) -> Work:
                asked = Hop(
                    pair=pair,
                    prefix=prompt,
                    sampling=Sampling(temperature=0.0),
                    # Above every entropy: a run is as long here as in the other layers, but looked at all the same.
                    gate=100.0,
                    max_steps=EASY_STEPS,
                    step_tokens=load.step_tokens,
                    thinking_tokens=10_000,
                    tokens=10_000,
                    request=f"overhead-{n}",
                    conversation=f"overhead-{n}",
                )
                steps = tokens = 0
                async for chunk in pool.write(asked):
                    steps, tokens = steps + len(chunk.steps), tokens + (len(chunk.thought) + len(chunk.answer)) // 4
                return Work(steps, tokens)

            return piece

        yield pieces


@asynccontextmanager
async def stack(url: str, prompts: Prompts, options: argparse.Namespace) -> AsyncGenerator[Callable[[Load], Piece]]:
    """Whole requests, plain or streamed."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=credentials()) as http:

        def pieces(load: Load) -> Piece:
            body = {
                "model": "glimpse",
                "messages": prompts.messages(load.prefix_tokens),
                # A quarter of it is kept for the answer.
                "max_tokens": options.request_steps * load.step_tokens * 4 // 3,
                "temperature": 0,
                "glimpse": {"include_steps": True},
                **({"stream": True, "stream_options": {"include_usage": True}} if options.stream else {}),
            }

            async def piece(n: int) -> Work:
                async with posted(http, f"{url}/v1/chat/completions", body) as response:
                    if not options.stream:
                        told = await response.json()
                        return Work(len(told["glimpse"]["steps"]), told["usage"]["completion_tokens"])
                    steps = tokens = 0
                    async for line in response.content:
                        steps += b'"glimpse": {"step"' in line
                        if b'"usage": {' in line:
                            tokens = json.loads(line.removeprefix(b"data:"))["usage"]["completion_tokens"]
                    return Work(steps, tokens)

            return piece

        yield pieces


class Prompts:
    """Chats of a wanted length: so many of the generator's questions that it is reached, in one message."""

    def __init__(self, vocabulary: Vocabulary, seed: int) -> None:
        self._vocabulary, self._seed = vocabulary, seed
        self._texts: dict[int, str] = {}

    def messages(self, tokens: int) -> list[dict[str, str]]:
        if tokens not in self._texts:
            asked, length = [], 0
            for question in generated(self._seed, tokens // 4):
                asked.append(question.text)
                length += len(self._vocabulary.encode(question.text))
                if length >= tokens:
                    break
            self._texts[tokens] = "\n".join(asked)
        return [{"role": "user", "content": self._texts[tokens]}]

    def ids(self, tokens: int) -> array[int]:
        return self._vocabulary.render(self.messages(tokens))


@contextmanager
def variant(options: argparse.Namespace) -> Iterator[Path]:
    """The profile with room for the longest prefix, steps of a known length, and forward passes that are timed; or
    with the stand-in for both engines."""
    config: dict[str, Any] = yaml.safe_load(options.profile.read_text())
    application = config["applications"][0]
    args = application["args"]
    room = max(options.prefixes) + 8192
    for name in ("small", "large"):
        args[name] = args[name] | {"max_model_len": room}
        if not options.paced:
            timed = {"hf_overrides": {"max_position_embeddings": room}, "worker_cls": "loadtest.timed_worker.Worker"}
            args[name]["engine"] = args[name].get("engine", {}) | timed
    args["limits"] = args.get("limits", {}) | {
        "step_tokens": options.step_tokens,
        "warm_up_tokens": None,
    }
    if options.paced:
        stand_in(application, token_ms=options.token_ms, step_tokens=options.step_tokens, easy_steps=EASY_STEPS)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as times:
        path = Path(folder, "overhead.yaml")
        path.write_text(yaml.safe_dump(config))
        os.environ[FOLDER] = times
        try:
            yield path
        finally:
            del os.environ[FOLDER]


def shown(rows: Sequence[dict[str, Any]]) -> str:
    heads = ("layer", "clients", "prefix", "CPU ms/step", "steps/s", "tokens/s", "where")
    cells = [
        (
            one["layer"] + (" (paced)" if one["paced"] else ""),
            str(one["clients"]),
            str(one["prefix_tokens"]),
            "–" if one["cpu_ms_per_step"] is None else f"{one['cpu_ms_per_step']:.2f}",
            f"{one['steps_per_s']:.0f}",
            f"{one['tokens_per_s']:.0f}",
            ", ".join(f"{kind} {ms:.2f}" for kind, ms in one["cpu_ms_per_step_by_process"].items() if ms >= 0.05),
        )
        for one in rows
    ]
    return table(heads, cells)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.overhead", __doc__, concurrency=None)
    made.add_argument("--layers", type=among(LAYERS), metavar="NAME,…", help=f"of {', '.join(LAYERS)} (default: all)")
    made.add_argument("--paced", action="store_true", help="a stand-in for the engines, at a rate of its own")
    made.add_argument("--token-ms", type=float, default=10.0, help="of the stand-in (default: %(default)s)")
    made.add_argument("--clients", type=numbers, default=[1, 16], metavar="N,…", help="(default: 1,16)")
    made.add_argument(
        "--prefixes", type=numbers, default=[512, 2048], metavar="TOKENS,…", help="up to 32768 (default: 512,2048)"
    )
    made.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: %(default)s)")
    made.add_argument("--step-tokens", type=at_least_one, default=24, help="longer ones are cut (default: %(default)s)")
    made.add_argument("--request-steps", type=at_least_one, default=20, help="at most (default: %(default)s)")
    made.add_argument("--stream", action="store_true", help="replies as they are written, in the layer `stack`")
    made.add_argument("--ray-address", metavar="HOST:PORT", help="(default: RAY_ADDRESS or here)")
    options = made.parse_args(arguments)
    options.layers = options.layers or [layer for layer in LAYERS if not (options.paced and layer == "engine")]
    if options.paced and "engine" in options.layers:
        made.error("the stand-in is no engine to try by itself: leave engine out of --layers")
    if options.paced and options.url:
        made.error("--url: that server has its own engines, the stand-in needs one of this command's own")
    return options


async def each_load(
    layer: str, opened: AbstractAsyncContextManager[Callable[[Load], Piece]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    rows, own = [], options.url is None  # a server that was there before is not below this process
    async with opened as pieces:
        for prefix_tokens, clients in tqdm(list(product(options.prefixes, options.clients)), desc=layer, leave=False):
            load = Load(clients, prefix_tokens, options.seconds, options.step_tokens)
            rows.append(
                await measured(layer, pieces(load), load, paced=options.paced, count_cpu=own or layer == "engine")
            )
            tqdm.write(shown(rows[-1:]).rpartition("\n")[2], file=sys.stderr)
    return rows


def main() -> None:
    options = read_options()
    config = settings_of(options.profile)
    small = config.small
    prompts = Prompts(
        Vocabulary.load(small.path, revision=small.revision, think_tags=config.routing.think_tags), options.seed
    )
    rows: list[dict[str, Any]] = []
    with variant(options) as profile:
        if "engine" in options.layers:
            rows += asyncio.run(each_load("engine", engine(settings_of(profile), prompts), options))
        if {"hop", "stack"} & set(options.layers):
            with serving(options.url, profile, options.port) as url:
                if "hop" in options.layers:
                    rows += asyncio.run(each_load("hop", hop(options.ray_address, prompts), options))
                if "stack" in options.layers:
                    rows += asyncio.run(each_load("stack", stack(url, prompts, options), options))
    print(shown(rows))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "step_tokens": options.step_tokens}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
