"""Kills routers and restarts PostgreSQL under streaming clients, then compares the ledger with the engines.

    python -m loadtest.ledger --requests 2000 --kills 2 --restarts 2

Starts a system of its own with two routers, PostgreSQL and Redis. Every request that a client saw finished must be in
the ledger, whose key is the request's id, and what the ledger says of it must be what the engines generated for it. No
more requests may break than were under way when a router was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import httpx
from sqlalchemy import text
from tqdm import tqdm

from loadtest.chaos import replicas
from loadtest.command import MeasuringError, at_least_one, attached, parser, run
from loadtest.questions import Question, generated
from loadtest.table import table
from loadtest.tenants import Office, tenanted
from router.tenancy.database import connect

DELIVERED_S = 60.0
AWAY_S = 3.0


@dataclass
class Seen:
    """What clients saw: tokens (committed and discarded) of the requests that finished, by id; and how many broke."""

    finished: dict[str, int] = field(default_factory=dict)
    broken: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Requests that broke, that finished, of these in the ledger, all of the ledger's rows, and tokens."""

    broken: int
    finished: int
    found: int
    rows: int
    client_tokens: int
    ledger_tokens: int
    engine_tokens: int
    differing: int

    def right(self, *, under_way: int) -> bool:
        """under_way: requests that were when a router was killed, at most."""
        return 0 < self.finished == self.found and self.broken <= under_way and not self.differing


async def ask(client: httpx.AsyncClient, question: Question, seen: Seen) -> None:
    body = {
        "model": "glimpse",
        "messages": list(question.messages),
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "glimpse": {"include_steps": True},
    }
    tokens, id, over = 0, "", False
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    over = True
                elif line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    id = chunk.get("id", id)
                    tokens += (chunk.get("usage") or {}).get("completion_tokens", 0)
                    tokens += (chunk.get("glimpse") or {}).get("discarded_tokens", 0)
    except httpx.HTTPError:
        over = False
    if over:
        seen.finished[id] = tokens
    else:
        seen.broken += 1
        await asyncio.sleep(0.2)


async def disturb(office: Office, bar: tqdm, total: int, kills: int, restarts: int) -> None:
    """Spreads kills and restarts evenly over the requests, in turn."""
    events = [kind for n in range(max(kills, restarts)) for kind in "k" * (n < kills) + "r" * (n < restarts)]
    for n, kind in enumerate(events, start=1):
        while True:
            if bar.n >= total * n / (len(events) + 1):
                break
            await asyncio.sleep(0.1)
        if kind == "k":
            victim = next(iter(await asyncio.to_thread(replicas, "router")))
            os.kill(victim, signal.SIGKILL)
            bar.write("killed a router")
        else:
            await asyncio.to_thread(office.postgres.stop)
            await asyncio.sleep(AWAY_S)
            await asyncio.to_thread(office.postgres.start)
            bar.write("restarted PostgreSQL")


async def under_fire(
    office: Office, questions: Sequence[Question], *, total: int, concurrency: int, kills: int, restarts: int
) -> Seen:
    seen = Seen()
    left = iter(range(total))
    with tqdm(total=total, desc="requests") as bar:
        async with httpx.AsyncClient(
            base_url=office.url, timeout=120, headers=office.headers("acme"), limits=httpx.Limits(max_connections=None)
        ) as client:

            async def work() -> None:
                for n in left:
                    await ask(client, questions[n % len(questions)], seen)
                    bar.update()

            disturbing = asyncio.create_task(disturb(office, bar, total, kills, restarts))
            await asyncio.gather(*(work() for _ in range(concurrency)))
            await disturbing
    return seen


async def delivered(office: Office) -> None:
    until = time.monotonic() + DELIVERED_S
    while any(path.stat().st_size for path in office.journal.glob("*.jsonl")):
        if time.monotonic() > until:
            raise MeasuringError(f"the journal was not delivered within {DELIVERED_S:.0f} s")
        await asyncio.sleep(0.5)


async def engines(ids: list[str]) -> dict[str, int]:
    """Tokens that the engines generated for each request."""
    from ray import serve

    counts: dict[str, int] = {}
    for pool in ("small", "large"):
        told = await serve.get_deployment_handle(pool, "glimpse").generated.remote(ids)
        for id, tokens in told.items():
            counts[id] = counts.get(id, 0) + tokens
    return counts


async def compare(office: Office, seen: Seen) -> Comparison:
    engine = connect(office.postgres.url)
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT id, small_completion_tokens + large_completion_tokens + discarded_tokens FROM requests")
        ).all()
    engine.dispose()
    ledger = {row[0]: int(row[1]) for row in rows}
    counted = await engines(list(seen.finished))
    mine = {id: tokens for id, tokens in ledger.items() if id in seen.finished}
    return Comparison(
        broken=seen.broken,
        finished=len(seen.finished),
        found=len(mine),
        rows=len(rows),
        client_tokens=sum(seen.finished.values()),
        ledger_tokens=sum(mine.values()),
        engine_tokens=sum(counted.values()),
        differing=sum(not (mine.get(id) == counted.get(id) == tokens) for id, tokens in seen.finished.items()),
    )


def main() -> None:
    options_of = parser("loadtest.ledger", __doc__, concurrency=32)
    options_of.add_argument("--requests", type=at_least_one, default=2000)
    options_of.add_argument("--kills", type=int, default=2, help="of routers")
    options_of.add_argument("--restarts", type=int, default=2, help="of PostgreSQL")
    options = options_of.parse_args()
    if options.url:
        raise MeasuringError("it kills processes, so it starts a system of its own: leave --url out")
    with tenanted(options.profile, options.port, {"acme": {}}, routers=2) as office, attached():
        questions = generated(options.seed, 200)

        async def measure() -> Comparison:
            seen = await under_fire(
                office,
                questions,
                total=options.requests,
                concurrency=options.concurrency,
                kills=options.kills,
                restarts=options.restarts,
            )
            await delivered(office)
            return await compare(office, seen)

        found = asyncio.run(measure())
    told = {name.replace("_", " "): n for name, n in asdict(found).items()}
    print(table(["", "count"], [[name, str(count)] for name, count in told.items()]))
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))
    if not found.right(under_way=options.kills * options.concurrency):
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
