from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.request import Refusal
from router.tenancy.fairness import SPREAD, FairQueue


async def serve(queue: FairQueue, load: dict[str, int], *, used: int = 100, stop_after: int, **more: object) -> Counter:
    """Tokens by tenant while each keeps so many requests waiting or running, until that many requests are done."""
    got: Counter[str] = Counter()
    done = asyncio.Event()

    async def client(tenant: str) -> None:
        while not done.is_set():
            async with queue.turn(tenant, **more.get(tenant, {})) as turn:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
                turn.used = used
                if not done.is_set():
                    got[tenant] += used
                    if sum(got.values()) >= stop_after * used:
                        done.set()

    await asyncio.gather(*(client(tenant) for tenant, clients in load.items() for _ in range(clients)))
    return got


async def test_equal_weights_get_equal_tokens_whatever_they_offer() -> None:
    got = await serve(FairQueue(8, 10_000, 600), {"modest": 16, "greedy": 160}, stop_after=2000)
    assert got["modest"] / got["greedy"] == pytest.approx(1.0, rel=0.05)


async def test_who_comes_while_the_first_requests_run_pays_for_no_wrong_guess() -> None:
    """Nothing is known yet of what requests come to, so those that run count for more than they turn out to be."""
    got = await serve(FairQueue(16, 10_000, 600), {"modest": 32, "greedy": 320}, used=20, stop_after=200)
    assert got["modest"] / got["greedy"] == pytest.approx(1.0, rel=0.1)


async def test_nobody_waits_beyond_its_own_deadline() -> None:
    queue = FairQueue(1, 10, 60.0)
    async with queue.turn("first"):
        with pytest.raises(Refusal) as refused:
            async with queue.turn("second", deadline=time.monotonic() + 0.05):
                pass
        assert (refused.value.status, refused.value.code) == (504, "deadline")
        assert queue.waiting == 0
    async with queue.turn("second", deadline=time.monotonic() + 60):
        pass


async def test_weights_divide_tokens() -> None:
    queue = FairQueue(8, 10_000, 600)
    got = await serve(queue, {"one": 50, "three": 50}, stop_after=2000, three={"weight": 3.0})
    assert got["three"] / got["one"] == pytest.approx(3.0, rel=0.1)


async def test_long_requests_do_not_get_more() -> None:
    queue, got, done = FairQueue(4, 10_000, 600), Counter[str](), asyncio.Event()

    async def client(tenant: str, used: int) -> None:
        while not done.is_set():
            async with queue.turn(tenant) as turn:
                await asyncio.sleep(0)
                turn.used = used
                if not done.is_set():
                    got[tenant] += used
                if sum(got.values()) > 200_000:
                    done.set()

    await asyncio.gather(*(client("long", 900) for _ in range(20)), *(client("short", 100) for _ in range(20)))
    assert got["long"] / got["short"] == pytest.approx(1.0, rel=0.1)


async def test_a_newcomer_does_not_catch_up_on_what_it_missed() -> None:
    queue = FairQueue(4, 10_000, 600)
    await serve(queue, {"old": 20}, stop_after=1000)
    got = await serve(queue, {"old": 20, "new": 20}, stop_after=1000)
    assert got["new"] / got["old"] == pytest.approx(1.0, rel=0.1)


async def turns(queue: FairQueue, wanted: list[tuple[str, str]]) -> list[str]:
    """The order in which waiting requests get the only place."""
    order: list[str] = []

    async def one(tenant: str, priority: str) -> None:
        async with queue.turn(tenant, priority) as turn:  # type: ignore[arg-type]
            order.append(tenant)
            turn.used = 100

    async with queue.turn("first"):
        waiting = [asyncio.create_task(one(*want)) for want in wanted]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    return order


async def test_a_higher_class_comes_first() -> None:
    wanted = [("low", "low")] * 3 + [("normal", "normal")] * 2 + [("high", "high")]
    order = await turns(FairQueue(1, 100, 600), wanted)
    assert order == ["high", "normal", "normal", "low", "low", "low"]


async def test_a_thousand_waiting_requests_do_not_push_out_one() -> None:
    order = await turns(FairQueue(1, 2000, 600), [("crowd", "normal")] * 1000 + [("single", "normal")])
    assert order.index("single") <= 1
    assert len(order) == 1001


async def test_when_nobody_else_can_wait_the_crowd_gives_way() -> None:
    queue, refused, order = FairQueue(1, 10, 600), Counter[str](), []

    async def one(tenant: str) -> None:
        try:
            async with queue.turn(tenant):
                order.append(tenant)
        except Refusal as refusal:
            refused[f"{tenant} {refusal.status} {refusal.code}"] += 1

    async with queue.turn("first"):
        crowd = [asyncio.create_task(one("crowd")) for _ in range(30)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(one(f"other-{n}")) for n in range(5)]
        await asyncio.sleep(0.01)
        assert queue.waiting == 10
    await asyncio.gather(*crowd, *others)
    assert refused == {"crowd 429 overloaded": 25}
    assert sum(tenant != "crowd" for tenant in order) == 5


CLASSES = ["high", "normal", "low"]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(CLASSES), st.sampled_from([0.5, 1.0])), max_size=30),
    st.integers(0, 4),
)
def test_who_will_be_refused_can_be_told_beforehand(asked: list[tuple[str, str, float]], room: int) -> None:
    async def run() -> None:
        queue, done = FairQueue(2, room, 600), asyncio.Event()

        async def one(turn: tuple[str, str, float]) -> None:
            async with queue.turn(*turn):  # type: ignore[arg-type]
                await done.wait()

        tasks = []
        for turn in asked:
            expected = queue.refuses(*turn)  # type: ignore[arg-type]
            tasks.append(asyncio.create_task(one(turn)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert tasks[-1].done() == expected
        done.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


async def test_who_waits_too_long_is_told_to_come_again() -> None:
    queue = FairQueue(1, 10, 0.02)
    async with queue.turn("a"):
        with pytest.raises(Refusal) as refused:
            async with queue.turn("b"):
                pass
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1.0)
    assert (queue.running, queue.waiting) == (0, 0)


async def test_who_gives_up_leaves_its_place() -> None:
    queue = FairQueue(1, 10, 600)

    async def wait() -> None:
        async with queue.turn("b"):
            await asyncio.sleep(0)

    async with queue.turn("a"):
        tasks = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[1].cancel()
        # One of them may be handed the place in the moment that it gives up.
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (queue.running, queue.waiting) == (0, 0)
    async with queue.turn("c"):
        assert queue.running == 1


async def test_priorities_for_the_engines_tell_class_and_share() -> None:
    queue = FairQueue(10, 10, 600)
    async with queue.turn("a", weight=0.1) as first, queue.turn("b") as fresh, queue.turn("a", weight=0.1) as second:
        assert second.priority > first.priority
        assert fresh.priority < second.priority
        async with queue.turn("a", "high") as high, queue.turn("z", "low") as low:
            assert high.priority < first.priority <= SPREAD + 1 <= 2 * SPREAD <= low.priority


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(CLASSES), st.booleans()), max_size=40))
def test_places_are_never_lost_nor_given_twice(asked: list[tuple[str, str, bool]]) -> None:
    async def run() -> None:
        queue, most, running = FairQueue(2, 6, 600), 0, 0

        async def one(tenant: str, priority: str) -> None:
            nonlocal most, running
            try:
                async with queue.turn(tenant, priority) as turn:  # type: ignore[arg-type]
                    running += 1
                    most = max(most, running)
                    try:
                        await asyncio.sleep(0)
                    finally:
                        running -= 1
                    turn.used = 50
            except Refusal:
                pass

        tasks = []
        for tenant, priority, gives_up in asked:
            task = asyncio.create_task(one(tenant, priority))
            tasks.append(task)
            if gives_up:
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (queue.running, queue.waiting, running) == (0, 0, 0)
        assert most <= 2

    asyncio.run(run())
