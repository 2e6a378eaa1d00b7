"""Kills a machine of a Ray cluster under streaming clients: all its processes at once.

    python -m loadtest.nodes --concurrency 6

Three raylets with addresses of their own: the head, with Serve's controller, proxy and router, and two engine nodes in
network namespaces of their own, each with a small and a large replica. All share this machine's cores. Every question
is asked once undisturbed, then again and again; after a while one engine node is killed. The other one takes up its
hops, and new replicas start there.

Requests are told apart by when they were asked: before the node died, until its replicas were elsewhere, and after
that. One waited if it was without a word for longer than any undisturbed one, by --slack seconds. A request fails as in
loadtest.chaos. Needs Linux and root.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import httpx

from loadtest.cluster import cluster
from loadtest.command import MeasuringError, at_least_one, parser, run
from loadtest.namespaces import Machine
from loadtest.questions import Question, generated
from loadtest.streamed import Streamed, stream, undisturbed
from loadtest.table import table
from router.request import MODELS

READY_S = 300.0
TIMES = ("before", "until its replicas are elsewhere", "after")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and what came of it. Times on the monotonic clock, in seconds."""

    at: float
    end: float
    told: Streamed
    differs: bool

    @property
    def failed(self) -> bool:
        return self.told.error is not None or self.told.finish is None

    def story(self, died: float) -> str:
        what = f"failed ({self.told.error or 'no end'})" if self.failed else f"waited {self.told.silence_s:.1f} s"
        return f"asked {self.at - died:+.1f} s from the death, ended {self.end - died:+.1f} s: {what}"


@dataclass(frozen=True, slots=True)
class Row:
    asked: str
    requests: int
    failed: int
    differing: int
    resumed_hops: int
    waited: int
    longest_silence_s: float
    latency_p50_s: float

    @classmethod
    def of(cls, when: str, asked: Sequence[Asked], patience_s: float) -> Row:
        silences = [one.told.silence_s for one in asked]
        return cls(
            asked=when,
            requests=len(asked),
            failed=sum(one.failed for one in asked),
            differing=sum(one.differs and not one.failed for one in asked),
            resumed_hops=sum(one.told.resumed_hops for one in asked),
            waited=sum(silence > patience_s for silence in silences),
            longest_silence_s=max(silences, default=0.0),
            latency_p50_s=median([one.end - one.at for one in asked]) if asked else 0.0,
        )


def rows(asked: Sequence[Asked], died: float, elsewhere: float, patience_s: float) -> list[Row]:
    """One for each of `TIMES`, by when a request was asked."""
    edges = (float("-inf"), died, elsewhere, float("inf"))
    return [
        Row.of(when, [one for one in asked if begin <= one.at < end], patience_s)
        for when, begin, end in zip(TIMES, edges, edges[1:], strict=False)
    ]


def places() -> dict[str, list[str]]:
    """The addresses of the nodes of each pool's ready replicas."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    deployments = client.get_serve_details()["applications"]["glimpse"]["deployments"]
    return {
        pool: sorted(one["node_ip"] for one in deployments[pool]["replicas"] if one["state"] == "RUNNING")
        for pool in MODELS
    }


async def under_way(
    url: str, nodes: Sequence[Machine], questions: Sequence[Question], options: argparse.Namespace
) -> tuple[list[Row], float]:
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        right = await undisturbed(client, questions, options.concurrency)
        patience = max(one.silence_s for one in right) + options.slack
        print(f"the longest silence was {patience - options.slack:.1f} s", flush=True)
        asked: list[Asked] = []
        over, turn = asyncio.Event(), itertools.cycle(zip(questions, right, strict=True))

        async def keep_asking() -> None:
            while not over.is_set():
                question, expected = next(turn)
                at = time.monotonic()
                told = await stream(client, question)
                asked.append(Asked(at, time.monotonic(), told, told.said != expected.said))

        clients = [asyncio.create_task(keep_asking()) for _ in range(options.concurrency)]
        try:
            await asyncio.sleep(options.seconds)
            died = time.monotonic()
            lost, left = nodes
            print(f"{lost.address}: {await asyncio.to_thread(lost.kill)} processes killed", flush=True)
            while any(on != [left.address] * 2 for on in (await asyncio.to_thread(places)).values()):
                if time.monotonic() - died > READY_S:
                    raise MeasuringError(f"the replicas were not elsewhere within {READY_S:.0f} s")
                await asyncio.sleep(0.5)
            elsewhere = time.monotonic()
            print(f"its replicas are on {left.address} after {elsewhere - died:.0f} s", flush=True)
            await asyncio.sleep(options.seconds)
        finally:
            over.set()
            await asyncio.gather(*clients)
        for one in asked:
            if one.failed or one.told.silence_s > patience:
                print(one.story(died), flush=True)
        in_flight = [one for one in asked if one.at < died < one.end]
        found = rows(asked, died, elsewhere, patience)
        return [found[0], Row.of("of these, under way when it died", in_flight, patience), *found[1:]], elsewhere - died


def shown(found: Sequence[Row], elsewhere_s: float) -> str:
    heads = ["asked", "requests", "failed", "differing", "resumed hops", "waited", "longest silence, s", "p50, s"]
    cells = [
        [
            one.asked,
            str(one.requests),
            str(one.failed),
            str(one.differing),
            str(one.resumed_hops),
            str(one.waited),
            f"{one.longest_silence_s:.1f}",
            f"{one.latency_p50_s:.1f}",
        ]
        for one in found
    ]
    return f"{table(heads, cells)}\n\nThe replicas were elsewhere {elsewhere_s:.0f} s after the node died."


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.nodes", __doc__, concurrency=6)
    made.add_argument("--problems", type=at_least_one, default=24, help="different questions (default: %(default)s)")
    made.add_argument("--seconds", type=at_least_one, default=15, help="before and after (default: %(default)s)")
    made.add_argument("--slack", type=float, default=0.5, help="seconds (default: %(default)s)")
    return made.parse_args(arguments)


def main() -> None:
    options = read_options()
    if options.url:
        raise MeasuringError("it kills a node, so it starts a cluster of its own: leave --url out")
    questions = generated(options.seed, options.problems)
    with cluster(options.profile, 2) as (url, nodes):
        spread = places()
        if any(on != sorted(node.address for node in nodes) for on in spread.values()):
            raise MeasuringError(f"the replicas did not spread over the nodes ({spread}); try again")
        found, elsewhere_s = asyncio.run(under_way(url, nodes, questions, options))
    print(shown(found, elsewhere_s))
    if options.json:
        told = {"elsewhere_s": elsewhere_s, "rows": [asdict(one) for one in found]}
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if any(one.failed or one.differing for one in found):
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
