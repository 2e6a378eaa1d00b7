"""What each way to serve a model costs: the same small model, asked the same chats, behind each of them.

    python -m venv litellm && litellm/bin/pip install 'litellm[proxy]'
    pip install --no-deps --target ray-llm jsonref pyarrow
    python -m loadtest.gateways --litellm litellm/bin/litellm --ray-llm ray-llm

`vllm serve` by itself; `litellm`, its proxy in front of that; `ray serve llm`, the application that Ray Serve brings
along for vLLM engines; and `ours`, this system's model `small`, without routing. All have the engine settings of the
profile's small pool and one process of their own that takes requests in (Ray's two a proxy before it), and neither keys
nor a ledger. LiteLLM needs a Python environment of its own. `ray[llm]` would bring along another vLLM than this one:
what Ray Serve LLM needs besides is found in a folder.

In every round each is started, warmed, measured and ended before the next is started, and every round begins with
another one: a machine that is faster now than in ten minutes is so for all of them. All are asked the same, and none
has an engine that was asked before. Every client sends its next problem when it has the answer to the last. CPU seconds
are those of every process of the system and of this one, which plays the clients. Of the figures of each round the
median is reported, and of the ratios to `vllm serve` that of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from deployments.config import PoolConfig, is_cpu_build
from deployments.launcher import ENVIRONMENT
from loadtest.command import among, at_least_one, credentials, free_port, numbers, parser, run, serving
from loadtest.engines import drafting, engine_arguments, own_environment, served, server, settings_of
from loadtest.paper import Limits
from loadtest.questions import generated
from loadtest.systems import Ask, Chat
from loadtest.table import table
from loadtest.versus import Round, figures, measure, ratio, row
from router.vocabulary import Vocabulary

GATEWAYS = ("vllm serve", "litellm", "ray serve llm", "ours")
BESIDE = "vllm serve"
OF_IT = {"tokens/s": "tokens_per_s", "p50": "latency_p50_s"}
"""What is compared with that, and its name among a round's figures."""

ALONE = 16
"""Problems in a round of few clients, at least: a median of four means little."""

CLUSTER_CPUS = 0.1
"""Of each of Ray Serve LLM's replicas: there are as many as are asked for, however few cores this machine has."""


@contextmanager
def litellm(command: str, engine: str) -> Iterator[str]:
    """LiteLLM's proxy in front of an OpenAI-compatible server. https://docs.litellm.ai/docs/proxy/configs"""
    model = {"model": "hosted_vllm/small", "api_base": f"{engine}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": "small", "litellm_params": model}],
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},  # it listens to this machine alone
    }
    environment = os.environ | {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "litellm.yaml")
        path.write_text(yaml.safe_dump(config))
        asked = [command, "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
        with server("litellm", asked, environment, port, "/health/liveliness") as url:
            yield url


@contextmanager
def ray_serve_llm(packages: Path | None, pool: PoolConfig) -> Iterator[str]:
    """https://docs.ray.io/en/latest/serve/llm/index.html"""
    port = free_port()
    actor = {"num_replicas": 1, "ray_actor_options": {"num_cpus": CLUSTER_CPUS}}
    model = {
        "model_loading_config": {"model_id": "small", "model_source": pool.path},
        "engine_kwargs": {"enable_prefix_caching": True, "generation_config": "vllm"} | engine_arguments(pool),
        "deployment_config": actor,
        "runtime_env": {"env_vars": dict(pool.env)},
    }
    if is_cpu_build():
        model |= {
            "accelerator_config": {"kind": "cpu"},
            "placement_group_config": {"bundles": [{"CPU": CLUSTER_CPUS}]},
        }
    application = {
        "name": "llm",
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [model], "ingress_deployment_config": actor},
    }
    config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "serve.yaml")
        path.write_text(yaml.safe_dump(config))
        asked = [str(Path(sys.executable).parent / "serve"), "run", "--address", "local", str(path)]
        # How this system sets Ray is its own doing; how it sets engines, all get.
        environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("RAY_")}
        environment |= own_environment(pool) | ({"PYTHONPATH": str(packages.resolve())} if packages else {})
        with server("ray serve llm", asked, environment, port, "/v1/models") as url:
            yield url


async def measured(
    url: str, gateway: str, ask: Ask, options: argparse.Namespace, turn: int
) -> dict[tuple[int, bool], Round]:
    """One round, by the number of clients and whether replies were streamed."""
    done: dict[tuple[int, bool], Round] = {}
    counts = [max(ALONE, clients * options.each) for clients in options.clients]
    asked = iter(generated(options.seed + turn, 2 * sum(options.clients + counts)))
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), headers=credentials()
    ) as http:
        for clients, count in zip(options.clients, counts, strict=True):
            for stream in (False, True):
                solve = Chat(http, {"small": url}, replace(ask, stream=stream)).solve
                label = f"{gateway}, {clients} clients, {'streamed' if stream else 'whole'}, round {turn + 1}"
                warming, questions = ([next(asked) for _ in range(some)] for some in (clients, count))
                await measure(solve, warming, clients, f"{label}, warming", count_cpu=False)
                done[clients, stream] = await measure(solve, questions, clients, label, count_cpu=True)
                told = figures(done[clients, stream])
                said = f"p50 {told['latency_p50_s']:.3f} s, {told['tokens_per_s']:.0f} tokens/s"
                print(f"{label}: {said}", file=sys.stderr)
    return done


@contextmanager
def running(gateway: str, options: argparse.Namespace, pool: PoolConfig) -> Iterator[str]:
    """A gateway's URL, with an engine of its own behind it."""
    match gateway:
        case "ray serve llm":
            with ray_serve_llm(options.ray_llm, pool) as url:
                yield url
        case "ours":
            with serving(None, options.profile, options.port) as url:
                yield url
        case "litellm":
            with served({"small": pool}) as urls, litellm(options.litellm, urls["small"]) as url:
                yield url
        case _:
            with served({"small": pool}) as urls:
                yield urls["small"]


def rows(taken: Mapping[tuple[str, int, bool], Sequence[Round]]) -> list[dict[str, Any]]:
    return [
        row(gateway, clients, rounds) | {"streamed": streamed} for (gateway, clients, streamed), rounds in taken.items()
    ]


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each number of clients; whole replies, then streamed ones."""
    heads = ("", "replies", "p50", "first token", "tokens/s", "CPU s/1k", "right", *(f"{n} of {BESIDE}" for n in OF_IT))
    parts = []
    for clients in sorted({one["clients"] for one in rows}):
        same = sorted((one for one in rows if one["clients"] == clients), key=lambda one: one["streamed"])
        plain = {one["streamed"]: one for one in same if one["system"] == BESIDE}
        cells = [
            (
                one["system"],
                "streamed" if one["streamed"] else "whole",
                f"{one['latency_p50_s']:.3f} s",
                "–" if one["ttft_p50_s"] is None else f"{one['ttft_p50_s']:.3f} s",
                f"{one['tokens_per_s']:.0f}",
                f"{one['cpu_s_per_1k_tokens']:.2f}",
                f"{one['accuracy']:.1%}",
                *(ratio(one, plain[one["streamed"]], name) if plain else "–" for name in OF_IT.values()),
            )
            for one in same
        ]
        parts.append(f"{clients} clients\n" + table(heads, cells))
    return "\n\n".join(parts)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.gateways", __doc__, concurrency=None)
    made.add_argument(
        "--gateways", type=among(GATEWAYS), default=list(GATEWAYS), metavar="NAME,…", help=f"of {', '.join(GATEWAYS)}"
    )
    made.add_argument("--clients", type=numbers, default=[1, 64], metavar="N,…", help="(default: 1,64)")
    made.add_argument("--each", type=at_least_one, default=4, help="problems of a client in a round (default: 4)")
    made.add_argument("--rounds", type=at_least_one, default=3, help="(default: %(default)s)")
    made.add_argument("--max-tokens", type=at_least_one, help="reasoning and answer (default: the profile's)")
    made.add_argument(
        "--litellm", default="litellm", metavar="COMMAND", help="LiteLLM's (default: the one on the path)"
    )
    made.add_argument("--ray-llm", type=Path, metavar="FOLDER", help="what Ray Serve LLM needs beside this environment")
    options = made.parse_args(arguments)
    if options.url:
        made.error("--url: each must be alone on the cores, so all are this command's own")
    if "litellm" in options.gateways and shutil.which(options.litellm) is None:
        made.error(
            f"{options.litellm} is no command; --help tells how to install it, or leave litellm out of --gateways"
        )
    return options


def main() -> None:
    options = read_options()
    config = settings_of(options.profile)
    small = drafting(config.small)
    thinks = Vocabulary.load(small.path, revision=small.revision, think_tags=config.routing.think_tags).thinks
    limits = Limits(0.0, config.limits.step_tokens, 0, 0)
    ask = Ask(limits, options.max_tokens or config.limits.max_tokens, False, lambda _model, _question: "", thinks)
    taken: dict[tuple[str, int, bool], list[Round]] = defaultdict(list)
    for turn in range(options.rounds):
        first = turn % len(options.gateways)
        for gateway in options.gateways[first:] + options.gateways[:first]:
            with running(gateway, options, small) as url:
                for (clients, streamed), one in asyncio.run(measured(url, gateway, ask, options, turn)).items():
                    taken[gateway, clients, streamed].append(one)
        if options.json:  # each time, for a run that does not come to its end
            options.json.write_text(json.dumps(rows(taken), indent=1) + "\n")
    print(shown(rows(taken)))


if __name__ == "__main__":
    run(main)
