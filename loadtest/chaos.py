"""Kills engine replicas under streaming clients, one after another, and checks every answer.

    python -m loadtest.chaos --kills 8 --concurrency 16

Starts a system with two replicas a pool, asks every question once undisturbed, then keeps asking while a replica or
the engine core of one is killed (SIGKILL); the next as soon as the last is ready again, small and large in turn. A
request fails if its stream breaks, ends in an error or has no end; a greedy answer that differs from the undisturbed
one shows a gap or a repeat.

It kills processes, so it only ever works on a system that it started.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
import psutil

from loadtest.command import MeasuringError, at_least_one, attached, credentials, parser, run, serving, variant
from loadtest.questions import Question, generated
from loadtest.streamed import Streamed, stream, undisturbed
from loadtest.table import table
from router.request import MODELS

READY_S = 300.0


@dataclass(frozen=True, slots=True)
class Kill:
    """What was killed (`victim`: replica or engine core), and after how many seconds its pool was whole again."""

    pool: str
    victim: str
    ready_again_s: float


@dataclass
class Tally:
    """What became of the requests under fire."""

    requests: int = 0
    failed: list[str] = field(default_factory=list)
    differing: list[tuple[Streamed, Streamed]] = field(default_factory=list)
    resumed_hops: int = 0

    def add(self, streamed: Streamed, undisturbed: Streamed) -> None:
        self.requests += 1
        self.resumed_hops += streamed.resumed_hops
        if streamed.error or streamed.finish is None:
            self.failed.append(streamed.error or "the stream had no end")
        elif streamed.said != undisturbed.said:
            self.differing.append((streamed, undisturbed))


def replicas(pool: str) -> dict[int, list[int]]:
    """Process IDs of a pool's ready replicas, each with those of its engine cores."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    deployments = client.get_serve_details()["applications"]["glimpse"]["deployments"]
    found = {}
    for replica in deployments[pool]["replicas"]:
        # Serve may not know yet that it is gone.
        with suppress(psutil.NoSuchProcess):
            if replica["state"] == "RUNNING":
                children = psutil.Process(replica["pid"]).children(recursive=True)
                found[replica["pid"]] = [child.pid for child in children if "EngineCore" in child.name()]
    return found


async def ready(pool: str, count: int, *, without: int | None = None) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        now = await asyncio.to_thread(replicas, pool)
        if len(now) >= count and without not in now:
            return
        await asyncio.sleep(0.25)
    raise MeasuringError(f"the {pool} pool was not back to {count} replicas within {READY_S:.0f} s")


async def kill(pool: str, victim: str, count: int) -> Kill:
    replica, cores = next(iter((await asyncio.to_thread(replicas, pool)).items()))
    began = time.monotonic()
    os.kill(cores[0] if victim == "engine core" else replica, signal.SIGKILL)
    await ready(pool, count, without=replica)
    return Kill(pool, victim, time.monotonic() - began)


async def under_fire(
    url: str, questions: list[Question], *, kills: int, concurrency: int, count: int
) -> tuple[Tally, list[Kill]]:
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=None), headers=credentials()
    ) as client:
        right = await undisturbed(client, questions, concurrency)
        tally, over = Tally(), asyncio.Event()
        turn = itertools.cycle(zip(questions, right, strict=True))

        async def keep_asking() -> None:
            while not over.is_set():
                question, expected = next(turn)
                tally.add(await stream(client, question), expected)

        clients = [asyncio.create_task(keep_asking()) for _ in range(concurrency)]
        done = []
        try:
            for number in range(kills):
                victim = "engine core" if number // 2 % 2 else "replica"
                done.append(await kill(MODELS[number % 2], victim, count))
                print(
                    f"kill {number + 1}/{kills}: a {done[-1].pool} {victim}, ready again after"
                    f" {done[-1].ready_again_s:.0f} s; {tally.requests} requests, {len(tally.failed)} failed,"
                    f" {len(tally.differing)} differing, {tally.resumed_hops} hops resumed",
                    flush=True,
                )
        finally:
            over.set()
            await asyncio.gather(*clients)
        return tally, done


def several(count: int) -> Callable[[dict[str, Any]], None]:
    """Changes a profile to so many replicas a pool, on however few CPUs there are."""

    def change(args: dict[str, Any]) -> None:
        for pool in MODELS:
            args[pool] |= {"replicas": count, "cpus": 0.1}

    return change


def main() -> None:
    options_of = parser("loadtest.chaos", __doc__, concurrency=16)
    options_of.add_argument("--kills", type=at_least_one, default=8)
    options_of.add_argument("--problems", type=at_least_one, default=64, help="different questions")
    options_of.add_argument("--replicas", type=at_least_one, default=2, help="of each pool")
    options = options_of.parse_args()
    if options.url:
        raise MeasuringError("it kills processes, so it starts a system of its own: leave --url out")
    with (
        variant(options.profile, several(options.replicas)) as profile,
        serving(None, profile, options.port) as url,
        attached(),
    ):
        questions = generated(options.seed, options.problems)
        tally, kills = asyncio.run(
            under_fire(
                url,
                questions,
                kills=options.kills,
                concurrency=options.concurrency,
                count=options.replicas,
            )
        )
    rows = [
        ["requests under fire", str(tally.requests)],
        ["kills", str(len(kills))],
        ["failed requests", str(len(tally.failed))],
        ["answers that differ from the undisturbed run", str(len(tally.differing))],
        ["hops taken up elsewhere", str(tally.resumed_hops)],
    ]
    print(table(["", "count"], rows))
    for reason in tally.failed[:5]:
        print(f"failed: {reason}")
    for got, expected in tally.differing[:5]:
        print(f"differs, {got.resumed_hops} hops resumed:\n{got.said}\nundisturbed:\n{expected.said}")
    if options.json:
        told = {"tally": asdict(tally), "kills": [asdict(one) for one in kills]}
        options.json.write_text(json.dumps(told, indent=1))
    if not tally.resumed_hops:
        print("no kill met a hop: nothing was proven; kill more often (--kills) or ask more at a time (--concurrency)")
    if tally.failed or tally.differing or not tally.resumed_hops:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
