"""Shadow runs around scripted services."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from recited import chat, events, router, voice

from router.hop import LAST
from router.request import Event, Finished, Routing
from router.shadow import Comparison, Shadowed, same

TEXT = "easy.\n\nhard.\n\n</think>The answer is 42.<end>"


class Watched:
    """A router whose shadow runs are looked at, and whose pool is as idle as the test says."""

    def __init__(self, *, idle: bool = True, share: float = 1.0, text: str = TEXT) -> None:
        self.service, self.pools = router(text, hard=frozenset({1}))
        self.idle, self.wanted = idle, False
        self.kept: list[Comparison] = []
        self.shadowed = Shadowed(
            self.service,
            self.service,
            share=share,
            idle=self._idle,
            busy=lambda: self.wanted,
            keep=self._keep,
            seed=1,
        )

    async def _idle(self) -> bool:
        return self.idle

    async def _keep(self, compared: Comparison) -> None:
        self.kept.append(compared)

    async def ask(self, **fields: object) -> list[Event]:
        told = await events(self.shadowed, chat(**fields))  # type: ignore[arg-type]
        if self.shadowed._running is not None:
            await self.shadowed._running
        return told


async def test_a_routed_request_is_compared_with_the_large_model_alone() -> None:
    watched = Watched()
    told = await watched.ask(tenant="acme")
    (found,) = watched.kept
    assert found.agree
    assert (found.id, found.tenant, found.threshold) == ("r", "acme", 1.0)
    last = told[-1]
    assert isinstance(last, Finished)
    assert found.routed == last.usage
    assert found.large.completion_tokens == sum(used.completion_tokens for used in last.usage.values())
    shadow = watched.pools["large"].hops[-1]
    assert (shadow.request, shadow.priority, shadow.tenant) == ("shadow-r", LAST, "acme")


async def test_what_it_was_routed_by_is_kept() -> None:
    watched = Watched()
    await watched.ask(routing=Routing(threshold=3.0, token_threshold=0.5))
    (found,) = watched.kept
    assert (found.threshold, found.token_threshold) == (3.0, 0.5)


async def test_the_client_gets_what_it_gets_without() -> None:
    alone = await events(router(TEXT, hard=frozenset({1}))[0], chat())
    assert voice(await Watched().ask(), "content") == voice(alone, "content")


@pytest.mark.parametrize("mode", ["small", "large", "random"])
async def test_only_routed_requests_are_followed(mode: str) -> None:
    watched = Watched()
    await watched.ask(routing=Routing(mode=mode, random_share=0.5))  # type: ignore[arg-type]
    assert not watched.kept


async def test_a_busy_pool_is_left_alone() -> None:
    watched = Watched(idle=False)
    await watched.ask()
    assert not watched.kept
    assert not any(hop.priority == LAST for hop in watched.pools["large"].hops)


async def test_a_live_request_ends_a_run() -> None:
    watched = Watched()
    watched.wanted = True
    await watched.ask()
    assert not watched.kept
    assert watched.pools["large"].closed == len(watched.pools["large"].hops)


async def test_a_share_of_them_is_followed() -> None:
    watched = Watched(share=0.3)
    for _ in range(100):
        await watched.ask()
    assert 15 <= len(watched.kept) <= 45


async def test_a_run_that_fails_harms_nobody() -> None:
    watched = Watched()

    async def broken(hop: object) -> AsyncGenerator[None]:
        raise RuntimeError("no")
        yield

    large = watched.pools["large"]
    write = large.write
    large.write = lambda hop: broken(hop) if hop.priority == LAST else write(hop)  # type: ignore[method-assign]
    assert isinstance((await watched.ask())[-1], Finished)
    assert not watched.kept


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [
        ("The answer is 42.", "So it is \\boxed{42}", True),
        ("The answer is 42.", "The answer is 43.", False),
        ("Paris,  of course", "Paris, of course", True),
        ("Paris", "Rome", False),
    ],
)
def test_what_counts_as_the_same(first: str, second: str, agree: bool) -> None:
    assert same(first, second) is agree
