"""What reading a prompt ahead saves on the first escalated step, and what it costs.

    python -m loadtest.warm_up --prompts 500 2000 3500 --requests 20

Starts two applications side by side: in one the large model reads every prompt while the small one writes its first
steps (`limits.warm_up_tokens: 1`), in the other it never does. The same requests go to both, one at a time, in turn,
whichever first. Large and small model have a core each, as on machines of their own.

The requests carry prompts that no engine has seen, and are sampled with a seed, so that both applications write the
same. The embedded pair was not trained on prompts this long and what it writes to them means nothing, so steps end
after 24 tokens, and the threshold, found for each length with other prompts, has every fourth one escalated.

Told are medians over the requests that escalate after at least one easy step: the engine's time for the first escalated
step (reading the prompt included), and the time from asking to that step's end. A request is left there. The cost are
the prompt tokens that the large model read for requests that had no step escalated, by the engine's own count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import yaml
from tqdm import tqdm

from deployments.config import AppConfig
from loadtest.client import Client
from loadtest.command import MeasuringError, at_least_one, attached, credentials, parser, run, serving
from loadtest.offered import body
from loadtest.questions import Question, generated
from loadtest.table import table
from router.vocabulary import Vocabulary

WAYS = {"with": "", "without": "/without"}
"""The applications, and where their paths begin."""

STEP_TOKENS, REPLY_TOKENS = 24, 192
PILOTS = 6


@dataclass(frozen=True, slots=True)
class FirstEscalation:
    """Of one request. easy_steps: the small model's before it. step_ms: the engine's time. arrival_ms: from asking to
    its end."""

    easy_steps: int
    step_ms: float
    arrival_ms: float


@dataclass(frozen=True, slots=True)
class Pair:
    """The same request to both applications; None where no step was escalated."""

    prompt_tokens: int
    told: dict[str, FirstEscalation | None]

    @property
    def counts(self) -> bool:
        return all(one is not None and one.easy_steps > 0 for one in self.told.values())


@dataclass(frozen=True, slots=True)
class Row:
    prompt_tokens: int
    requests: int
    easy_steps: float
    step_ms_without: float
    step_ms_with: float
    arrival_ms_without: float
    arrival_ms_with: float
    never_escalated: int
    unused_tokens: int
    prefilled_without: int
    prefilled_with: int

    @classmethod
    def of(cls, pairs: Sequence[Pair], prefilled: dict[str, int]) -> Row:
        kept = [pair.told for pair in pairs if pair.counts]
        if not kept:
            raise MeasuringError("no request escalated after an easy step; ask for more --requests")

        def middle(way: str, name: str) -> float:
            return median(getattr(told[way], name) for told in kept)

        never = [pair for pair in pairs if pair.told["with"] is None]
        return cls(
            prompt_tokens=round(median(pair.prompt_tokens for pair in pairs)),
            requests=len(kept),
            easy_steps=middle("with", "easy_steps"),
            step_ms_without=middle("without", "step_ms"),
            step_ms_with=middle("with", "step_ms"),
            arrival_ms_without=middle("without", "arrival_ms"),
            arrival_ms_with=middle("with", "arrival_ms"),
            never_escalated=len(never),
            unused_tokens=sum(pair.prompt_tokens for pair in never),
            prefilled_without=prefilled["without"],
            prefilled_with=prefilled["with"],
        )


@contextmanager
def side_by_side(profile: Path) -> Iterator[tuple[Path, str]]:
    """The profile as two applications; and the large model's folder."""
    config: dict[str, Any] = yaml.safe_load(profile.read_text())
    args = config["applications"][0]["args"]
    for core, pool in enumerate(("small", "large")):
        env = args[pool].get("env", {}) | {"VLLM_CPU_OMP_THREADS_BIND": str(core)}
        args[pool] |= {"cpus": 0.1, "env": env}
    args["router"] = args.get("router", {}) | {"cpus": 0.1}
    config["applications"] = [
        config["applications"][0]
        | {
            "name": way,
            "route_prefix": path or "/",
            "args": args
            | {
                "limits": args["limits"]
                | {"warm_up_tokens": 1 if way == "with" else None, "step_tokens": STEP_TOKENS, "answer_reserve": 8}
            },
        }
        for way, path in WAYS.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "side-by-side.yaml")
        path.write_text(yaml.safe_dump(config))
        yield path, AppConfig.read(args).large.path


class Prompts:
    """Chats of a given length, no two of which begin alike."""

    def __init__(self, model: str, seed: int) -> None:
        self._words = Vocabulary.load(model, revision=None, think_tags=("<think>", "</think>"))
        self._seed = seed

    def __call__(self, tokens: int) -> tuple[Question, int]:
        """A question after so many others that the prompt has at most `tokens` tokens, and how many it has."""
        self._seed += 1
        asked, text = generated(self._seed, 1 + tokens // 20), ""
        for more in asked:
            longer = f"{text} {more.text}".strip()
            if len(self._words.render([{"role": "user", "content": longer}])) > tokens:
                break
            text = longer
        messages = [{"role": "user", "content": text}]
        return Question((messages[0],), asked[0].answer), len(self._words.render(messages))


async def first_escalation(http: httpx.AsyncClient, path: str, fields: dict[str, Any]) -> FirstEscalation | None:
    """Reads a stream up to the end of its first escalated step."""
    easy, began = 0, time.perf_counter()
    async with http.stream("POST", f"{path}/v1/chat/completions", json=fields) as response:
        if response.status_code != 200:
            raise MeasuringError(f"the server answered {response.status_code}: {(await response.aread())[:200]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise MeasuringError(f"a stream failed: {chunk['error']['message']}")
            step = (chunk.get("glimpse") or {}).get("step")
            if step is None:
                continue
            if step["model"] == "large":
                return FirstEscalation(easy, step["duration_ms"], (time.perf_counter() - began) * 1000)
            easy += 1
    return None


async def threshold_of(client: Client, prompts: Prompts, tokens: int, seed: int) -> float:
    """What every fourth step of the small model's begins above."""
    entropies: list[float] = []
    for pilot in range(PILOTS):
        question, _ = prompts(tokens)
        reply = await client.chat(
            question.messages,
            "small",
            temperature=1,
            seed=seed + pilot,
            max_tokens=REPLY_TOKENS,
            glimpse={"include_steps": True},
        )
        entropies += [step.entropy for step in reply.steps if step.entropy is not None]
    if len(entropies) < 4:
        raise MeasuringError(
            f"{PILOTS} prompts of {tokens} tokens gave only {len(entropies)} steps; try another --seed"
        )
    return quantiles(entropies, n=4)[2]


async def prefilled() -> dict[str, int]:
    """By the large engines since they started, in tokens."""
    from ray import serve

    return {way: (await serve.get_deployment_handle("large", way).account.remote())["prefilled_tokens"] for way in WAYS}


async def measure(url: str, model: str, options: argparse.Namespace) -> list[Row]:
    prompts, rows = Prompts(model, options.seed * 1_000_000), []
    async with (
        Client(url + WAYS["without"]) as client,
        httpx.AsyncClient(base_url=url, timeout=600, headers=credentials()) as http,
    ):
        for tokens in options.prompts:
            threshold = await threshold_of(client, prompts, tokens, options.seed)
            before, pairs = await prefilled(), []
            for number in tqdm(range(options.requests), desc=f"{tokens} tokens", leave=False):
                question, length = prompts(tokens)
                fields = body(
                    question,
                    "glimpse",
                    temperature=1,
                    seed=options.seed + number,
                    max_tokens=REPLY_TOKENS,
                    stream=True,
                    glimpse={"include_steps": True, "threshold": threshold, "answer_by": "small"},
                )
                told = {}
                for way in sorted(WAYS, reverse=bool(number % 2)):
                    told[way] = await first_escalation(http, WAYS[way], fields)
                    # What is left of it is cancelled and must not run into the next.
                    await asyncio.sleep(0.3)
                pairs.append(Pair(length, told))
            after = await prefilled()
            rows.append(Row.of(pairs, {way: after[way] - before[way] for way in WAYS}))
    return rows


def shown(rows: Sequence[Row]) -> str:
    heads = ["prompt tokens", "requests", "easy steps before", "escalated step, ms", "read ahead", "ratio"]
    heads += ["asking to its end, ms", "read ahead", "ratio", "never escalated", "read in vain, tokens"]
    heads += ["large prefilled", "read ahead"]
    cells = [
        [
            str(one.prompt_tokens),
            str(one.requests),
            f"{one.easy_steps:g}",
            f"{one.step_ms_without:.0f}",
            f"{one.step_ms_with:.0f}",
            f"{one.step_ms_with / one.step_ms_without:.2f}",
            f"{one.arrival_ms_without:.0f}",
            f"{one.arrival_ms_with:.0f}",
            f"{one.arrival_ms_with / one.arrival_ms_without:.2f}",
            str(one.never_escalated),
            str(one.unused_tokens),
            str(one.prefilled_without),
            str(one.prefilled_with),
        ]
        for one in rows
    ]
    return table(heads, cells)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.warm_up", __doc__, concurrency=None)
    made.add_argument("--prompts", type=at_least_one, nargs="+", default=[500, 2000, 3500], help="lengths in tokens")
    made.add_argument("--requests", type=at_least_one, default=20, help="of each length (default: %(default)s)")
    return made.parse_args(arguments)


def main() -> None:
    options = read_options()
    if options.url:
        raise MeasuringError("it compares two applications, so it starts its own: leave --url out")
    with (
        side_by_side(options.profile) as (profile, model),
        serving(None, profile, options.port) as url,
        attached(),
    ):
        rows = asyncio.run(measure(url, model, options))
    print(shown(rows))
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(one) for one in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
