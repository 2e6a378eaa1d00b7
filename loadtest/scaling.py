"""How each pool's replicas follow its own load: a timeline as table, JSON and picture.

    python -m loadtest.scaling --plot scaling.png --json scaling.json

Starts a system whose large pool may rest at zero and whose pools grow to --replicas, with delays of seconds where a
real one has minutes. Clients of model `small` come and go, then clients of model `large`, overlapping for a while: each
asks again as soon as it is answered. A phase lasts until the pools are where they should be, and --hold seconds more.
At the end one routed request wakes the large pool from zero. All the while /readyz is asked every two seconds, which
must neither wake a pool nor keep it awake.

It fails if a request fails, if a pool is not where its own load wants it, or if it moves with the other's load.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from loadtest.command import MeasuringError, at_least_one, attached, parser, run, serving, variant
from loadtest.offered import Asking, Told, body
from loadtest.questions import Question, generated
from loadtest.table import table
from router.request import MODELS

SAMPLE_S = 0.5
PROBE_S = 2.0
PRESSURE = 6
"""Requests that one replica serves well."""


@dataclass(frozen=True, slots=True)
class Phase:
    """clients: of model small and large. ready: replicas that these bring about."""

    name: str
    clients: tuple[int, int]
    ready: tuple[int, int]


def phases(most: int) -> list[Phase]:
    many, few = most * PRESSURE, 2
    return [
        Phase("nobody", (0, 0), (1, 0)),
        Phase("small rises", (many, 0), (most, 0)),
        Phase("small falls, large rises", (few, many), (1, most)),
        Phase("small leaves, large falls", (0, few), (1, 1)),
        Phase("nobody", (0, 0), (1, 0)),
        Phase("one routed request", (0, 0), (1, 1)),
        Phase("nobody", (0, 0), (1, 0)),
    ]


@dataclass(frozen=True, slots=True)
class Sample:
    """at_s: since the first. clients and ready replicas: of small and large."""

    at_s: float
    phase: str
    clients: tuple[int, int]
    ready: tuple[int, int]
    starting: tuple[int, int]


@dataclass(slots=True)
class Timeline:
    samples: list[Sample] = field(default_factory=list)
    told: dict[str, list[Told]] = field(default_factory=lambda: {pool: [] for pool in MODELS})
    waking_s: float | None = None
    probes: int = 0
    unready: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Told]:
        return [one for told in self.told.values() for one in told if one.status != 200]


def replicas() -> tuple[dict[str, int], dict[str, int]]:
    """Ready replicas of each pool, and those that start."""
    from ray import serve

    deployments = serve.status().applications["glimpse"].deployments
    states = {pool: {str(k): n for k, n in deployments[pool].replica_states.items()} for pool in MODELS}
    return (
        {pool: of.get("RUNNING", 0) for pool, of in states.items()},
        {pool: of.get("STARTING", 0) for pool, of in states.items()},
    )


class Clients:
    """As many clients of one model as are wanted at the time."""

    def __init__(self, asking: Asking, model: str, questions: Sequence[Question], told: list[Told]) -> None:
        self._asking, self._told = asking, told
        self._bodies: Iterator[bytes] = (
            json.dumps(body(question, model)).encode() for question in itertools.cycle(questions)
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.wanted = 0

    def want(self, count: int) -> None:
        self.wanted = count
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks += [asyncio.create_task(self._keep_asking(place)) for place in range(len(self._tasks), count)]

    async def _keep_asking(self, place: int) -> None:
        while place < self.wanted:
            self._told.append(await self._asking.ask(next(self._bodies)))

    async def end(self) -> None:
        self.want(0)
        await asyncio.gather(*self._tasks)


async def probe(url: str, timeline: Timeline) -> None:
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{url}/readyz") as response:
                timeline.probes += 1
                if response.status != 200:
                    timeline.unready.append((await response.text()).strip())
            await asyncio.sleep(PROBE_S)


async def watch(timeline: Timeline, phase: Phase, options: argparse.Namespace, began: float) -> None:
    """Samples until the pools are where the phase wants them, and for a while longer."""
    since, arrived, strayed = time.monotonic(), None, dict[str, str]()
    before = timeline.samples[-1].ready if timeline.samples else None
    while True:
        ready, starting = await asyncio.to_thread(replicas)
        now = time.monotonic()
        counts = (ready["small"], ready["large"])
        timeline.samples.append(
            Sample(now - began, phase.name, phase.clients, counts, (starting["small"], starting["large"]))
        )
        for place, pool in enumerate(MODELS):
            # Whoever has to stay where it was must not be seen elsewhere, nor on the way there.
            up = counts[place] + starting[pool]
            if before is not None and before[place] == phase.ready[place] != up:
                strayed.setdefault(pool, f"{phase.name}: {up} {pool} replicas at {now - began:.0f} s")
        if arrived is not None and counts != phase.ready:
            timeline.wrong.append(
                f"{phase.name}: {counts} replicas at {now - began:.0f} s, where {phase.ready} had come"
            )
            break
        arrived = arrived or (now if counts == phase.ready else None)
        if arrived is None and now - since > options.within:
            timeline.wrong.append(f"{phase.name}: {counts} replicas after {options.within} s, not {phase.ready}")
            break
        if arrived is not None and now - arrived >= options.hold:
            break
        await asyncio.sleep(SAMPLE_S)
    timeline.wrong.extend(strayed.values())


async def measure(url: str, questions: Sequence[Question], options: argparse.Namespace) -> Timeline:
    timeline, began = Timeline(), time.monotonic()
    probing = asyncio.create_task(probe(url, timeline))
    async with Asking(url) as asking:
        pools = {pool: Clients(asking, pool, questions, timeline.told[pool]) for pool in MODELS}
        routed = json.dumps(body(questions[0], "glimpse", glimpse={"threshold": 0.0})).encode()
        try:
            for phase in phases(options.replicas):
                for pool, count in zip(MODELS, phase.clients, strict=True):
                    pools[pool].want(count)
                woken = asyncio.create_task(asking.ask(routed)) if phase.name == "one routed request" else None
                await watch(timeline, phase, options, began)
                last = timeline.samples[-1]
                print(f"{last.at_s:5.0f} s  {phase.name}: {last.ready[0]} small, {last.ready[1]} large", flush=True)
                if woken is not None:
                    timeline.told["large"].append(await woken)
                    timeline.waking_s = (await woken).took_s
        finally:
            for clients in pools.values():
                await clients.end()
            probing.cancel()
            with suppress(asyncio.CancelledError):
                await probing
    return timeline


def scaled(replicas: int, args: dict[str, Any]) -> None:
    """Makes the pools of a profile scale within seconds, on however few CPUs there are."""
    for pool in MODELS:
        args[pool].pop("replicas", None)
        args[pool] |= {
            "cpus": 0.1,
            "autoscaling": {
                "min_replicas": 0 if pool == "large" else 1,
                "max_replicas": replicas,
                "metrics_interval_s": 1.0,
                "look_back_period_s": 4.0,
                "upscale_delay_s": 2.0,
                "downscale_delay_s": 8.0,
                "policy": {
                    "policy_function": "deployments.autoscaling:EnginePressure",
                    "policy_kwargs": {"requests": PRESSURE},
                },
            },
        }


def changes(samples: Sequence[Sample]) -> list[Sample]:
    """Only those that differ from the one before."""
    kept: list[Sample] = []
    for one in samples:
        if not kept or (one.phase, one.ready, one.starting) != (kept[-1].phase, kept[-1].ready, kept[-1].starting):
            kept.append(one)
    return kept


def shown(timeline: Timeline) -> str:
    heads = ["phase", "at, s", "small clients", "ready", "starting", "large clients", "ready", "starting"]
    rows = [
        [
            one.phase,
            f"{one.at_s:.0f}",
            *(str(of[place]) for place in (0, 1) for of in (one.clients, one.ready, one.starting)),
        ]
        for one in changes(timeline.samples)
    ]
    asked = {pool: len(told) for pool, told in timeline.told.items()}
    lines = [
        f"{sum(asked.values())} requests ({asked['small']} small, {asked['large']} large),"
        f" {len(timeline.failed)} failed; {timeline.probes} probes, {len(timeline.unready)} not ready."
    ]
    if timeline.waking_s is not None:
        lines.append(f"The request that woke the large pool from zero was answered after {timeline.waking_s:.1f} s.")
    lines += [f"failed: {one.status} {one.error}" for one in timeline.failed[:5]]
    lines += [f"not ready: {one}" for one in timeline.unready[:3]] + [f"wrong: {one}" for one in timeline.wrong]
    return "\n".join([table(heads, rows), "", *lines])


def plot(timeline: Timeline, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    at = [one.at_s for one in timeline.samples]
    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(10, 5), layout="constrained")
    for place, (pool, colour) in enumerate(zip(MODELS, ("tab:blue", "tab:orange"), strict=True)):
        axis, clients = axes[place], axes[place].twinx()
        clients.fill_between(
            at, [one.clients[place] for one in timeline.samples], step="post", color=colour, alpha=0.15
        )
        clients.set_ylabel("clients")
        axis.step(at, [one.ready[place] for one in timeline.samples], where="post", color=colour)
        up = [one.ready[place] + one.starting[place] for one in timeline.samples]
        axis.step(at, up, where="post", color=colour, linestyle=":")
        axis.set_ylabel(f"{pool} replicas")
        axis.set_yticks(range(max(up) + 1))
    axes[0].set_title("ready replicas (dotted: with those that start) and clients (shaded)")
    axes[1].set_xlabel("seconds")
    figure.savefig(path, dpi=120)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.scaling", __doc__, concurrency=None)
    made.add_argument("--replicas", type=at_least_one, default=2, help="of each pool at most (default: %(default)s)")
    made.add_argument("--hold", type=at_least_one, default=8, help="seconds at each level (default: %(default)s)")
    made.add_argument("--within", type=at_least_one, default=300, help="seconds to get there (default: %(default)s)")
    made.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there (PNG, SVG, PDF)")
    return made.parse_args(arguments)


def main() -> None:
    options = read_options()
    if options.url:
        raise MeasuringError("it needs a system that scales within seconds, so it starts its own: leave --url out")

    questions = generated(options.seed, 1000)
    with (
        variant(options.profile, lambda args: scaled(options.replicas, args)) as profile,
        serving(None, profile, options.port) as url,
        attached(),
    ):
        timeline = asyncio.run(measure(url, questions, options))
    print(shown(timeline))
    if options.plot:
        plot(timeline, options.plot)
    if options.json:
        told = {
            "requests": {pool: len(told) for pool, told in timeline.told.items()},
            "failed": [asdict(one) for one in timeline.failed],
            "waking_s": timeline.waking_s,
            "unready": timeline.unready,
            "wrong": timeline.wrong,
            "samples": [asdict(one) for one in timeline.samples],
        }
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    if timeline.failed or timeline.wrong or timeline.unready:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
