"""What the controller does under a ramp: latency, quality and the large model's share, with it and without.

    python -m loadtest.steering --rates 4,8,12,16,20,8,4 --seconds 25

Starts the profile twice, without a controller and with one, and offers both the same ramp: at each rate requests come
as a Poisson process for so many seconds, whether or not earlier ones are answered. Right is counted over the answers
that came; the thresholds are what the replies say was used, that of tokens where the profile has one.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import aiohttp
from tqdm import tqdm

from loadtest.command import MeasuringError, at_least_one, credentials, numbers, parser, run, serving, variant
from loadtest.intervals import share
from loadtest.offered import body, poisson
from loadtest.overload import percentile
from loadtest.questions import Question, generated
from loadtest.table import table
from loadtest.traffic import REFUSED
from router.answers import extract


@dataclass(frozen=True, slots=True)
class Reply:
    """One request: how long it took in seconds, its status, and what the reply says."""

    took_s: float
    status: int
    right: bool = False
    tokens: int = 0
    large_tokens: float = 0.0
    threshold: float = 0.0
    token_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """A rate of the ramp. Rates are per second."""

    controller: bool
    offered: float
    answered: int
    refused: int
    failed: int
    p50_s: float | None
    p95_s: float | None
    right: float
    right_interval: tuple[float, float]
    large_share: float
    threshold: float
    token_threshold: float | None


async def ask(http: aiohttp.ClientSession, url: str, question: Question) -> Reply:
    began = time.monotonic()
    # Only who asks for steps is told the threshold.
    asked = body(question, "glimpse", glimpse={"include_steps": True})
    async with http.post(f"{url}/v1/chat/completions", json=asked) as response:
        told: dict[str, Any] = await response.json()
    took = time.monotonic() - began
    if response.status != 200:
        return Reply(took, response.status)
    tokens = told["usage"]["completion_tokens"]
    return Reply(
        took_s=took,
        status=200,
        right=extract(told["choices"][0]["message"]["content"]) == question.answer,
        tokens=tokens,
        large_tokens=told["glimpse"]["large_token_share"] * tokens,
        threshold=told["glimpse"]["threshold"],
        token_threshold=told["glimpse"].get("token_threshold"),
    )


def level(offered: float, replies: Sequence[Reply], *, controller: bool) -> Level:
    answered = [reply for reply in replies if reply.status == 200]
    took = [reply.took_s for reply in answered]
    right = share(sum(reply.right for reply in answered), max(1, len(answered)))
    tokens = [reply.token_threshold for reply in answered if reply.token_threshold is not None]
    return Level(
        controller=controller,
        offered=offered,
        answered=len(answered),
        refused=sum(reply.status in REFUSED for reply in replies),
        failed=sum(reply.status not in (200, *REFUSED) for reply in replies),
        p50_s=percentile(took, 50),
        p95_s=percentile(took, 95),
        right=right.value,
        right_interval=(right.low, right.high),
        large_share=sum(reply.large_tokens for reply in answered) / max(1, sum(reply.tokens for reply in answered)),
        threshold=statistics.fmean(reply.threshold for reply in answered) if answered else 0.0,
        token_threshold=statistics.fmean(tokens) if tokens else None,
    )


async def ramp(
    url: str, questions: Sequence[Question], rates: Sequence[int], seconds: int, seed: int, *, controller: bool
) -> list[Level]:
    """The levels, one after another without a pause: what waits at the end of one is there in the next."""
    sent: list[list[asyncio.Task[Reply]]] = []
    left = iter(questions)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=credentials()
    ) as http:
        for rate in tqdm(rates, desc="with a controller" if controller else "without"):
            began, tasks = time.monotonic(), []
            for at in poisson(rate, seconds, Random(f"{seed}/{rate}")):
                await asyncio.sleep(max(0.0, began + at - time.monotonic()))
                tasks.append(asyncio.create_task(ask(http, url, next(left))))
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
            sent.append(tasks)
        return [
            level(rate, await asyncio.gather(*tasks), controller=controller)
            for rate, tasks in zip(rates, sent, strict=True)
        ]


def shown(levels: Sequence[Level]) -> str:
    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    heads = [
        "",
        "offered/s",
        "answered",
        "refused",
        "failed",
        "p50 s",
        "p95 s",
        "right",
        "95 %",
        "by large",
        "threshold",
    ]
    return table(
        heads,
        [
            [
                "controller" if one.controller else "fixed",
                f"{one.offered:g}",
                str(one.answered),
                str(one.refused),
                str(one.failed),
                seconds(one.p50_s),
                seconds(one.p95_s),
                f"{one.right:.1%}",
                "{:.1%} – {:.1%}".format(*one.right_interval),
                f"{one.large_share:.1%}",
                f"{one.threshold:.2f}" + ("" if one.token_threshold is None else f" / {one.token_threshold:.2f}"),
            ]
            for one in levels
        ],
    )


def main() -> None:
    options_of = parser("loadtest.steering", __doc__, concurrency=None)
    options_of.add_argument("--rates", type=numbers, default=[4, 8, 12, 16, 20, 8, 4], help="requests per second")
    options_of.add_argument("--seconds", type=at_least_one, default=25, help="of each rate")
    options_of.add_argument("--load", type=float, default=0.25, help="the controller's target (default: %(default)s)")
    options_of.add_argument(
        "--highest", type=float, default=2.9957, help="its highest threshold (default: %(default)s)"
    )
    options = options_of.parse_args()
    if options.url:
        raise MeasuringError("it needs a system that is set up for this, so it starts its own: leave --url out")
    count = int(1.5 * sum(options.rates) * options.seconds) + 100
    questions = generated(options.seed, count)
    levels: list[Level] = []
    for steered in (False, True):

        def change(args: dict[str, Any], steered: bool = steered) -> None:
            steering = {"load": options.load, "highest": options.highest}
            args.setdefault("routing", {})["controller"] = steering if steered else None

        with variant(options.profile, change) as profile, serving(None, profile, options.port) as url:
            found = asyncio.run(ramp(url, questions, options.rates, options.seconds, options.seed, controller=steered))
        levels += found
    print(shown(levels))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in levels], indent=1))


if __name__ == "__main__":
    run(main)
