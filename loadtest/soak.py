"""Hours of ordinary traffic, or minutes of it: does anything fail, grow, or slow down?

    python -m loadtest.soak --minutes 20 --plot docs/images/soak.png

Starts a system of its own with PostgreSQL, Redis and five tenants, finds how many requests a second it answers at most,
and lets Locust (loadtest/locustfile.py) offer 80 % of that for as long as is said. Meanwhile it reads how much memory
each process holds by itself (its unique set). Growth is the slope of a line through what was read after the
first --settle minutes, and, beside it, of a fit that also heeds how many requests were under way at each reading: a
process that leaks grows in both, one that only holds more while there is more to do in the first alone. Latencies are
those of the ledger, from a request's coming to its end. Beside them stands the CPU time that a request took, of the
engines and of all around them: on a machine that becomes slower both become dearer alike. The exit status is Locust's:
1 if a request failed or was refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sqlalchemy import create_engine, select
from tqdm import tqdm

from loadtest.command import MeasuringError, at_least_one, parser, run
from loadtest.offered import Asking
from loadtest.overload import saturation
from loadtest.processes import CpuTime, held_mib
from loadtest.questions import generated
from loadtest.table import table
from loadtest.tenants import Office, tenanted
from loadtest.traffic import Mix, Tenant
from router.tenancy.tables import requests

TENANTS = {"alpha": 1.0, "beta": 1.0, "gamma": 2.0, "delta": 2.0, "epsilon": 4.0}
"""Each with its weight in the traffic."""

LOCUSTFILE = Path(__file__).parent / "locustfile.py"
SHARE = 0.8
EVERY_S = 10.0
ENGINES = frozenset({"engine core", "engine worker"})
ASKING = frozenset({"client", "other"})
"""This process, Locust, and the databases."""
WINDOW_MIN = 5
ASKED = {"model": "glimpse", "glimpse": {"include_steps": True}}
TRYING = {"ramp": 20.0, "seconds": 100.0, "patience": 60.0}
"""How long each number of clients is let try: half a minute finds what a machine bears at its best."""

MEMORY = "process", "MiB after settling", "at the end", "in 10 minutes", "at equal load", "KiB a request under way"

Readings = list[tuple[float, dict[str, float]]]
"""Seconds since the beginning, and of each process, or each kind, what was read then."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Memory of a process: MiB where the measuring begins and at its end, and how much it grew in ten
    minutes, as a share of the former; the same at equal numbers of requests under way, and the KiB that it holds for
    one of these."""

    process: str
    first_mib: float
    last_mib: float
    per_10_min: float
    at_equal_load: float
    request_kib: float


@dataclass(frozen=True, slots=True)
class Window:
    """Some minutes of the soak. Latencies in seconds, CPU time of one request in milliseconds."""

    minute: float
    requests: int
    p50_s: float
    p95_s: float
    engines_ms: float
    others_ms: float


def growth(
    samples: Sequence[tuple[float, Mapping[str, float]]], settle_s: float, spans: Sequence[tuple[float, float]] = ()
) -> list[Growth]:
    """samples: seconds since the beginning, and MiB by process. spans: of each request the second it came in, since
    the beginning, and how long it took."""
    late = [(at, held) for at, held in samples if at >= settle_s]
    came, took = np.array(spans).reshape(-1, 2).T
    grown = []
    for process in sorted({name for _, held in late for name in held}):
        at, mib = np.array([(at, held[process]) for at, held in late if process in held]).T
        if len(at) < 2:
            continue
        slope, start = np.polyfit(at - settle_s, mib, 1)
        under_way = [np.count_nonzero((came <= now) & (now < came + took)) for now in at]
        known = np.column_stack([at - settle_s, under_way, np.ones(len(at))])
        equal, each, _ = np.linalg.lstsq(known, mib, rcond=None)[0]
        rise, at_equal_load = (float(one * 600.0 / start) for one in (slope, equal))
        grown.append(Growth(process, float(mib[0]), float(mib[-1]), rise, at_equal_load, float(each * 1024)))
    return grown


def windows(
    spans: Sequence[tuple[float, float]], minutes: float, used: Sequence[tuple[float, Mapping[str, float]]]
) -> list[Window]:
    """spans: of each request the second it came in, since the beginning, and how long it took. used: seconds since the
    beginning, and CPU seconds that each kind of process has used up since then."""
    found = []
    ats = [at for at, _ in used]
    engines = [sum(spent for kind, spent in one.items() if kind in ENGINES) for _, one in used]
    others = [sum(spent for kind, spent in one.items() if kind not in ENGINES | ASKING) for _, one in used]
    for first in range(0, round(minutes), WINDOW_MIN):
        length = min(WINDOW_MIN, minutes - first)  # the last may be a shorter one
        edges = first * 60, (first + length) * 60
        took = [seconds for at, seconds in spans if edges[0] <= at < edges[1]]
        if len(took) > 1:
            p50, p95 = np.percentile(took, [50, 95])
            read_s = np.diff(np.interp(edges, ats, ats))[0]  # readings don't begin and end with the minutes
            cores = (np.diff(np.interp(edges, ats, spent))[0] / read_s for spent in (engines, others))
            costs = (float(one) * length * 60_000 / len(took) for one in cores)
            found.append(Window(first, len(took), float(p50), float(p95), *costs))
    return found


def bodies(seed: int) -> Iterator[bytes]:
    """What Locust will ask."""
    mix, dice = Mix([Tenant("any")], generated(seed + 1, 2000), 0.5, 0.5, ASKED), random.Random(seed)
    while True:
        yield json.dumps(mix.draw(dice).body).encode()


async def bearable(office: Office, options: argparse.Namespace) -> float:
    """The most requests a second that it answers, of the kind that Locust will ask."""
    async with Asking(office.url) as asking:
        _, rate = await saturation(asking, bodies(options.seed), clients=options.concurrency, **TRYING)
    return rate


def locust(office: Office, rate: float, options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    listed = [{"name": name, "key": office.keys[name], "weight": weight} for name, weight in TENANTS.items()]
    (folder / "tenants.yaml").write_text(yaml.safe_dump(listed))
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", office.url, "--headless"]
    command += ["--run-time", f"{options.minutes}m", "--rate", f"{rate:.2f}", "--seed", str(options.seed)]
    command += ["--tenants", str(folder / "tenants.yaml"), "--only-summary", "--max-refused", "0"]
    command += ["--stop-timeout", "60"] + (["--html", str(options.html)] if options.html else [])
    return subprocess.Popen(command, stdout=sys.stderr)


def watched(process: subprocess.Popen[bytes], minutes: float) -> tuple[Readings, Readings]:
    """Every few seconds until the process ends: the memory of each process, and the CPU time of each kind."""
    began, before = time.monotonic(), CpuTime.now()
    samples: Readings = []
    used: Readings = []
    with tqdm(total=round(minutes * 60), unit="s") as bar:
        while process.poll() is None:
            at = time.monotonic() - began
            if at < minutes * 60:
                samples.append((at, held_mib()))
                used.append((at, CpuTime.now().since(before)))
            bar.update(min(bar.total, round(at)) - bar.n)
            time.sleep(EVERY_S)
    return samples, used


def latencies(office: Office, since: datetime) -> list[tuple[float, float]]:
    engine = create_engine(office.postgres.url)
    columns = select(requests.c.received_at, requests.c.finished_at).where(requests.c.received_at >= since)
    with engine.connect() as connection:
        rows = connection.execute(columns).all()
    engine.dispose()
    return [((came - since).total_seconds(), (done - came).total_seconds()) for came, done in rows]


def plot(
    samples: Sequence[tuple[float, Mapping[str, float]]], settle_s: float, parts: Sequence[Window], path: Path
) -> None:
    """Memory, of what it was after settling; and latencies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(11, 6), layout="constrained")
    axes[0].set_prop_cycle(color=[pyplot.get_cmap("tab20")(n) for n in range(20)])
    settled = next((held for at, held in samples if at >= settle_s), None)
    if settled is None:
        raise MeasuringError("it ended before --settle: there is nothing to draw")
    for process, mib in settled.items():
        read = [(at / 60, 100 * held[process] / mib) for at, held in samples if process in held]
        axes[0].plot(*zip(*read, strict=True), label=f"{process}, {mib:.0f} MiB")
    axes[0].set_ylabel("% of its memory after settling")
    axes[0].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    middles = [one.minute + WINDOW_MIN / 2 for one in parts]
    axes[1].plot(middles, [one.p50_s for one in parts], marker="o", label="p50")
    axes[1].plot(middles, [one.p95_s for one in parts], marker="o", label="p95")
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel("seconds")
    axes[1].set_xlabel("minutes")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.soak", __doc__, concurrency=32)
    made.add_argument("--minutes", type=at_least_one, default=20, help="(default: %(default)s)")
    made.add_argument(
        "--settle", type=at_least_one, default=5, help="minutes left out of growth (default: %(default)s)"
    )
    made.add_argument("--rate", type=float, help=f"requests a second (default: {SHARE:.0%}% of what it bears)")
    made.add_argument("--plot", type=Path, metavar="FILE", help="write a picture there (PNG, SVG, PDF)")
    made.add_argument("--html", type=Path, metavar="FILE", help="write Locust's report there")
    options = made.parse_args(arguments)
    if options.url:
        made.error("--url: the tenants and their database are its own, so is the system")
    if options.settle >= options.minutes:
        made.error("--settle: must be less than --minutes")
    return options


def main() -> None:
    options = read_options()
    with (
        tenanted(options.profile, options.port, {name: {} for name in TENANTS}) as office,
        tempfile.TemporaryDirectory() as folder,
    ):
        rate = options.rate
        if rate is None:
            best = asyncio.run(bearable(office, options))
            rate = SHARE * best
            print(f"It answers {best:.1f} requests a second; {rate:.1f} are offered.", flush=True)
        since = datetime.now(UTC)
        process = locust(office, rate, options, Path(folder))
        try:
            samples, used = watched(process, options.minutes)
        finally:
            process.kill()
            process.wait()
        time.sleep(3)  # what is still to be delivered to the ledger
        spans = latencies(office, since)
    grown = growth(samples, options.settle * 60.0, spans)
    within = [span for span in spans if span[0] < timedelta(minutes=options.minutes).total_seconds()]
    parts = windows(within, options.minutes, used)
    print(shown(grown, parts))
    if options.json:
        data: dict[str, Any] = {"rate": rate, "growth": [asdict(one) for one in grown]}
        data |= {"windows": [asdict(one) for one in parts], "samples": samples, "used": used}
        data["spans"] = spans
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.plot:
        plot(samples, options.settle * 60.0, parts, options.plot)
    if process.returncode:
        raise SystemExit(1)


def shown(grown: Sequence[Growth], parts: Sequence[Window]) -> str:
    memories = [
        [one.process]
        + [f"{mib:.1f}" for mib in (one.first_mib, one.last_mib)]
        + [f"{share:+.2%}" for share in (one.per_10_min, one.at_equal_load)]
        + [f"{one.request_kib:+.0f}"]
        for one in grown
    ]
    times = [
        [f"{one.minute:g}", str(one.requests)]
        + [f"{seconds:.2f}" for seconds in (one.p50_s, one.p95_s)]
        + [f"{ms:.0f}" for ms in (one.engines_ms, one.others_ms)]
        for one in parts
    ]
    middle = statistics.median(one.p95_s for one in parts) if parts else 0.0
    return "\n\n".join(
        [
            table(MEMORY, memories),
            table(("from minute", "requests", "p50 s", "p95 s", "engines, CPU ms a request", "all else"), times),
            f"p95 of {WINDOW_MIN} minutes at a time: median {middle:.2f} s",
        ]
    )


if __name__ == "__main__":
    run(main)
