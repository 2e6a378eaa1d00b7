"""Which tokens of its reasoning a pair's large model writes, for models of other shapes to replay.

    python -m loadtest.record my-pair.jsonl --profile my-pair.yaml --data problems.jsonl --problems 16
    python -m loadtest.recorded /tmp/replay --recording my-pair.jsonl --tokenizer DIR …

Starts the profile's system, has its requests traced, to a receiver in this process, and writes what they tell: a line a
request, `{"steps": [[tokens, by_large], …]}`. `by_large` is true or false of a whole step, or the places in it, from 0,
of the tokens that the large model wrote one by one (`token_threshold`), followed by those of them where the small
model had not guessed the same. A step too short to be replayed counts to the one before. An answer after the reasoning
is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import accumulate
from pathlib import Path

from loadtest.client import Client, each
from loadtest.command import PROFILE, MeasuringError, at_least_one, bare_parser, port_number, run, serving
from loadtest.hop_time import HOPS
from loadtest.questions import BOXED, Question, from_file, generated
from loadtest.receiver import Receiver, Span, traced_here
from loadtest.recorded import SHORTEST, Step

WRITTEN = "gen_ai.usage.output_tokens"


class Writer(Enum):
    """Of a token. GUESSED: the large model, and the small one had guessed it."""

    SMALL, LARGE, GUESSED = range(3)


def writers(trace: Iterable[Span], prompt_tokens: int, tokens: int) -> list[Writer]:
    """Who wrote each token of a request, after a prompt of so many tokens for the large model."""
    told = [Writer.SMALL] * tokens
    for hop in trace:
        if HOPS.get(hop.name) == "large" and hop.attributes["glimpse.hop"] != "answer":
            place, written = hop.attributes["glimpse.prefix.tokens"] - prompt_tokens, hop.attributes[WRITTEN]
            guessed = hop.attributes.get("glimpse.guess") == "right"
            told[place : place + written] = [Writer.GUESSED if guessed else Writer.LARGE] * written
    return told


def steps(lengths: Sequence[int], by: Sequence[Writer]) -> list[Step]:
    """Steps of such lengths, and who wrote them."""
    told: list[Step] = []
    for length, end in zip(joined := _joined(lengths), accumulate(joined), strict=True):
        within = by[end - length : end]
        if Writer.SMALL not in within:
            told.append(Step(length, hard=True))
            continue
        places = tuple(place for place, writer in enumerate(within) if writer is not Writer.SMALL)
        wrong = tuple(place for place, writer in enumerate(within) if writer is Writer.LARGE)
        told.append(Step(length, False, places, wrong))
    return told


def _joined(lengths: Iterable[int]) -> list[int]:
    joined: list[int] = []
    for length in lengths:
        if joined and min(length, joined[-1]) < SHORTEST:
            joined[-1] += length
        else:
            joined.append(length)
    return joined


def line(recorded: Sequence[Step]) -> str:
    told = [[step.tokens, step.unsure, step.wrong] if step.unsure else [step.tokens, step.hard] for step in recorded]
    return json.dumps({"steps": told}) + "\n"


async def record(url: str, receiver: Receiver, questions: Sequence[Question], options: argparse.Namespace) -> str:
    async with Client(url) as client:

        async def one(question: Question) -> str:
            trace = secrets.token_hex(16)
            reply = await client.chat(
                question.messages,
                "glimpse",
                headers={"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"},
                max_tokens=options.max_tokens,
                glimpse={"include_steps": True},
            )
            spans = await asyncio.to_thread(receiver.complete, trace)
            lengths = [step.tokens for step in reply.steps]
            if sum(lengths) < SHORTEST:
                raise MeasuringError(f"a reply has no reasoning to record; its question: {question.text[:80]!r}")
            if sum(span.name in HOPS for span in spans) < (reply.hops or 0):
                raise MeasuringError("not all spans of a request came in time; record fewer at a time (--concurrency)")
            by = writers(spans, reply.prompt_tokens.get("large", 0), sum(lengths))
            return line(steps(lengths, by))

        return "".join(await each(questions, one, concurrency=options.concurrency, label="recording"))


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    made = bare_parser("loadtest.record", __doc__)
    made.add_argument("recording", type=Path, help="where to write it")
    made.add_argument("--profile", type=Path, default=PROFILE, help="what to start (default: %(default)s)")
    made.add_argument("--port", type=port_number, help="where to start it (default: any free port)")
    made.add_argument("--data", type=Path, metavar="FILE.jsonl", help="with `question` and `answer`, not the generator")
    made.add_argument("--problems", type=at_least_one, default=16, metavar="N", help="(default: %(default)s)")
    made.add_argument("--seed", type=int, default=7, help="of the generator (default: %(default)s)")
    made.add_argument(
        "--concurrency", type=at_least_one, default=8, metavar="N", help="at a time (default: %(default)s)"
    )
    made.add_argument("--max-tokens", type=at_least_one, help="reasoning and answer (default: the profile's)")
    return made.parse_args(arguments)


def main() -> None:
    options = read_options()
    if options.data is None:
        questions = generated(options.seed, options.problems)
    else:
        questions = from_file(options.data, options.problems, BOXED)
    with traced_here() as receiver, serving(None, options.profile, options.port) as url:
        told = asyncio.run(record(url, receiver, questions, options))
    options.recording.write_text(told)
    print(f"{options.recording}: {len(questions)} requests", file=sys.stderr)


if __name__ == "__main__":
    run(main)
