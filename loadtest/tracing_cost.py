"""What tracing costs: CPU-seconds per 1,000 steps without it, with 1 % of the requests traced, and with all of them.

    python -m loadtest.tracing_cost --rounds 6 --problems 100

Starts one system with the profile's application twice: once as it is, and once with tracing off in all of its
processes. Every round asks the same questions in three turns, off, 1 % and 100 %, in an order that changes from round
to round. All are asked before as well, so that every turn finds the same caches. Counted is the CPU time of every
process of the system (the proxy, Ray and the idle application included, in all turns alike); spans go to a receiver in
this process, which is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import itertools
import json
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from loadtest.client import Client, each
from loadtest.command import MeasuringError, at_least_one, parser, run, serving
from loadtest.questions import Question, generated
from loadtest.receiver import Receiver, traced_here
from loadtest.table import table

SHARES = {"off": 0.0, "1%": 0.01, "100%": 1.0}
SETTLE_S = 3.0
"""Spans leave their processes within this time, so that they are paid for in their own turn."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: CPU time in seconds, steps committed, spans received."""

    tracing: str
    round: int
    cpu_s: float
    steps: int
    spans: int

    @property
    def cpu_s_per_1k_steps(self) -> float:
        return 1000.0 * self.cpu_s / self.steps


def twice(profile: Path) -> dict[str, Any]:
    """The profile's config with a second application, `/off`, in whose processes nothing traces."""
    config: dict[str, Any] = yaml.safe_load(profile.read_text())
    traced = config["applications"][0]
    for part in ("small", "large", "router"):
        # The two never work at the same time.
        traced["args"][part] = traced["args"].get(part, {}) | {"cpus": 0.1}
    off = copy.deepcopy(traced) | {"name": f"{traced['name']}-off", "route_prefix": "/off"}
    for part in ("small", "large", "router"):
        untraced = off["args"][part].get("env", {}) | {"RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": ""}
        off["args"][part] = off["args"][part] | {"env": untraced}
    config["applications"] = [traced, off]
    return config


def cpu_s() -> float:
    """CPU seconds used so far by all processes that this one started."""
    used = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used += times.user + times.system
    return used


def traced(share: float, count: int) -> list[bool]:
    """Which of so many requests are traced: evenly spread, and at least one unless the share is 0."""
    wanted = max(1, round(share * count)) if share else 0
    return [wanted > 0 and (n * wanted) % count < wanted for n in range(count)]


async def ask(client: Client, questions: Sequence[Question], share: float, concurrency: int, label: str) -> int:
    """Asks all questions, so many of them traced; returns the steps."""

    async def one(item: tuple[Question, bool]) -> int:
        question, sampled = item
        header = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-0{sampled:d}"
        reply = await client.chat(
            question.messages, "glimpse", glimpse={"include_steps": True}, headers={"traceparent": header}
        )
        return len(reply.steps)

    items = list(zip(questions, traced(share, len(questions)), strict=True))
    return sum(await each(items, one, concurrency=concurrency, label=label))


async def measure(url: str, receiver: Receiver, options: argparse.Namespace) -> list[Turn]:
    questions = generated(options.seed, options.problems)
    turns: list[Turn] = []
    async with Client(url) as on, Client(f"{url}/off") as off:
        for client in (on, off, on, off):
            await ask(client, questions, 0.0, options.concurrency, "warm-up")
        orders = itertools.cycle(itertools.permutations(SHARES))
        for number, order in zip(range(options.rounds), orders, strict=False):
            for name in order:
                await asyncio.sleep(SETTLE_S)
                used, received = cpu_s(), receiver.count
                client = off if name == "off" else on
                label = f"round {number + 1}, {name}"
                steps = await ask(client, questions, SHARES[name], options.concurrency, label)
                await asyncio.sleep(SETTLE_S)
                turns.append(Turn(name, number, cpu_s() - used, steps, receiver.count - received))
    return turns


def summary(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """A row for each share. `ratio`: to off, the median over rounds; with the least and the most of them."""
    rows = []
    by_round = {(turn.round, turn.tracing): turn for turn in turns}
    for name in SHARES:
        own = [turn for turn in turns if turn.tracing == name]
        ratios = [turn.cpu_s_per_1k_steps / by_round[turn.round, "off"].cpu_s_per_1k_steps for turn in own]
        rows.append(
            {
                "tracing": name,
                "cpu_s_per_1k_steps": sum(turn.cpu_s for turn in own) * 1000.0 / sum(turn.steps for turn in own),
                "ratio": median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
                "steps": sum(turn.steps for turn in own),
                "spans": sum(turn.spans for turn in own),
            }
        )
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> str:
    heads = ["tracing", "CPU s per 1,000 steps", "to off, median", "least", "most", "steps", "spans"]
    cells = [
        [
            row["tracing"],
            f"{row['cpu_s_per_1k_steps']:.2f}",
            *(f"{100 * (row[name] - 1):+.1f} %" for name in ("ratio", "ratio_least", "ratio_most")),
            f"{row['steps']:,}",
            f"{row['spans']:,}",
        ]
        for row in rows
    ]
    return table(heads, cells)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.tracing_cost", __doc__, concurrency=8)
    made.add_argument("--problems", type=at_least_one, default=100, help="asked in every turn (default: %(default)s)")
    made.add_argument("--rounds", type=at_least_one, default=6, help="of three turns each (default: %(default)s)")
    return made.parse_args(arguments)


def main() -> None:
    options = read_options()
    if options.url:
        raise MeasuringError("--url cannot be used here: the system has to be one that was started for this")
    with traced_here(unasked=False) as receiver, tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "twice.yaml"
        profile.write_text(yaml.safe_dump(twice(options.profile)))
        with serving(None, profile, options.port) as url:
            turns = asyncio.run(measure(url, receiver, options))
    rows = summary(turns)
    print(shown(rows))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "turns": [asdict(turn) for turn in turns]}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
