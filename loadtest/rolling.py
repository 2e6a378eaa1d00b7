"""Rolls updates out under streaming clients and checks every answer.

    python -m loadtest.rolling --concurrency 16

Starts a system, keeps asking, and meanwhile has `glimprouter rollout` bring (1) a new threshold, (2) new limits, for
which every replica is replaced, and (3) another pair. A request fails if its stream breaks, ends in an error or has no
end. A greedy answer tells its pair and its threshold; one that differs from what this pair writes at this threshold
undisturbed was not written by it alone.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.config import AppConfig
from loadtest.command import MeasuringError, at_least_one, credentials, parser, run, serving
from loadtest.questions import Question, generated
from loadtest.streamed import Streamed, stream
from loadtest.table import table

SETTLED_S = 5.0
"""Load goes on for so long after each update, so that requests that began under the new state are among those seen."""


@dataclass(frozen=True, slots=True)
class Update:
    """What the system is to be changed to; other_pair: whether it is served by other models then."""

    name: str
    profile: Path
    threshold: float
    other_pair: bool = False


@dataclass
class Tally:
    """Requests that ended while one update was under way, or shortly after it."""

    update: str
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)
    streams: list[tuple[Question, Streamed]] = field(default_factory=list)


@contextmanager
def updates(profile: Path) -> Iterator[tuple[Update, list[Update]]]:
    """The profile to start with, and what it becomes, on however few CPUs there are."""
    config: dict[str, Any] = yaml.safe_load(profile.read_text())
    application = config["applications"][0]
    args = application["args"]
    args["router"] = args.get("router", {}) | {"cpus": 0.1}
    for pool in ("small", "large"):
        args[pool] |= {"cpus": 0.1, "surge_percent": 100}
    first = AppConfig.read(args).routing.threshold
    with tempfile.TemporaryDirectory() as folder:

        def saved(name: str, threshold: float, *, other_pair: bool = False) -> Update:
            path = Path(folder, f"{len(list(Path(folder).iterdir()))}.yaml")
            path.write_text(yaml.safe_dump(config))
            return Update(name, path, threshold, other_pair)

        start = saved("as it was", first)
        second = first + 1.0
        application["deployments"] = [{"name": "router", "user_config": {"threshold": second}}]
        threshold = saved("a new threshold", second)
        args["limits"] = args.get("limits", {}) | {"deadline_s": 300.0}
        limits = saved("new limits", second)
        # Two models that differ from the old pair's in what they write, and share its vocabulary.
        args["large"]["model"] = str(shutil.copytree(AppConfig.read(args).small.path, Path(folder, "other")))
        yield start, [threshold, limits, saved("another pair", second, other_pair=True)]


async def ask_all(client: httpx.AsyncClient, questions: list[Question], concurrency: int) -> list[Streamed]:
    places = asyncio.Semaphore(concurrency)

    async def one(question: Question) -> Streamed:
        async with places:
            return await stream(client, question)

    return await asyncio.gather(*map(one, questions))


async def roll(profile: Path) -> None:
    """`glimprouter rollout`, its output passed on."""
    command = (sys.executable, "-m", "deployments.cli", "rollout", str(profile))
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait():
        raise MeasuringError(f"the rollout failed (exit status {process.returncode}); its own line is above")


async def under_load(url: str, questions: list[Question], todo: list[Update], concurrency: int) -> list[Tally]:
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=None), headers=credentials()
    ) as client:
        right: dict[tuple[str, float | None, str], Streamed] = {}

        async def learn() -> set[tuple[str, float | None]]:
            """What the pair and threshold of the moment write, undisturbed; and these."""
            now = set()
            for question, one in zip(questions, await ask_all(client, questions, concurrency), strict=True):
                if one.error or one.finish is None:
                    raise MeasuringError(f"a request fails without any update: {one.error or 'no end'}")
                right[one.pair, one.threshold, question.text] = one
                now.add((one.pair, one.threshold))
            return now

        before = await learn()
        turn, over = itertools.cycle(questions), asyncio.Event()
        tally = Tally("before")

        async def keep_asking() -> None:
            while not over.is_set():
                question = next(turn)
                streamed = await stream(client, question)
                if streamed.error or streamed.finish is None:
                    tally.failed.append(streamed.error or "the stream had no end")
                else:
                    tally.streams.append((question, streamed))

        tallies = []
        for update in todo:
            tally = Tally(update.name)
            over.clear()
            clients = [asyncio.create_task(keep_asking()) for _ in range(concurrency)]
            began = time.monotonic()
            try:
                await asyncio.sleep(SETTLED_S)
                await roll(update.profile)
                await asyncio.sleep(SETTLED_S)
            finally:
                over.set()
                await asyncio.gather(*clients)
            tally.seconds = time.monotonic() - began
            tallies.append(tally)
            print(f"{update.name}: {len(tally.streams)} answered, {len(tally.failed)} failed", flush=True)
            after = await learn()
            if {threshold for _, threshold in after} != {update.threshold} or update.other_pair is (
                {pair for pair, _ in after} == {pair for pair, _ in before}
            ):
                tally.failed.append(f"the update did not come: {after} after {before}")
            before = after
        for tally in tallies:
            for question, one in tally.streams:
                expected = right.get((one.pair, one.threshold, question.text))
                if expected is None or expected.said != one.said:
                    tally.failed.append(f"an answer of pair {one.pair} at {one.threshold} differs from the undisturbed")
        return tallies


def main() -> None:
    options_of = parser("loadtest.rolling", __doc__, concurrency=16)
    options_of.add_argument("--problems", type=at_least_one, default=32, help="different questions")
    options = options_of.parse_args()
    if options.url:
        raise MeasuringError("it changes the system it measures, so it starts one of its own: leave --url out")
    questions = generated(options.seed, options.problems)
    with updates(options.profile) as (start, todo), serving(None, start.profile, options.port) as url:
        tallies = asyncio.run(under_load(url, questions, todo, options.concurrency))
    rows = []
    for tally in tallies:
        written_by = Counter((one.pair, one.threshold) for _, one in tally.streams)
        told = ", ".join(f"{count} by {pair[:8]} at {threshold}" for (pair, threshold), count in written_by.items())
        rows.append([tally.update, f"{tally.seconds:.0f}", str(len(tally.streams)), str(len(tally.failed)), told])
    print(table(["update", "seconds", "answered", "failed or differing", "written by (pair at threshold)"], rows))
    for reason in [reason for tally in tallies for reason in tally.failed][:5]:
        print(f"failed: {reason}")
    if options.json:
        told_rows = [
            {"update": tally.update, "seconds": tally.seconds, "failed": tally.failed}
            | {"streams": [asdict(one) for _, one in tally.streams]}
            for tally in tallies
        ]
        options.json.write_text(json.dumps({"rows": told_rows}, indent=1))
    if any(tally.failed for tally in tallies):
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
