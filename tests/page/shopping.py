"""A service that reasons about the embedded pair's questions as the pair was taught to: for tests and for pictures of
the page without an engine. The text is the right reasoning; who writes a step, entropies and times are made up."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from deployments.pocket.problems import ADJECTIVES, CATALOGUE, NOUNS, Item
from router.request import Event, Finished, Model, ModelUsage, Pair, Request, StepWritten, Text

PAIR = Pair(
    fingerprint="9f2c61d0a7be4413",
    names={"small": "deployments/pocket/models/small", "large": "deployments/pocket/models/large"},
    thinks=True,
    handover="ids",
    context_tokens=4096,
    threshold=1.0,
    answer_by="large",
)
MS_PER_TOKEN: dict[Model, float] = {"small": 3.1, "large": 11.4}
_GOODS = re.compile(rf"(\d) ({'|'.join(ADJECTIVES)}) ({'|'.join(NOUNS)})s?\b")


@dataclass(frozen=True)
class Scripted:
    """A step to come."""

    text: str
    entropy: float

    @property
    def tokens(self) -> int:
        return len(re.findall(r"\w+|[^\w\s]", self.text)) + 1


def reasoning(question: str, *, guesses: bool = False) -> tuple[list[Scripted], str]:
    """The steps and the answer to a question as the embedded pair gets them; or as the small model alone does, which
    guesses the prices that it has not learnt."""
    start = re.search(r"(\d+) coins and ", question)
    amount = int(start[1]) if start else 0
    goods = [
        (re.search(r"(\w+) $", question[: found.start()]), int(found[1]), Item(found[2], found[3]))
        for found in _GOODS.finditer(question)
    ]
    steps: list[Scripted] = []
    first = goods[0]
    deed = f"{first[0][1]} " if start and first[0] else ""
    opening = f"{amount} coins {'to start with' if start else 'so far'}, "
    steps.append(Scripted(f"{opening}{deed}{first[1]} {first[2].named(first[1])}.\n\n", 0.04))
    for index, (word, quantity, item) in enumerate(goods):
        price = CATALOGUE.price(item) or 9
        if guesses and item not in CATALOGUE.common:
            price = 6 + (price + 5) % 20
        bought = bool(start) and word is not None and word[1] == "buys"
        sign, after = ("-", amount - quantity * price) if bought else ("+", amount + quantity * price)
        unsure = 2.31 + 0.17 * index if item not in CATALOGUE.common else 0.21 + 0.12 * index
        named = item.named(quantity)
        steps.append(Scripted(f"{price} coins for one {item.named(1)}, {quantity} x {price}.\n\n", unsure))
        steps.append(
            Scripted(f"{quantity * price} coins for {quantity} {named}, {amount} {sign} {quantity * price}.\n\n", 0.07)
        )
        rest = ""
        if index + 1 < len(goods):
            verb, count, next_item = goods[index + 1]
            rest = f", then {verb[1] + ' ' if start and verb else ''}{count} {next_item.named(count)}"
        so_far = f"{after} coins {'left' if start else 'so far'} after the {named}{rest}.\n\n"
        steps.append(Scripted(so_far, 0.46 + 0.31 * index))
        amount = after
    if note := re.search(r"pays with (\d+) coins", question):
        amount = int(note[1]) - amount
        steps.append(Scripted(f"{amount} coins of change.\n\n", 0.12))
    return steps, f"The answer is {amount}."


@dataclass
class Shopping:
    """Plays the reasoning in pieces. `pace` is how much of the made-up times it really takes."""

    pair: Pair = PAIR
    pace: float = 1.0
    requests: list[Request] = field(default_factory=list)

    def unthinking(self) -> None:
        self.pair = replace(self.pair, thinks=False)

    async def ready(self) -> str | None:
        return None

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        self.requests.append(request)
        assert request.messages
        routing = request.routing
        steps, answer = reasoning(str(request.messages[-1]["content"]), guesses=routing.mode == "small")
        threshold = self.pair.threshold if routing.threshold is None else routing.threshold
        written: dict[Model, int] = {"small": 0, "large": 0}
        hops, last = 0, None
        for index, step in enumerate(steps):
            model: Model = "small" if step.entropy <= threshold else "large"
            if routing.mode in ("small", "large"):
                model = routing.mode
            hops += model != last
            last = model
            async for piece in self._pieces(step.text, model, step.tokens):
                yield Text("reasoning" if self.pair.thinks else "content", piece)
            ms = step.tokens * MS_PER_TOKEN[model] + 2.5 * (index % 3)
            entropy = None if routing.mode == "large" else step.entropy
            done = sum(written.values()) + 60
            yield StepWritten(index, model, entropy, step.tokens, 64, done, ms, step.text)
            written[model] += step.tokens
        by: Model = "small" if routing.mode == "small" else "large"
        if self.pair.thinks:
            async for piece in self._pieces(answer, by, 7):
                yield Text("content", piece)
            written[by] += 7
        yield Finished(
            finish_reason="stop",
            usage={model: ModelUsage(60, tokens, 0) for model, tokens in written.items() if tokens},
            reasoning_tokens=sum(written.values()) - 7,
            discarded_tokens=0,
            threshold=threshold if routing.mode == "routed" else None,
            escalations=sum(step.entropy > threshold for step in steps),
            hops=hops + 1,
            resumed_hops=0,
            pair=self.pair.fingerprint,
        )

    async def _pieces(self, text: str, model: Model, tokens: int) -> AsyncGenerator[str]:
        pieces: Sequence[str] = re.findall(r"\S+\s*|\s+", text)
        pause = tokens * MS_PER_TOKEN[model] / len(pieces) / 1000 * self.pace
        for piece in pieces:
            await asyncio.sleep(pause)
            yield piece
