"""A served pair for tests of what a client reads: scripted models that recite one text, byte by byte."""

import asyncio
import time
from array import array
from collections.abc import AsyncGenerator
from dataclasses import replace

from router.hop import Chunk, End, Hop, ReadAhead, unpack
from router.request import Request, Sampling, Text, Unavailable
from router.run import Run
from router.service import Defaults, StepRouter
from router.steps import Marks

END, OPEN, CLOSE = range(3)
FIRST_BYTE = 3
SPECIAL = {"<end>": END, "<think>": OPEN, "</think>": CLOSE}
PROMPT = 2


class Bytes:
    """A vocabulary of the 256 bytes and three special tokens."""

    name = "bytes"
    visible = (b"", b"", b"", *(bytes([b]) for b in range(256)))

    def __init__(self, *, thinks: bool = True) -> None:
        self.thinks = thinks
        self.ids = SPECIAL | {f"<0x{b:02X}>": FIRST_BYTE + b for b in range(256)}
        self.roles = SPECIAL_ROLES if thinks else {"end": END}
        self.marks = Marks.of(self.visible, close=CLOSE if thinks else None, ends=[END])
        self.closing = [CLOSE, *self.encode("\n\n")] if thinks else []

    def same_prompts(self, other: "Bytes") -> bool:
        return True

    def encode(self, text: str) -> list[int]:
        return [FIRST_BYTE + b for b in text.encode()]

    def encode_raw(self, text: str, *, begins: bool = True) -> list[int]:
        return self.encode(text)

    rows = 10_000

    def bytes(self, ids: array) -> bytes:
        return b"".join(self.visible[i] for i in ids)

    def text(self, ids: array) -> str:
        return self.bytes(ids).decode(errors="replace")

    def render(self, messages: object) -> array:
        return array("i", [FIRST_BYTE, OPEN])


SPECIAL_ROLES = {"end": END, "open": OPEN, "close": CLOSE}


def tokens(text: str) -> list[int]:
    """`</think>` and `<end>` in it are the tokens; all else is bytes."""
    ids = array("i")
    while text:
        special = next((token for token in SPECIAL if text.startswith(token)), None)
        ids.extend([SPECIAL[special]] if special else [FIRST_BYTE + b for b in text[0].encode()])
        text = text[len(special or " ") :]
    return list(ids)


class Reciter:
    """A pool that recites `script`; the steps whose number is in `hard` begin with a high entropy."""

    def __init__(self, script: list[int], chunk: int, hard: frozenset[int] = frozenset()) -> None:
        self.script, self.chunk, self.hard = script, chunk, hard
        self.hops: list[Hop] = []
        self.closed = 0
        self.asleep = self.away = self.heard_lately = False
        self.prefilled: list[Hop] = []
        self.words = Bytes()

    async def rests(self) -> bool:
        return self.asleep

    async def ask(self, method: str) -> dict:
        assert not self.asleep, "a probe has woken the pool"
        return {"pair": "p"}

    async def prefill(self, hop: Hop) -> ReadAhead:
        self.prefilled.append(hop)
        return ReadAhead(0, 0)

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        if self.away:
            raise Unavailable("small")
        self.hops.append(hop)
        await asyncio.sleep(0)
        run = Run(hop, self.words.marks, time.monotonic())
        at = hop.prefix_tokens - PROMPT
        bytes_of = self.words.bytes
        begun = bytes_of(unpack(hop.prefix)[PROMPT:]).count(b"\n\n")
        try:
            while run.ending is None:
                step = begun + bytes_of(run.written).count(b"\n\n")
                token = self.script[at] if at < len(self.script) else END
                run.take(token, 2.0 if step in self.hard else 0.0, 0.0)
                at += 1
                if run.ending is None and len(run.written) % self.chunk == 0:
                    yield run.drain(cached_tokens=0)
            yield run.drain(cached_tokens=0, end=End(run.ending, run.glimpse, watched=tuple(run.watched)))
        finally:
            self.closed += 1


MARKS = Bytes().marks
bytes_of = Bytes().bytes
DEFAULTS = Defaults(
    threshold=1.0,
    answer_by="large",
    max_large_share=1.0,
    max_tokens=400,
    answer_reserve=100,
    max_steps=64,
    step_tokens=200,
    deadline_s=60.0,
)


def router(
    text: str | list[int],
    *,
    chunk: int = 3,
    hard: frozenset[int] = frozenset(),
    thinks: bool = True,
    context: int = 1000,
    defaults: Defaults = DEFAULTS,
) -> tuple[StepRouter, dict[str, Reciter]]:
    script = tokens(text) if isinstance(text, str) else text
    pools = {model: Reciter(script, chunk, hard if model == "small" else frozenset()) for model in ("small", "large")}
    vocabularies = {"small": Bytes(thinks=thinks), "large": Bytes(thinks=thinks)}
    return StepRouter("p", vocabularies, pools, context, defaults), pools


def chat(*stop: str, **fields: object) -> Request:
    request = Request(id="r", messages=[{"role": "user", "content": "?"}], sampling=Sampling(stop=stop), streaming=True)
    return replace(request, **fields)


async def events(service: StepRouter, request: Request) -> list:
    return [event async for event in service.write(request)]


def voice(events: list, name: str) -> str:
    return "".join(e.text for e in events if isinstance(e, Text) and e.voice == name)
