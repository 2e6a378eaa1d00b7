"""Calls to the models that each problem takes, next to what the paper's protocol takes for the same transcripts.

    python -m loadtest.hops --problems 100 --url http://127.0.0.1:8000 --engines

A run of easy steps is one hop, so that the small model is called at most once more than the large one is asked for a
step. The paper's script asks the small model for one token (the glimpse) and then one of the two for the step, twice
per step, and once for the answer.

From a reply alone the small hops are a bound from above: where the large model wrote the last step, it cannot be
seen whether the answer was a hop of its own. --engines counts in the engines instead: it asks them before and after
each problem, one problem at a time, and needs a server of this machine with one replica a pool and no other traffic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.client import Client, Reply, Served, each
from loadtest.command import MeasuringError, at_least_one, attached, parser, run, serving
from loadtest.questions import Question, generated
from loadtest.table import table
from router.request import MODELS, Model


@dataclass(frozen=True, slots=True)
class Count:
    """One problem's calls. `counted_small` and `counted_large` are the engines' own, None if not asked."""

    steps: int
    escalations: int
    hops: int
    small_hops: int
    paper_calls: int
    counted_small: int | None = None
    counted_large: int | None = None

    @property
    def kept(self) -> bool:
        """Whether small hops <= escalations + 1, as far as is known."""
        return (self.small_hops if self.counted_small is None else self.counted_small) <= self.escalations + 1

    @property
    def agreed(self) -> bool:
        """Whether the engines, if asked, counted as many hops as the reply tells."""
        return self.counted_small is None or self.counted_small + (self.counted_large or 0) == self.hops


def count(reply: Reply, *, thinks: bool, engines: Mapping[Model, int] | None = None) -> Count:
    """A reply's calls. `engines`: hops counted in each pool meanwhile."""
    hops, escalations = reply.hops or 0, reply.escalations or 0
    answer_apart = thinks and (not reply.steps or reply.steps[-1].model == "small")
    return Count(
        steps=len(reply.steps),
        escalations=escalations,
        hops=hops,
        small_hops=hops - escalations - answer_apart,
        paper_calls=2 * len(reply.steps) + thinks,
        **({} if engines is None else {"counted_small": engines["small"], "counted_large": engines["large"]}),
    )


class Engines:
    """The engines' own counts, through the Ray cluster that they run on and this process is attached to."""

    def __init__(self, application: str) -> None:
        from ray import serve
        from ray.serve.exceptions import RayServeException

        try:
            self._pools = {pool: serve.get_deployment_handle(pool, application) for pool in MODELS}
        except RayServeException as error:
            reason = str(error).partition("\n")[0]
            raise MeasuringError(f"no engines there ({reason}); give --application or leave --engines") from None
        self._replicas: dict[Model, str] = {}

    async def hops(self) -> dict[Model, int]:
        """Hops of each pool since it started."""
        told: dict[str, Any] = {pool: await handle.account.remote() for pool, handle in self._pools.items()}
        replicas = {pool: told[pool]["replica"] for pool in MODELS}
        if self._replicas not in ({}, replicas):
            raise MeasuringError("a pool has several replicas or lost one: the engines can't be counted")
        self._replicas = replicas
        return {pool: told[pool]["hops"] for pool in MODELS}


async def measure(
    client: Client, served: Served, questions: Sequence[Question], engines: Engines | None, options: argparse.Namespace
) -> list[Count]:
    routing: dict[str, object] = {"include_steps": True, "threshold": options.threshold}
    if served.thinks:
        routing["answer_by"] = "large"

    async def ask(question: Question) -> Count:
        before = await engines.hops() if engines else None
        reply = await client.chat(question.messages, "glimpse", glimpse=routing, max_tokens=options.max_tokens)
        after = await engines.hops() if engines else None
        counted = {pool: after[pool] - before[pool] for pool in MODELS} if before and after else None
        return count(reply, thinks=served.thinks, engines=counted)

    return await each(questions, ask, concurrency=1 if engines else options.concurrency, label="hops")


def shown(counts: Sequence[Count]) -> str:
    """A line a problem, the sums, and whether the bound held on every one."""
    engines = counts[0].counted_small is not None
    heads = ["problem", "steps", "escalations", "hops", "small hops", "paper's calls"]

    def cells(label: str, of: Sequence[Count]) -> list[str]:
        sums = [sum(getattr(one, name) for one in of) for name in ("steps", "escalations", "hops", "small_hops")]
        counted = [sum(one.counted_small or 0 for one in of), sum(one.counted_large or 0 for one in of)]
        return [label, *map(str, [*sums, sum(one.paper_calls for one in of), *(counted if engines else [])])]

    rows = [cells(str(number), [one]) for number, one in enumerate(counts, 1)]
    lines = [table([*heads, *(("engine small", "engine large") if engines else ())], [*rows, cells("all", counts)])]
    kept = sum(one.kept for one in counts)
    where = "counted in the engines" if engines else "from the replies"
    lines.append(f"Small hops <= escalations + 1, {where}: on {kept} of {len(counts)} problems")
    if engines:
        agreed = sum(one.agreed for one in counts)
        lines.append(f"Engines and replies count the same hops: on {agreed} of {len(counts)} problems")
    hops, paper = (sum(getattr(one, name) for one in counts) for name in ("hops", "paper_calls"))
    lines.append(
        f"{hops} hops where the paper's protocol makes {paper} calls ({paper / max(1, hops):.1f} times as many)"
    )
    return "\n\n".join([lines[0], "\n".join(lines[1:])])


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.hops", __doc__, concurrency=8)
    made.add_argument("--problems", type=at_least_one, default=100, help="of the generator (default: %(default)s)")
    made.add_argument("--threshold", type=float, help="nats (default: the server's)")
    made.add_argument("--max-tokens", type=at_least_one, help="reasoning and answer (default: the server's)")
    made.add_argument("--engines", action="store_true", help="count in the engines, one problem at a time")
    made.add_argument("--ray-address", metavar="HOST:PORT", help="their cluster (default: RAY_ADDRESS or here)")
    made.add_argument("--application", default="glimpse", help="their name in Serve (default: %(default)s)")
    return made.parse_args(arguments)


def main() -> None:
    options = read_options()
    questions = generated(options.seed, options.problems)

    async def ask(url: str) -> list[Count]:
        engines = Engines(options.application) if options.engines else None
        async with Client(url) as client:
            return await measure(client, await client.served(), questions, engines, options)

    with (
        serving(options.url, options.profile, options.port) as url,
        attached(options.ray_address) if options.engines else nullcontext(),
    ):
        counts = asyncio.run(ask(url))
    print(shown(counts))
    if options.json:
        rows = [asdict(one) for one in counts]
        options.json.write_text(json.dumps({"rows": rows, "kept": all(one.kept for one in counts)}, indent=1) + "\n")
    if not all(one.kept and one.agreed for one in counts):
        raise MeasuringError("the bound or the counts failed; the table tells where")


if __name__ == "__main__":
    run(main)
