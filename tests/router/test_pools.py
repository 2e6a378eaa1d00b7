"""A pool over a Serve handle."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
import uvloop
from handles import Handle, hang, hop, ids, lost, raised, replica, steps, written
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentStatus
from ray.serve.exceptions import BackPressureError
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview, ServeStatus
from toy import ToyModel, chunks

from router import pools
from router.hop import PULSE, Chunk, Hop, StrangePair, unpack
from router.leftovers import unwanted
from router.pools import ServedPool
from router.request import Refusal, Unavailable


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "PAUSE_S", 0.0)


@lost
async def test_a_lost_replicas_hop_goes_on_from_what_was_passed_on(error: BaseException) -> None:
    """Design rule 9."""
    whole = await written(Handle(replica()), hop())
    assert len(whole) > 3, "the test needs a hop of several chunks"
    handle = Handle(replica(lives=2, error=error), replica(lives=0, error=error), replica())
    resumed = await written(handle, hop())
    assert ids(resumed) == ids(whole)
    assert steps(resumed) == steps(whole)
    assert resumed[-1].end.resumed == 2
    assert whole[-1].end.resumed == 0
    assert list(unpack(handle.hops[1].prefix)) == [9, 1, *ids(whole[:2])]


@lost
async def test_a_plain_call_is_sent_again_whole(error: BaseException) -> None:
    handle = Handle(replica(lives=0, error=error), replica())
    told = await written(handle, hop(streaming=False))
    assert ids(told) == ids(await written(Handle(replica()), hop()))
    assert [list(unpack(h.prefix)) for h in handle.hops] == [[9, 1], [9, 1]]


@lost
@pytest.mark.parametrize("streaming", [True, False])
async def test_it_gives_up_after_so_many_replicas(error: BaseException, streaming: bool) -> None:
    handle = Handle(replica(lives=0, error=error))
    with pytest.raises(Refusal) as refused:
        await written(handle, hop(streaming=streaming), attempts=3)
    assert (refused.value.status, refused.value.code) == (503, "no_capacity")
    assert refused.value.retry_after_s
    assert len(handle.hops) == 3


@pytest.mark.parametrize("error", [raised(StrangePair("another")), StrangePair("another")], ids=["wrapped", "plain"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_pair_that_changed_is_told_and_not_retried(error: Exception, streaming: bool) -> None:
    handle = Handle(replica(lives=0, error=error))
    with pytest.raises(Refusal) as refused:
        await written(handle, hop(streaming=streaming))
    assert (refused.value.status, refused.value.code) == (503, "pair_changed")
    assert len(handle.hops) == 1


async def test_full_queues_are_told() -> None:
    with pytest.raises(Refusal) as refused:
        await written(Handle(replica(lives=0, error=BackPressureError(1, 1))), hop())
    assert (refused.value.status, refused.value.code) == (503, "overloaded")


@pytest.mark.parametrize("error", [ValueError("a bug"), TimeoutError("in the replica")])
async def test_a_replicas_bug_is_no_refusal(error: BaseException) -> None:
    handle = Handle(replica(lives=1, error=raised(error)))
    with pytest.raises(RuntimeError, match="small pool failed"):
        await written(handle, hop())
    assert len(handle.hops) == 1


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_deadline_ends_a_hop_and_frees_its_replica(streaming: bool) -> None:
    handle, began = Handle(hang), time.monotonic()
    with pytest.raises(Refusal) as refused:
        await written(handle, hop(streaming=streaming, timeout_s=0.05))
    assert (refused.value.status, refused.value.code) == (504, "deadline")
    assert time.monotonic() - began < 10
    assert handle.responses[0].cancelled == 1


async def test_a_replica_that_falls_silent_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SILENT_S", 0.05)
    whole = await written(Handle(replica()), hop())

    async def frozen(hop: Hop) -> AsyncGenerator[Chunk]:
        yield PULSE
        yield whole[0]
        await asyncio.sleep(60)

    handle = Handle(frozen, replica())
    told = await written(handle, hop())
    assert ids(told) == ids(whole)
    assert told[-1].end.resumed == 1
    assert handle.responses[0].cancelled == 1


async def test_one_that_is_not_listened_to_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SILENT_S", 0.5)

    async def steady(hop: Hop) -> AsyncGenerator[Chunk]:
        async for chunk in replica()(hop):
            await asyncio.sleep(0.005)
            yield chunk

    handle, told = Handle(steady), []
    async for chunk in ServedPool("small", handle, attempts=3).write(hop()):
        told.append(chunk)
        if len(told) == 1:
            await asyncio.sleep(0.6)
    assert ids(told) == ids(await written(Handle(replica()), hop()))
    assert len(handle.hops) == 1


async def test_one_that_has_nothing_to_tell_but_lives_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SILENT_S", 0.2)

    async def slow(hop: Hop) -> AsyncGenerator[Chunk]:
        for _ in range(6):
            yield PULSE
            await asyncio.sleep(0.05)
        async for chunk in replica()(hop):
            yield chunk

    handle = Handle(slow)
    told = await written(handle, hop())
    assert PULSE not in told
    assert ids(told) == ids(await written(Handle(replica()), hop()))
    assert len(handle.hops) == 1


async def test_a_hop_that_waits_for_a_replica_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that wakes from zero says nothing either, and may take longer than any number of attempts."""
    monkeypatch.setattr(pools, "SILENT_S", 0.02)
    handle = Handle(*[hang] * 9, replica())
    told = await written(handle, hop(), attempts=3)
    assert ids(told) == ids(await written(Handle(replica()), hop()))
    assert told[-1].end.resumed == 0
    assert [response.cancelled for response in handle.responses[:-1]] == [1] * 9


async def test_a_hop_that_went_to_a_replica_which_was_gone_already_goes_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody has noticed yet that its machine lost its power: no connection ends, and no answer comes."""
    monkeypatch.setattr(pools, "SILENT_S", 0.02)
    handle, began = Handle(hang, replica()), time.monotonic()
    assert ids(await written(handle, hop())) == ids(await written(Handle(replica()), hop()))
    assert time.monotonic() - began < 10
    assert handle.responses[0].cancelled == 1


async def test_a_sign_of_life_is_no_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    async def queued(hop: Hop) -> AsyncGenerator[Chunk]:
        while True:
            yield PULSE
            await asyncio.sleep(0.01)

    pool = ServedPool("large", Handle(queued), attempts=3, patience_s=0.1)
    with pytest.raises(Unavailable):
        async for _ in pool.write(hop()):
            pass


async def test_a_plain_hop_of_a_pool_that_has_to_begin_soon_shows_that_it_has() -> None:
    async def slowly(hop: Hop) -> AsyncGenerator[Chunk]:
        for chunk in chunks(ToyModel("long", close_rate=0.0), hop, 3 if hop.streaming else 10**6):
            if not hop.streaming:
                await asyncio.sleep(0.2)
            yield chunk
            await asyncio.sleep(0.001)

    pool = ServedPool("large", Handle(slowly), attempts=3, patience_s=0.1)
    told = [chunk async for chunk in pool.write(hop(streaming=False))]
    assert ids(told) == ids(await written(Handle(replica()), hop()))


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_replica_that_is_lost_after_its_hops_end_has_lost_nothing(streaming: bool) -> None:
    async def write(hop: Hop) -> AsyncGenerator[Chunk]:
        for chunk in chunks(ToyModel("long", close_rate=0.0), hop, 3 if hop.streaming else 10**6):
            yield chunk
        raise ActorDiedError

    handle = Handle(write)
    told = await written(handle, hop(streaming=streaming))
    assert len(handle.hops) == 1
    assert told[-1].end is not None
    assert told[-1].end.resumed == 0


async def test_what_nobody_wants_any_more_is_not_taken_up_elsewhere() -> None:
    handle = Handle(replica(lives=2, error=ActorDiedError()), replica())
    wanted = unwanted.set(True)
    try:
        told = await written(handle, hop())
    finally:
        unwanted.reset(wanted)
    assert len(handle.hops) == 1
    assert told[-1].end is None


async def test_a_pool_that_is_not_heard_of_is_given_up_however_often_it_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pools, "SILENT_S", 0.02)
    handle = Handle(hang)
    with pytest.raises(Unavailable):
        async for _ in ServedPool("large", handle, attempts=3, patience_s=0.1).write(hop(timeout_s=5.0)):
            pass
    assert len(handle.hops) > 1


def test_a_timer_that_comes_early_is_the_deadline_all_the_same() -> None:
    """Serve runs on uvloop, whose timers do: one in three."""

    async def ended(n: int) -> int:
        with pytest.raises(Refusal) as refused:
            await written(Handle(hang), hop(timeout_s=0.02 + n * 1e-5))
        return refused.value.status

    async def all_ended() -> list[int]:
        return [await ended(n) for n in range(50)]

    assert set(uvloop.run(all_ended())) == {504}


async def test_the_deadline_counts_over_all_attempts() -> None:
    async def slow(hop: Hop) -> AsyncGenerator[Chunk]:
        await asyncio.sleep(0.1)
        raise ActorDiedError
        yield

    handle = Handle(slow)
    with pytest.raises(Refusal) as refused:
        await written(handle, hop(timeout_s=0.25), attempts=1000)
    assert refused.value.status == 504
    assert len(handle.hops) < 10


async def test_leaving_cancels_the_replicas_call() -> None:
    """Design rule 10."""
    handle = Handle(replica())
    async with aclosing(ServedPool("small", handle, attempts=3).write(hop())) as told:
        async for _chunk in told:
            break
    assert handle.responses[0].cancelled == 1


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_cancelled_request_cancels_the_replicas_call(streaming: bool) -> None:
    handle = Handle(hang)
    task = asyncio.create_task(written(handle, hop(streaming=streaming)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.responses[0].cancelled == 1


@pytest.mark.parametrize(
    ("status", "states", "rests"),
    [
        ("HEALTHY", {}, True),
        ("HEALTHY", {"RUNNING": 1}, False),
        ("HEALTHY", {"STOPPING": 1}, True),
        ("DOWNSCALING", {"STOPPING": 1}, True),
        ("UPSCALING", {"STARTING": 1}, True),
        ("UPSCALING", {"RUNNING": 1, "STARTING": 1}, False),
        ("UPDATING", {"STARTING": 1}, False),
        ("UNHEALTHY", {"STARTING": 1}, False),
    ],
)
async def test_a_pool_rests_where_serve_wants_no_replica(
    status: str, states: dict[str, int], rests: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = DeploymentStatusOverview(DeploymentStatus(status), "UNSPECIFIED", states, "")
    applications = {"glimpse": ApplicationStatusOverview("RUNNING", "", 0.0, {"large": told})}
    monkeypatch.setattr(pools.serve, "status", lambda: ServeStatus(applications=applications))
    assert await ServedPool("large", Handle(hang), attempts=3).rests() is rests


async def test_a_question_that_nobody_answers_is_taken_back() -> None:
    handle = Handle(hang)
    with pytest.raises(TimeoutError):
        await ServedPool("large", handle, attempts=3).ask("describe", timeout_s=0.05)
    assert handle.responses[0].cancelled == 1


async def test_without_a_controller_nobody_knows_that_a_pool_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise ActorDiedError

    monkeypatch.setattr(pools.serve, "status", gone)
    assert not await ServedPool("large", Handle(hang), attempts=3).rests()
