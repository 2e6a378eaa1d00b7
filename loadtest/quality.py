"""The small model alone, the large one alone, routing by entropy and routing at random, over the same problems.

    python -m loadtest.quality --problems 500                     # the embedded pair and its generator
    python -m loadtest.quality --url http://127.0.0.1:8000 --data gsm8k.jsonl --thresholds 0.5 1.0 --concurrency 1

Everything is greedy. A share of tokens is over all problems together, reasoning and answer. Random routing is
tuned until its share of tokens by the large model matches the routed one's. `oracle` is made of the replies of the two
models alone: the large one's where only that is right, else the small one's, which is the best that a router can do
which picks one model for each request. AUROC: see loadtest/hard_steps.py; in a file of problems the right reasoning is
the large model's own, of the problems that it solved.

Modes run one after the other, so a later one finds the questions (and steps that it shares with an earlier one) in
the engines' prefix caches. Latencies are what one client sees: compare them at --concurrency 1, and where reading a
prompt costs something, one mode at a time on a fresh server. The models alone are asked without an account of their
steps, which would slow them down, so their hops are not known. `cut` counts the replies that --max-tokens ended: where
there are many, accuracy says little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from loadtest.client import Client, Reply, Served, each
from loadtest.command import at_least_one, parser, run, serving
from loadtest.frontier import plot
from loadtest.hard_steps import Separation, separation, steps_of, tokenizer_of
from loadtest.outcomes import Outcome, Pairing, Way, oracle, pairings
from loadtest.questions import BOXED, Question, from_file, generated
from loadtest.table import table
from router.answers import extract

MODES = ("small", "large", "routed", "random")
PROBLEMS = 500
SHARE_ROUNDS = 4
SHARE_ABOVE = 0.03
"""Random routing may have this much more of its tokens from the large model than what it is compared with, and
nothing less: a control that loses should not lose for want of help."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where ways are tried: a server, the problems, and how they are put to it."""

    client: Client
    questions: Sequence[Question]
    seed: int
    concurrency: int
    max_tokens: int | None

    async def attempt(self, way: Way) -> Outcome:
        async def ask(numbered: tuple[int, Question]) -> Reply:
            index, question = numbered
            # One seed for all would let chance fall on the same steps of every problem.
            fields = way.fields(self.seed * 1_000_003 + index)
            return await self.client.chat(question.messages, max_tokens=self.max_tokens, **fields)  # type: ignore[arg-type]

        numbered = list(enumerate(self.questions))
        replies = tuple(await each(numbered, ask, concurrency=self.concurrency, label=way.label))
        answers = tuple(extract(reply.content) for reply in replies)
        right = tuple(found == question.answer for found, question in zip(answers, self.questions, strict=True))
        return Outcome(way, replies, answers, right)

    async def attempt_at_random(self, routed: Outcome) -> Outcome:
        """Random routing with the same share of tokens by the large model as `routed`, or slightly more."""
        target = routed.large_token_share + SHARE_ABOVE / 4
        thinking = sum(reply.reasoning_tokens for reply in routed.replies) / max(1, routed.tokens)
        # Who writes the answer is not left to chance: its share counts whatever the dice say.
        thought = sum(step.by_large for reply in routed.replies for step in reply.steps)
        answers = routed.large_token_share - thought / max(1, routed.tokens)
        chance = (target - answers) / (thinking or 1.0)
        tried: list[Outcome] = []
        for _ in range(SHARE_ROUNDS):
            way = replace(routed.way, mode="random", random_share=min(1.0, max(0.0, chance)))
            tried.append(await self.attempt(way))
            surplus = tried[-1].large_token_share - routed.large_token_share
            if 0 <= surplus <= SHARE_ABOVE:
                return tried[-1]
            chance = (way.random_share or 0.0) + (target - tried[-1].large_token_share) / (thinking or 1.0)
        nearest = min(tried, key=lambda outcome: abs(outcome.large_token_share - target))
        surplus = nearest.large_token_share - routed.large_token_share
        note = f"next to {routed.way.label}, random has {100 * surplus:+.1f} points of tokens by the large model"
        print(f"quality: {note}; more problems bring them closer", file=sys.stderr)
        return nearest


def with_right_steps(questions: Sequence[Question], large: Outcome | None, thinks: bool) -> list[Question]:
    """The questions whose right reasoning is known: the generator's, else the large model's where it was right."""
    if questions[0].steps is not None:
        return list(questions)
    assert large is not None
    return [
        replace(question, steps=steps_of(reply.reasoning if thinks else reply.content))
        for question, reply, right in zip(questions, large.replies, large.right, strict=True)
        if right
    ]


def thresholds_of(gates: tuple[float | None, float | None]) -> str:
    """The threshold, and that of tokens after it where there is one."""
    return " / ".join(f"{gate:g}" for gate in gates if gate is not None) or "–"


def shown(outcomes: Sequence[Outcome], compared: Sequence[Pairing], separated: Separation | None) -> str:
    """The report."""
    heads = ("mode", "threshold", "problems", "accuracy", "95 %", "large tokens", "latency", "tokens", "cut", "hops")
    rows = []
    for outcome in outcomes:
        row, accuracy, gates = outcome.row(), outcome.accuracy, outcome.way.gates
        rows.append(
            (
                outcome.way.mode,
                f"({thresholds_of(gates)})" if outcome.way.mode == "random" else thresholds_of(gates),
                str(len(outcome.replies)),
                f"{accuracy.value:.1%}",
                f"{accuracy.low:.1%} – {accuracy.high:.1%}",
                f"{outcome.large_token_share:.1%}",
                f"{row['mean_latency_s']:.2f} s",
                f"{outcome.tokens}",
                str(outcome.cut),
                "–" if outcome.hops is None else f"{outcome.hops}",
                "–" if outcome.escalations is None else f"{outcome.escalations}",
            )
        )
    parts = [table((*heads, "escalations"), rows)]
    if compared:
        differences = [
            (
                f"{one.way.label} − {one.other.mode}",
                f"{100 * one.difference.value:+.1f} points",
                f"{100 * one.difference.low:+.1f} – {100 * one.difference.high:+.1f}",
            )
            for one in compared
        ]
        parts.append(table(("accuracy, same problems", "difference", "paired 95 %"), differences))
    if separated is not None:
        area = "unknown" if separated.auroc is None else f"{separated.auroc:.4f}"
        parts.append(
            f"AUROC of first-token entropy: {area} "
            f"({separated.wrong} of {len(separated.glimpsed)} steps differ from the right ones)"
        )
    return "\n\n".join(parts)


def as_json(
    bench: Bench,
    served: Served,
    outcomes: Sequence[Outcome],
    compared: Sequence[Pairing],
    separated: Separation | None,
) -> dict[str, Any]:
    """`rows` and `auroc` are what others rely on; the rest is there to look things up in."""
    return {
        "rows": [outcome.row() for outcome in outcomes],
        "auroc": separated.auroc if separated else None,
        "auroc_steps": len(separated.glimpsed) if separated else 0,
        "auroc_wrong_steps": separated.wrong if separated else 0,
        "paired": [
            {
                "mode": one.way.mode,
                "threshold": one.way.threshold,
                "token_threshold": one.way.token_threshold,
                "minus": one.other.mode,
                "difference": one.difference.value,
                "interval": [one.difference.low, one.difference.high],
            }
            for one in compared
        ],
        "served": asdict(served),
        "seed": bench.seed,
        "concurrency": bench.concurrency,
        "max_tokens": bench.max_tokens,
        "problems": [
            {
                "question": question.text,
                "answer": str(question.answer),
                "replies": [
                    {
                        **asdict(outcome.way),
                        "answer": None if outcome.answers[index] is None else str(outcome.answers[index]),
                        "right": outcome.right[index],
                        **asdict(outcome.replies[index]),
                    }
                    for outcome in outcomes
                ],
            }
            for index, question in enumerate(bench.questions)
        ],
    }


async def measure(bench: Bench, served: Served, options: argparse.Namespace) -> None:
    """Every way asked for, then the report."""
    tokenizer = tokenizer_of(options.tokenizer or served.small) if options.auroc else None
    outcomes: list[Outcome] = []

    def save(best: Outcome | None = None, separated: Separation | None = None) -> None:
        if options.json:
            compared = pairings([*outcomes, best] if best else outcomes)
            saved = as_json(bench, served, outcomes, compared, separated)
            options.json.write_text(json.dumps(saved | {"oracle": best.row() if best else None}, indent=1) + "\n")

    async def attempted(outcome: Awaitable[Outcome]) -> None:
        outcomes.append(await outcome)
        save()  # for a run that does not come to its end

    for mode in ("small", "large"):
        if mode in options.modes:
            await attempted(bench.attempt(Way(mode)))
    for gates in product(
        options.thresholds or (served.threshold,), options.token_thresholds or (served.token_threshold,)
    ):
        if "routed" in options.modes:
            await attempted(bench.attempt(Way("routed", *gates)))
        if "random" in options.modes:
            await attempted(bench.attempt_at_random(outcomes[-1]))
    separated = None
    alone = {outcome.way.mode: outcome for outcome in outcomes if outcome.way.alone}
    best = oracle(alone["small"], alone["large"]) if len(alone) == 2 else None
    if tokenizer is not None:
        known = with_right_steps(bench.questions, alone.get("large"), served.thinks)[: options.auroc_problems]
        separated = await separation(bench.client, served, tokenizer, known, bench.concurrency)
    every = [*outcomes, best] if best else outcomes
    print(shown(every, pairings(every), separated))
    save(best, separated)
    if options.plot:
        plot([outcome.row() for outcome in every], options.plot)


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def mode_names(text: str) -> list[str]:
    if unknown := set(words(text)) - set(MODES):
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(MODES)}")
    return words(text)


def nats(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of nats") from None
    if not value >= 0:
        raise argparse.ArgumentTypeError("a threshold is 0 or more")
    return value


def several(text: str) -> list[float]:
    return [nats(word) for word in words(text)]


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser("loadtest.quality", __doc__, concurrency=8)
    made.add_argument("--problems", type=at_least_one, help=f"how many (default: {PROBLEMS}, or all of --data)")
    made.add_argument("--data", type=Path, metavar="FILE.jsonl", help="with `question` and `answer`, not the generator")
    made.add_argument(
        "--modes", type=mode_names, metavar="MODE", help=f"of {' '.join(MODES)} (default: all)", nargs="+"
    )
    made.add_argument("--thresholds", type=several, metavar="NATS", help="of routed (default: the server's)", nargs="+")
    made.add_argument(
        "--token-thresholds",
        type=several,
        metavar="NATS",
        help="of routed as well, each with each of --thresholds; 3 is none (default: the server's)",
        nargs="+",
    )
    made.add_argument("--prompt-suffix", help="after every question of --data (default: asks for \\boxed{})")
    made.add_argument("--max-tokens", type=at_least_one, help="reasoning and answer (default: the server's)")
    made.add_argument("--auroc", action=argparse.BooleanOptionalAction, help="(default: unless --data)")
    made.add_argument("--auroc-problems", type=at_least_one, default=100, metavar="N", help="(default: %(default)s)")
    made.add_argument("--tokenizer", help="the small model's, for AUROC (default: where the server says it is)")
    made.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw accuracy against latency and share there (PNG, SVG, PDF)"
    )
    options = made.parse_args(arguments)
    options.modes = list(chain.from_iterable(options.modes or [MODES]))
    options.thresholds = list(chain.from_iterable(options.thresholds or []))
    options.token_thresholds = list(chain.from_iterable(options.token_thresholds or []))
    if "random" in options.modes and "routed" not in options.modes:
        made.error("random matches the share of routed: add routed to --modes")
    options.auroc = options.data is None if options.auroc is None else options.auroc
    if options.auroc and options.data is not None and "large" not in options.modes:
        made.error("AUROC over a file needs the large model's reasoning: add large to --modes, or --no-auroc")
    return options


def main() -> None:
    options = read_options()
    if options.data is None:
        questions = generated(options.seed, options.problems or PROBLEMS)
    else:
        suffix = BOXED if options.prompt_suffix is None else options.prompt_suffix
        questions = from_file(options.data, options.problems, suffix)

    async def ask(url: str) -> None:
        async with Client(url) as client:
            bench = Bench(client, questions, options.seed, options.concurrency, options.max_tokens)
            await measure(bench, await client.served(), options)

    with serving(options.url, options.profile, options.port) as url:
        asyncio.run(ask(url))


if __name__ == "__main__":
    run(main)
