"""How much of every prefix is found in the KV cache of the replica that a hop lands on.

    python -m loadtest.affinity --problems 200 --concurrency 16

Starts a system with three small replicas twice: with hops of a conversation meeting in one replica, and with Serve's
default routing. Of a prefix of L tokens of which the pool has computed c, floor(min(c, L - 1) / block) * block are
reusable; the table tells which share of these was found.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from loadtest.client import Client, Reply, each
from loadtest.command import MeasuringError, at_least_one, parser, run, serving
from loadtest.questions import Question, generated
from loadtest.table import table


@dataclass(frozen=True, slots=True)
class Found:
    """Tokens over all small hops but each request's first, for which nothing can be expected."""

    routing: str
    hops: int
    reusable_tokens: int
    cached_tokens: int

    @property
    def share(self) -> float:
        return self.cached_tokens / self.reusable_tokens if self.reusable_tokens else 0.0


def small_hops(reply: Reply, block: int) -> list[tuple[int, int]]:
    """(reusable, cached) tokens of each small hop that wrote a step, the first left out."""
    found: list[tuple[int, int]] = []
    computed, seen = 0, -1
    for step in reply.steps:
        if step.model == "large":
            # The small model glimpsed at this very prefix before it was handed over.
            computed = max(computed, step.prefix_tokens)
            continue
        if step.prefix_tokens != seen:
            seen = step.prefix_tokens
            if computed:
                reusable = min(computed, step.prefix_tokens - 1) // block * block
                found.append((reusable, min(step.cached_tokens, reusable)))
            computed = step.prefix_tokens
        computed += step.tokens
    return found


async def measure(url: str, routing: str, questions: list[Question], concurrency: int, block: int) -> Found:
    async with Client(url) as client:

        async def ask(question: Question) -> Reply:
            return await client.chat(question.messages, "glimpse", glimpse={"include_steps": True})

        replies = await each(questions, ask, concurrency=concurrency, label=routing)
    hops = [hop for reply in replies for hop in small_hops(reply, block)]
    return Found(routing, len(hops), sum(hop[0] for hop in hops), sum(hop[1] for hop in hops))


@contextmanager
def variant(profile: Path, replicas: int, *, affinity: bool) -> Iterator[tuple[Path, int]]:
    """The profile with so many small replicas, on however few CPUs there are; and its block size."""
    config: dict[str, Any] = yaml.safe_load(profile.read_text())
    args = config["applications"][0]["args"]
    args["small"] |= {"replicas": replicas, "cpus": 0.1, "affinity": affinity}
    args["large"] |= {"cpus": 0.1, "affinity": affinity}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "variant.yaml")
        path.write_text(yaml.safe_dump(config))
        yield path, args["small"].get("engine", {}).get("block_size", 16)


def main() -> None:
    options_of = parser("loadtest.affinity", __doc__, concurrency=16)
    options_of.add_argument("--problems", type=at_least_one, default=200)
    options_of.add_argument("--replicas", type=at_least_one, default=3, help="of the small pool")
    options = options_of.parse_args()
    if options.url:
        raise MeasuringError("it compares two systems, so it starts its own: leave --url out")
    questions = generated(options.seed, options.problems)
    rows = []
    for routing, affinity in (("by conversation", True), ("Serve's default", False)):
        with (
            variant(options.profile, options.replicas, affinity=affinity) as (profile, block),
            serving(None, profile, options.port) as url,
        ):
            rows.append(asyncio.run(measure(url, routing, questions, options.concurrency, block)))
    cells = [
        [row.routing, str(row.hops), str(row.reusable_tokens), str(row.cached_tokens), f"{row.share:.1%}"]
        for row in rows
    ]
    print(table(["routing", "hops", "reusable tokens", "found cached", "share"], cells))
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) | {"share": row.share} for row in rows]}, indent=1))


if __name__ == "__main__":
    run(main)
