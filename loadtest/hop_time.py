"""Where a routed request's time goes that is not its engines': around them in every hop, and between hops.

    python -m loadtest.hop_time --clients 1,8
    python -m loadtest.hop_time --profile my-pair.yaml --data problems.jsonl --clients 1,8,32 --problems 20,40,64

Starts the profile's system and has its requests traced, to a receiver in this process. Of a hop, `before` is from the
router's asking until the engine has the request, `after` from the engine's last token until the router has the hop's
end. vLLM tells its own time only of a request that it ended itself: of hops that the gate stopped neither is known,
and they count like the others of their model, or of the other where their model has none. Between hops that go on at
the same time (`token_threshold`) there is nothing. `around`: what lies before the first hop, between two, after the
last, and around the engines in each, as a share of the time that all requests took.

Being traced costs time too, so that all of this is rather too much than too little (`loadtest.tracing_cost`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.client import Client, Reply, each
from loadtest.command import MeasuringError, at_least_one, numbers, parser, run, serving
from loadtest.questions import BOXED, Question, from_file, generated
from loadtest.receiver import Receiver, Span, traced_here
from loadtest.table import table
from router.request import MODELS, Model

HOPS: Mapping[str, Model] = {"run small": "small", "step large": "large"}
"""Spans of hops, by name."""
ENGINE = "llm_request"
SETTLE_S = 20.0
"""Spans leave their processes within this time."""


@dataclass(frozen=True, slots=True)
class HopTime:
    """Milliseconds of a hop before its engine had it, and after its last token; None if its engine does not tell."""

    model: Model
    before_ms: float | None
    after_ms: float | None

    @property
    def around_ms(self) -> float | None:
        return None if self.before_ms is None or self.after_ms is None else self.before_ms + self.after_ms


@dataclass(frozen=True, slots=True)
class RequestTime:
    """Milliseconds of a request: in all, before its first hop, between each two, and after its last."""

    ms: float
    first_ms: float
    between_ms: tuple[float, ...]
    last_ms: float
    hops: tuple[HopTime, ...]


def request_time(trace: Sequence[Span]) -> RequestTime | None:
    """What one trace tells; None if it is of no routed request, or not whole."""
    asked = [span for span in trace if span.name == "chat glimpse"]
    hops = sorted((span for span in trace if span.name in HOPS), key=lambda span: span.began)
    if len(asked) != 1 or not hops:
        return None
    engines = {span.parent: span for span in trace if span.name == ENGINE}
    whole = asked[0]
    latest = accumulate((hop.ended for hop in hops), max)
    return RequestTime(
        ms=whole.ms,
        first_ms=_ms(whole.began, hops[0].began),
        between_ms=tuple(max(0.0, _ms(ended, hop.began)) for ended, hop in zip(latest, hops[1:], strict=False)),
        last_ms=_ms(max(hop.ended for hop in hops), whole.ended),
        hops=tuple(_hop_time(span, engines.get(span.id)) for span in hops),
    )


def _hop_time(hop: Span, engine: Span | None) -> HopTime:
    before, after = (_ms(hop.began, engine.began), _ms(engine.ended, hop.ended)) if engine else (None, None)
    return HopTime(HOPS[hop.name], before, after)


def _ms(began: int, ended: int) -> float:
    return (ended - began) / 1e6


def row(clients: int, requests: Sequence[RequestTime]) -> dict[str, Any]:
    """Medians in milliseconds, and the share of the requests' time that is not their engines'."""
    told: dict[Model, list[HopTime]] = defaultdict(list)
    for one in requests:
        for hop in one.hops:
            if hop.around_ms is not None:
                told[hop.model].append(hop)
    around = {model: median(hop.around_ms or 0.0 for hop in hops) for model, hops in told.items()}
    either = max(around.values(), default=0.0)
    outside = sum(one.first_ms + sum(one.between_ms) + one.last_ms for one in requests)
    outside += sum(around.get(hop.model, either) for one in requests for hop in one.hops)
    between = [ms for one in requests for ms in one.between_ms]
    return {
        "clients": clients,
        "requests": len(requests),
        "hops": {model: sum(hop.model == model for one in requests for hop in one.hops) for model in MODELS},
        "request_ms": median(one.ms for one in requests),
        "first_ms": median(one.first_ms for one in requests),
        "between_ms": median(between) if between else None,
        "last_ms": median(one.last_ms for one in requests),
        "before_ms": {model: median(hop.before_ms or 0.0 for hop in hops) for model, hops in told.items()},
        "after_ms": {model: median(hop.after_ms or 0.0 for hop in hops) for model, hops in told.items()},
        "around_share": outside / sum(one.ms for one in requests),
    }


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    def ms(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}"

    heads = ["clients", "requests", "hops", "a request, ms", "before its first hop", "between two", "after its last"]
    heads += [f"{when} the {model} engine" for model in MODELS for when in ("before", "after")] + ["around"]
    cells = [
        [
            str(one["clients"]),
            str(one["requests"]),
            str(sum(one["hops"].values())),
            f"{one['request_ms']:.0f}",
            *(ms(one[name]) for name in ("first_ms", "between_ms", "last_ms")),
            *(ms(one[name].get(model)) for model in MODELS for name in ("before_ms", "after_ms")),
            f"{100 * one['around_share']:.1f} %",
        ]
        for one in rows
    ]
    return table(heads, cells)


def problems(options: argparse.Namespace) -> list[list[Question]]:
    """For each number of clients its own, the first so many of them to warm the system."""
    counts = [clients + count for clients, count in zip(options.clients, options.problems, strict=True)]
    made = generated(options.seed, sum(counts)) if options.data is None else from_file(options.data, sum(counts), BOXED)
    return [made[sum(counts[:n]) :][:count] for n, count in enumerate(counts)]


async def measure(url: str, receiver: Receiver, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    async with Client(url) as client:

        async def ask(question: Question) -> Reply:
            return await client.chat(question.messages, "glimpse", max_tokens=options.max_tokens)

        for clients, asked in zip(options.clients, problems(options), strict=True):
            await each(asked[:clients], ask, concurrency=clients, label=f"{clients} clients, warming")
            before = await settled(receiver, set())
            await each(asked[clients:], ask, concurrency=clients, label=f"{clients} clients")
            traces = await settled(receiver, before) - before
            told = [one for trace in traces if (one := request_time(receiver.trace(trace)))]
            if not told:
                raise MeasuringError("no spans came of any routed request")
            rows.append(row(clients, told))
            print(shown(rows[-1:]), file=sys.stderr)
    return rows


async def settled(receiver: Receiver, before: set[str]) -> set[str]:
    """All traces, once no more spans come."""
    until, count = time.monotonic() + SETTLE_S, -1
    while (receiver.count > count or receiver.traces == before) and time.monotonic() < until:
        count = receiver.count
        await asyncio.sleep(3.0)
    return receiver.traces


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.hop_time", __doc__, concurrency=None)
    made.add_argument("--clients", type=numbers, default=[1, 8], metavar="N,…", help="(default: 1,8)")
    made.add_argument(
        "--problems", type=numbers, default=[32], metavar="N,…", help="for all or for each of --clients (default: 32)"
    )
    made.add_argument("--data", type=Path, metavar="FILE.jsonl", help="with `question` and `answer`, not the generator")
    made.add_argument("--max-tokens", type=at_least_one, help="reasoning and answer (default: the profile's)")
    options = made.parse_args(arguments)
    if len(options.problems) not in (1, len(options.clients)):
        made.error("--problems: one number, or one for each of --clients")
    if len(options.problems) == 1:
        options.problems *= len(options.clients)
    return options


def main() -> None:
    options = read_options()
    if options.url:
        raise MeasuringError("--url cannot be used here: the system has to be one that is started for this")
    with traced_here() as receiver, serving(None, options.profile, options.port) as url:
        rows = asyncio.run(measure(url, receiver, options))
    print(shown(rows))
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
