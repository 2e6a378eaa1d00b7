"""Two tenants of equal weight that offer load 1 : 10, and a tenant of a high class beside a flood of a low one.

    python -m loadtest.fairness --seconds 60

Starts systems of its own with PostgreSQL and Redis. First: the tokens that each of the two gets in the same time. Then:
how long requests of the high class wait for their first word beside the flood, with its class and without.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from loadtest.command import MeasuringError, at_least_one, parser, run
from loadtest.questions import Question, generated
from loadtest.table import table
from loadtest.tenants import Office, tenanted

PLACES = 16
FULL: dict[str, Any] = {"max_requests": PLACES, "max_waiting": 900, "max_wait_s": 600.0}
WARM_UP_S = 5.0


async def keep_asking(
    office: Office, tenant: str, clients: int, questions: Sequence[Question], until: float, since: float
) -> int:
    """Committed tokens of a tenant's replies between the two moments."""
    tokens, turn = 0, itertools.cycle(questions)
    async with httpx.AsyncClient(
        base_url=office.url, timeout=600, headers=office.headers(tenant), limits=httpx.Limits(max_connections=None)
    ) as http:

        async def client() -> None:
            nonlocal tokens
            while time.monotonic() < until:
                body = {"model": "glimpse", "messages": list(next(turn).messages), "temperature": 0}
                try:
                    async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
                        reply = await http.post("/v1/chat/completions", json=body)
                except TimeoutError:
                    return
                if reply.status_code != 200:
                    raise MeasuringError(f"{tenant} was answered {reply.status_code}: {reply.text[:200]}")
                if time.monotonic() > since:
                    tokens += reply.json()["usage"]["completion_tokens"]

        await asyncio.gather(*(client() for _ in range(clients)))
    return tokens


async def shares(office: Office, questions: Sequence[Question], seconds: float, clients: int) -> dict[str, int]:
    since = time.monotonic() + WARM_UP_S
    until = since + seconds
    offered = {"modest": clients, "greedy": 10 * clients}
    got = await asyncio.gather(
        *(keep_asking(office, tenant, count, questions, until, since) for tenant, count in offered.items())
    )
    return dict(zip(offered, got, strict=True))


async def waits(office: Office, tenant: str, questions: Sequence[Question], seconds: float, flood: int) -> list[float]:
    """Seconds to the first word of one request after another beside the flood."""
    began = time.monotonic()
    flooding = asyncio.create_task(
        keep_asking(office, "flood", flood, questions, began + WARM_UP_S + seconds, began + WARM_UP_S)
    )
    await asyncio.sleep(WARM_UP_S)
    took: list[float] = []
    turn = itertools.cycle(questions)
    async with httpx.AsyncClient(base_url=office.url, timeout=600, headers=office.headers(tenant)) as http:
        while time.monotonic() < began + WARM_UP_S + seconds:
            body = {"model": "glimpse", "messages": list(next(turn).messages), "temperature": 0, "stream": True}
            asked = time.monotonic()
            async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
                if reply.status_code != 200:
                    raise MeasuringError(f"{tenant} was answered {reply.status_code}")
                waited = None
                async for line in reply.aiter_lines():
                    if waited is None and line.startswith("data: "):
                        waited = time.monotonic() - asked
            if waited is not None:
                took.append(waited)
    await flooding
    return took


def main() -> None:
    options_of = parser("loadtest.fairness", __doc__, concurrency=32)
    options_of.add_argument("--seconds", type=at_least_one, default=60, help="of each of the three measurements")
    options = options_of.parse_args()
    if options.url:
        raise MeasuringError("the tenants and their policies are its own, so is the system: leave --url out")
    questions = generated(options.seed, 200)
    tenants: Mapping[str, Mapping[str, Any]] = {
        "modest": {},
        "greedy": {},
        "urgent": {"priority": "high"},
        "flood": {"priority": "low"},
    }
    with tenanted(options.profile, options.port, tenants, **FULL) as office:

        async def measure() -> tuple[dict[str, int], list[float], list[float]]:
            got = await shares(office, questions, options.seconds, options.concurrency)
            flood = 10 * options.concurrency
            high = await waits(office, "urgent", questions, options.seconds, flood)
            # One more client of the flood: neither a class nor a tenant of its own.
            none = await waits(office, "flood", questions, options.seconds, flood)
            return got, high, none

        got, high, none = asyncio.run(measure())
    rows = [
        ["tokens of the tenant that offers 1", str(got["modest"])],
        ["tokens of the tenant that offers 10", str(got["greedy"])],
        ["ratio", f"{got['modest'] / max(1, got['greedy']):.3f}"],
        [f"p95 wait with its class (of {len(high)})", f"{np.percentile(high, 95):.2f} s"],
        [f"p95 wait without (of {len(none)})", f"{np.percentile(none, 95):.2f} s" if none else "none got a word"],
    ]
    print(table(["", ""], rows))
    if options.json:
        options.json.write_text(json.dumps({"tokens": got, "with": high, "without": none}, indent=1))


if __name__ == "__main__":
    run(main)
