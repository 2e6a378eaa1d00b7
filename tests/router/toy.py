"""A toy language for tests of the step loop: models are functions of the prefix, so every run can be replayed."""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import AsyncGenerator, Iterable, Mapping

from router.budget import Budget
from router.hop import Chunk, End, Hop, HopLost, unpack
from router.loop import write
from router.policy import Policy
from router.prefix import Prefix, SameIds
from router.request import Model, Sampling, Unavailable
from router.run import Run
from router.steps import Marks
from router.transcript import Passage, Task, Transcript

TEXTS: list[bytes] = [b"<end>", b"<think>", b"</think>", b".\n\n", b"\n\n", b"\n", b"\nx", b" "] + [
    f" w{n}".encode() for n in range(24)
]
END, OPEN, CLOSE, STOP, BLANK, NEWLINE, NEWLINE_X, SPACE = range(8)
WORD = 8
MARKS = Marks.of(TEXTS, close=CLOSE, ends=[END])


class ToyModel:
    """Draws the next token from a hash of its name and the prefix; greedy models of one name always agree.

    close_rate: how often a step begins with the end of thinking.
    """

    def __init__(self, name: str, *, close_rate: float = 0.05) -> None:
        self.name, self.close_rate = name, close_rate

    def next(self, prefix: Iterable[int]) -> tuple[int, float]:
        """Token and entropy in nats."""
        digest = hashlib.blake2b(self.name.encode() + array("i", prefix).tobytes(), digest_size=8).digest()
        dice = digest[0] / 256
        entropy = 3.0 * digest[1] / 256
        if dice < self.close_rate:
            return CLOSE, entropy
        if dice < self.close_rate + 0.02:
            return END, entropy
        return 3 + digest[2] % (len(TEXTS) - 3), entropy


class Follower(ToyModel):
    """The large model, which writes the small one's token where its entropy is below `follows`, else another word."""

    def __init__(self, seed: str, *, follows: float = 2.0) -> None:
        super().__init__("large" + seed)
        self._led, self._follows = ToyModel("small" + seed), follows

    def next(self, prefix: Iterable[int]) -> tuple[int, float]:
        token, entropy = super().next(prefix)
        led, _ = self._led.next(prefix)
        if entropy < self._follows:
            return led, entropy
        return (token - 1 if token == led > WORD else token, entropy)


class ToyPool:
    """A pool whose replicas drive a `ToyModel`, in chunks of `chunk` tokens. `dies_after` chunks a hop is lost."""

    def __init__(self, model: ToyModel, *, chunk: int = 3) -> None:
        self.model, self.chunk = model, chunk
        self.hops: list[Hop] = []
        self.closed = self.generated = 0

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        self.hops.append(hop)
        try:
            for chunk in chunks(self.model, hop, self.chunk):
                self.generated += chunk.tokens + (chunk.end.discarded_tokens if chunk.end else 0)
                yield chunk
        finally:
            self.closed += 1


class MortalPool(ToyPool):
    """Loses each hop after every `lives` chunks and takes it up again, as a pool over Serve does."""

    def __init__(self, model: ToyModel, *, chunk: int = 3, lives: int = 1) -> None:
        super().__init__(model, chunk=chunk)
        self.lives, self.deaths = lives, 0

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        while True:
            try:
                async for chunk in self._attempt(hop):
                    hop = hop.after(chunk)
                    yield chunk
                return
            except HopLost:
                self.deaths += 1

    async def _attempt(self, hop: Hop) -> AsyncGenerator[Chunk]:
        for n, chunk in enumerate(chunks(self.model, hop, self.chunk)):
            if n == self.lives:
                raise HopLost("killed")
            yield chunk


class AbsentPool(ToyPool):
    """The `absent` model's. Answers `hops` hops, then never again."""

    def __init__(self, model: ToyModel, after_hops: int, absent: Model = "large") -> None:
        super().__init__(model, chunk=2)
        self.after_hops, self.absent = after_hops, absent

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        if len(self.hops) >= self.after_hops:
            raise Unavailable(self.absent)
        async for chunk in super().write(hop):
            yield chunk


def chunks(model: ToyModel, hop: Hop, size: int) -> Iterable[Chunk]:
    run = Run(hop, MARKS, time.monotonic())
    prefix = unpack(hop.prefix)
    taken = 0
    while run.ending is None:
        token, entropy = model.next(prefix + run.written)
        run.take(token, entropy if run.wants_entropy else None, time.monotonic())
        taken += 1
        if run.ending is None and (run.guess or taken % size == 0):
            yield run.drain(cached_tokens=0)
    yield run.drain(cached_tokens=0, end=End(run.ending, run.glimpse, discarded_tokens=taken - run.kept))


def task(policy: Policy, *, tokens: int = 400, answer_by: Model = "large", **changes: object) -> Task:
    fields: dict = {
        "id": "t",
        "pair": "p",
        "policy": policy,
        "answer_by": answer_by,
        "budget": Budget.of(tokens, reserve=50, steps=64, step_tokens=20),
        "sampling": Sampling(temperature=0.0),
        "closing": {"small": [CLOSE, BLANK], "large": [CLOSE, BLANK]},
    }
    return Task(**(fields | changes))


def prefix(prompts: Mapping[Model, list[int]] | None = None) -> Prefix:
    return Prefix(prompts or {"small": [9, OPEN], "large": [9, OPEN]}, SameIds())


async def run(work: Task, pools: dict) -> tuple[Transcript, list[Passage]]:
    page = Transcript(work, prefix())
    return page, [passage async for passage in write(page, pools)]


def tokens(passages: list[Passage]) -> list[int]:
    return [i for p in passages for i in p.thought + p.answer]


def pools(seed: str, **options: int) -> dict:
    return {model: ToyPool(ToyModel(model + seed), **options) for model in ("small", "large")}


def following(seed: str, *, follows: float = 2.0, **options: int) -> dict:
    large = Follower(seed, follows=follows)
    return {"small": ToyPool(ToyModel("small" + seed), **options), "large": ToyPool(large, **options)}
