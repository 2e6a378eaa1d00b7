"""What is still answered when more is asked than can be: goodput and refusals at 1x, 2x, 4x of saturation.

    python -m loadtest.overload --seconds 30 --loads 1 2 4

First the system's saturation is measured: answers per second to ever more clients, each of which asks again as soon as
it is answered, until more of them bring no more. Then requests come at multiples of that rate as a Poisson process,
without waiting for each other, and nobody tries again. A machine's speed drifts by more than overload costs, so the
clients in turn and all loads are measured one after the other, --rounds times; figures are medians, and a load is
compared with the clients of its own round. Goodput counts the answers that are whole and no later than --patience; a
refusal is a 429 or 503. At last --deadlines requests at once with a second each: how late they are told that it has
passed, and what the engines still run then.

The load generator runs on the same machine: its own CPU share stands beside each row.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from random import Random
from statistics import median, quantiles
from typing import Any

from tqdm import tqdm

from loadtest.command import MeasuringError, at_least_one, attached, parser, run, serving
from loadtest.offered import Asking, CpuShare, Told, body, poisson
from loadtest.questions import Question, generated
from loadtest.table import table

DEADLINE_S = 1.0
MORE = 1.05
"""Twice as many clients have to bring this many times the answers, or the fewer were enough."""


@dataclass(frozen=True, slots=True)
class Row:
    """One level of load. Rates are per second, latencies of answers in seconds, of refusals in milliseconds."""

    load: str
    offered: float
    goodput: float
    late: float
    latency_p50_s: float | None
    latency_p99_s: float | None
    refused: float
    refused_p50_ms: float | None
    refused_p99_ms: float | None
    refused_max_ms: float | None
    without_retry_after: int
    failed: int
    generator_cores: float


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Requests whose deadline passed while they were written. late_ms: from the deadline to the 504. still_running:
    requests in the engines right after the last of them and a second later, None if they could not be asked."""

    asked: int
    answered: int
    passed: int
    late_p50_ms: float | None
    late_p99_ms: float | None
    still_running: tuple[int, int] | None


def row(load: str, told: Sequence[Told], *, begin: float, end: float, patience_s: float, generator_cores: float) -> Row:
    """Answers count where they end, requests and refusals where they were sent: all between `begin` and `end` on the
    monotonic clock."""
    span = end - begin
    sent = [one for one in told if begin <= one.sent < end]
    whole = [one for one in told if one.status == 200 and begin <= one.sent + one.took_s < end]
    good = [one for one in whole if one.took_s <= patience_s]
    refusals = [one for one in sent if one.refused]
    latency, refusal_ms = [one.took_s for one in whole], [one.took_s * 1000 for one in refusals]
    return Row(
        load=load,
        offered=len(sent) / span,
        goodput=len(good) / span,
        late=(len(whole) - len(good)) / span,
        latency_p50_s=percentile(latency, 50),
        latency_p99_s=percentile(latency, 99),
        refused=len(refusals) / span,
        refused_p50_ms=percentile(refusal_ms, 50),
        refused_p99_ms=percentile(refusal_ms, 99),
        refused_max_ms=max(refusal_ms, default=None),
        without_retry_after=sum(not one.retry_after for one in refusals),
        failed=sum(one.status != 200 and not one.refused for one in sent),
        generator_cores=generator_cores,
    )


def percentile(values: Sequence[float], p: int) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return quantiles(values, n=100, method="inclusive")[p - 1]


def middle(rows: Sequence[Row]) -> Row:
    """One load in several rounds: medians; of counts the sum, of maxima the largest."""
    found: dict[str, Any] = {"load": rows[0].load}
    for name in (one.name for one in fields(Row) if one.name != "load"):
        values = [value for one in rows if (value := getattr(one, name)) is not None]
        match name:
            case "without_retry_after" | "failed":
                found[name] = sum(values)
            case "refused_max_ms":
                found[name] = max(values, default=None)
            case _:
                found[name] = median(values) if values else None
    return Row(**found)


async def closed(
    asking: Asking, bodies: Iterator[bytes], *, clients: int, ramp: float, seconds: float, patience: float
) -> Row:
    """So many clients, each of which asks again as soon as it is answered."""
    cpu = CpuShare()
    told = await asking.closed(bodies, clients=clients, seconds=ramp + seconds)
    begin = min(one.sent for one in told) + ramp
    return row(f"{clients} clients", told, begin=begin, end=begin + seconds, patience_s=patience, generator_cores=cpu())


async def saturation(
    asking: Asking, bodies: Iterator[bytes], *, clients: int, ramp: float, seconds: float, patience: float
) -> tuple[int, float]:
    """How many closed-loop clients get the most answers, and how many per second; twice as many each time. Times in
    seconds, of each number of clients."""
    best = 0, 0.0
    while True:
        now = await closed(asking, bodies, clients=clients, ramp=ramp, seconds=seconds, patience=patience)
        print(f"{clients} clients: {now.goodput:.1f} answers/s, {now.refused:.1f} refusals/s", flush=True)
        if not best[0] and not now.goodput:
            raise MeasuringError(f"no answer within {patience:g} s to {clients} clients")
        if now.goodput <= best[1] * MORE:
            return max(best, (clients, now.goodput), key=lambda one: one[1])
        best, clients = (clients, now.goodput), clients * 2


async def offered(
    asking: Asking, bodies: Iterator[bytes], factor: float, rate: float, options: argparse.Namespace, chance: Random
) -> Row:
    cpu, seconds = CpuShare(), options.ramp + options.seconds
    begin = time.monotonic() + options.ramp
    arrivals = poisson(factor * rate, seconds, chance)
    asked = asyncio.create_task(asking.open(bodies, arrivals))
    with tqdm(total=round(seconds), desc=f"{factor:g}x", unit="s", leave=False) as bar:
        for _ in range(round(seconds)):
            await asyncio.sleep(1)
            bar.update()
    cores = cpu()
    told = await asked
    return row(
        f"{factor:g}x",
        told,
        begin=begin,
        end=begin + options.seconds,
        patience_s=options.patience,
        generator_cores=cores,
    )


async def deadlines(asking: Asking, questions: Sequence[Question], count: int, engines: bool) -> Deadlines:
    told = await asyncio.gather(
        *(asking.ask(one) for one in itertools.islice(bodies_of(questions, timeout=DEADLINE_S), count))
    )
    still_running = None
    if engines:
        at_once = await running()
        await asyncio.sleep(1)
        still_running = (at_once, await running())
    late_ms = [(one.took_s - DEADLINE_S) * 1000 for one in told if one.status == 504]
    return Deadlines(
        asked=count,
        answered=sum(one.status == 200 for one in told),
        passed=len(late_ms),
        late_p50_ms=percentile(late_ms, 50),
        late_p99_ms=percentile(late_ms, 99),
        still_running=still_running,
    )


async def running() -> int:
    """Requests in the engines of a system of one replica a pool."""
    from ray import serve

    handles = (serve.get_deployment_handle(pool, "glimpse") for pool in ("small", "large"))
    return sum([(await handle.account.remote())["running_requests"] for handle in handles])


def bodies_of(questions: Sequence[Question], **fields: object) -> Iterator[bytes]:
    return (json.dumps(body(question, "glimpse", **fields)).encode() for question in itertools.cycle(questions))


async def measure(
    url: str, questions: Sequence[Question], options: argparse.Namespace
) -> tuple[list[list[Row]], Deadlines]:
    """Each round's rows, the clients in turn first."""
    bodies = bodies_of(questions)
    times = {"ramp": options.ramp, "seconds": options.seconds, "patience": options.patience}
    async with Asking(url) as asking:
        clients, rate = await saturation(asking, bodies, clients=options.concurrency, **times)
        rounds = []
        for n in range(options.rounds):
            rows = [await closed(asking, bodies, clients=clients, **times)]
            for factor in options.loads:
                chance = Random(f"{options.seed}/{factor}/{n}")
                rows.append(await offered(asking, bodies, factor, rate, options, chance))
            rounds.append(rows)
            print(f"round {n + 1}: " + ", ".join(f"{one.load} {one.goodput:.1f}/s" for one in rows), flush=True)
        return rounds, await deadlines(asking, questions, options.deadlines, engines=not options.url)


def shown(rounds: Sequence[Sequence[Row]], passed: Deadlines) -> str:
    heads = ["load", "offered/s", "goodput/s", "of clients in turn", "late/s", "p50 s", "p99 s", "refused/s"]
    heads += ["refusal p50 ms", "p99 ms", "max ms", "no Retry-After", "failed", "generator, cores"]
    loads = [middle(rows) for rows in zip(*rounds, strict=True)]
    shares = [median(rows[i].goodput / rows[0].goodput for rows in rounds) for i in range(len(loads))]

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    cells = [
        [
            one.load,
            number(one.offered, 1),
            number(one.goodput, 2),
            f"{share:.0%}",
            number(one.late, 2),
            number(one.latency_p50_s, 1),
            number(one.latency_p99_s, 1),
            number(one.refused, 1),
            number(one.refused_p50_ms, 0),
            number(one.refused_p99_ms, 0),
            number(one.refused_max_ms, 0),
            str(one.without_retry_after),
            str(one.failed),
            number(one.generator_cores, 2),
        ]
        for one, share in zip(loads, shares, strict=True)
    ]
    lines = [
        f"{passed.passed} of {passed.asked} requests at once took over {DEADLINE_S:g} s ({passed.answered} did not)."
    ]
    if passed.passed:
        lines[0] += f" They were told {passed.late_p50_ms:.0f} ms later (p99 {passed.late_p99_ms:.0f} ms)."
    if others := passed.asked - passed.answered - passed.passed:
        lines[0] += f" Told something else: {others}."
    if passed.still_running is not None:
        lines.append("Still running in the engines then: {}; a second later: {}.".format(*passed.still_running))
    return "\n".join([table(heads, cells), "", *lines])


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.overload", __doc__, concurrency=32)
    made.add_argument("--loads", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="multiples of saturation")
    made.add_argument("--rounds", type=at_least_one, default=3, help="(default: %(default)s)")
    made.add_argument("--seconds", type=at_least_one, default=30, help="measured at each load (default: %(default)s)")
    made.add_argument("--ramp", type=at_least_one, default=10, help="seconds before it (default: %(default)s)")
    made.add_argument("--patience", type=float, default=30.0, help="seconds; later is too late (default: %(default)s)")
    made.add_argument("--problems", type=at_least_one, default=4000, help="different questions (default: %(default)s)")
    made.add_argument("--deadlines", type=at_least_one, default=64, help="requests at once (default: %(default)s)")
    return made.parse_args(arguments)


def main() -> None:
    options = read_options()
    questions = generated(options.seed, options.problems)
    with (
        serving(options.url, options.profile, options.port) as url,
        nullcontext() if options.url else attached(),
    ):
        rounds, passed = asyncio.run(measure(url, questions, options))
    print(f"One machine of {os.cpu_count()} cores for all; an answer counts within {options.patience:g} s.\n")
    print(shown(rounds, passed))
    if options.json:
        told: dict[str, Any] = {"cores": os.cpu_count(), "patience_s": options.patience}
        told["rounds"] = [[asdict(one) for one in rows] for rows in rounds]
        told["deadlines"] = asdict(passed)
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
