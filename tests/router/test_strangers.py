"""Pairs whose vocabularies have nothing in common: what they hand each other is text."""

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest
from recited import CLOSE, DEFAULTS, END, FIRST_BYTE, Bytes, Reciter, chat, events, router, tokens, voice

from router.hop import Chunk, Hop
from router.prefix import ThroughText
from router.request import Refusal, Routing, StepWritten, Unavailable
from router.service import StepRouter
from router.steps import Marks


async def test_strangers_hand_each_other_whole_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.service.bridge", lambda small, large: ThroughText({"small": small, "large": large}))
    service, _ = router("One.\n\nTwo.")
    with pytest.raises(Refusal, match="whole steps") as refused:
        await service.begin(chat(routing=Routing(token_threshold=1.0)))
    assert refused.value.param == "glimpse.token_threshold"
    by_token = replace(DEFAULTS, token_threshold=1.0)
    with pytest.raises(ValueError, match=r"^routing\.token_threshold: "):
        router("One.\n\nTwo.", defaults=by_token)
    with pytest.raises(ValueError, match=r"^routing\.token_threshold: "):
        service.tune(by_token)


class Backwards(Bytes):
    """A stranger's vocabulary: the same bytes, numbered from the other end."""

    visible = (b"", b"", b"", *(bytes([b]) for b in reversed(range(256))))

    def __init__(self) -> None:
        super().__init__()
        self.marks = Marks.of(self.visible, close=CLOSE, ends=[END])
        self.closing = [CLOSE, *self.encode("\n\n")]

    def encode(self, text: str) -> list[int]:
        return [FIRST_BYTE + 255 - b for b in text.encode()]


class Breaking(Reciter):
    """Is gone for good after so many chunks."""

    def __init__(self, script: list[int], chunk: int, lives: int) -> None:
        super().__init__(script, chunk)
        self.lives = lives

    async def write(self, hop: Hop) -> AsyncGenerator[Chunk]:
        async for chunk in super().write(hop):
            if self.lives == 0:
                raise Unavailable("small")
            self.lives -= 1
            yield chunk


@pytest.mark.parametrize("lives", range(6))
async def test_a_step_that_a_stranger_takes_over_in_its_middle_is_told_whole(
    monkeypatch: pytest.MonkeyPatch, lives: int
) -> None:
    monkeypatch.setattr("router.service.bridge", lambda small, large: ThroughText({"small": small, "large": large}))
    text = "One.\n\nTwo.\n\nThree.\n\n</think>\n\n3"
    small, large = Bytes(), Backwards()
    mirrored = [token if token < FIRST_BYTE else 2 * FIRST_BYTE + 255 - token for token in tokens(text)]
    pools = {"small": Breaking(tokens(text), 3, lives), "large": Reciter(mirrored, 3)}
    pools["large"].words = large
    defaults = replace(DEFAULTS, dispensable=frozenset({"small"}))
    service = StepRouter("p", {"small": small, "large": large}, pools, 1000, defaults)
    read = await events(service, chat())
    steps = [event for event in read if isinstance(event, StepWritten)]
    assert [step.text for step in steps] == ["One.\n\n", "Two.\n\n", "Three.\n\n", ""]
    assert [step.tokens for step in steps] == [6, 6, 8, 1]
    assert sum(step.large_tokens for step in steps) == sum(step.tokens for step in steps) - 3 * lives
    assert voice(read, "content") == "3"
