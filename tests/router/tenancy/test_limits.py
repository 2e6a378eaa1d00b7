from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from limits import RateLimitItemPerMinute

from loadtest.servers import Redis
from router.request import Refusal
from router.tenancy import limits as module
from router.tenancy.leases import RedisLeases
from router.tenancy.limits import Limits
from router.tenancy.tenant import Caller, Policy

Make = Callable[..., Limits]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that runs tests may be slow; that is not Redis being away."""
    monkeypatch.setattr(module, "REDIS_S", 30.0)


@pytest.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest, patient: None) -> Make:
    """Limits of one router; on Redis each call makes another router's."""
    url = None
    if request.param == "redis":
        url = request.getfixturevalue("redis").url
        from redis.asyncio import Redis as Client

        client = Client.from_url(url)
        await client.flushall()
        await client.aclose()
    return lambda **options: Limits(url, **options)


def caller(tenant: str = "acme", **policy: object) -> Caller:
    return Caller(tenant, "k", Policy.model_validate(policy))


async def admitted(limits: Limits, who: Caller, times: int) -> int:
    count = 0
    for _ in range(times):
        refusal = await refused(limits.request(who, True))
        count += refusal is None
        if refusal is not None:
            assert (refusal.status, refusal.code) == (429, "rate_limit_exceeded")
            assert refusal.retry_after_s is not None
            assert 0 < refusal.retry_after_s <= 60
    return count


async def refused(work: Awaitable[None]) -> Refusal | None:
    try:
        await work
    except Refusal as refusal:
        return refusal
    return None


async def settled() -> None:
    while module._background:
        await asyncio.gather(*module._background)


async def test_requests_a_minute_are_as_many_as_allowed(make: Make) -> None:
    limits = make()
    assert await admitted(limits, caller(requests_per_minute=5), 12) == 5
    assert await admitted(limits, caller("other", requests_per_minute=3), 12) == 3
    assert await admitted(limits, caller("unbounded"), 50) == 50


async def test_the_standing_is_told(make: Make) -> None:
    limits = make()
    who = caller(requests_per_minute=5, tokens_per_minute=1000)
    await limits.request(who, True)
    told = who.standing.headers
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("5", "4")
    assert (told["x-ratelimit-limit-tokens"], told["x-ratelimit-remaining-tokens"]) == ("1000", "1000")
    assert 0 < float(told["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    await limits.request(who, False)
    assert who.standing.headers["x-ratelimit-remaining-requests"] == "4", "reading costs nothing"
    await limits.take(who, 300)
    assert who.standing.headers["x-ratelimit-remaining-tokens"] == "700"


async def test_a_caller_over_its_limit_may_still_look(make: Make) -> None:
    limits, who = make(), caller(requests_per_minute=1)
    await limits.request(who, True)
    await limits.request(who, False)
    assert who.standing.headers["x-ratelimit-remaining-requests"] == "0"


async def test_routers_count_together(redis: Redis, patient: None) -> None:
    routers = [Limits(redis.url) for _ in range(3)]
    who = caller("together", requests_per_minute=10)
    counts = await asyncio.gather(*(admitted(router, who, 10) for router in routers))
    assert sum(counts) == 10


async def test_tokens_are_taken_and_what_was_not_used_is_given_back(make: Make) -> None:
    limits, who = make(), caller(tokens_per_minute=1000)
    first = await limits.take(who, 600)
    with pytest.raises(Refusal) as told:
        await limits.take(who, 600)
    assert (told.value.status, told.value.code) == (429, "rate_limit_exceeded")
    assert told.value.retry_after_s is not None
    assert 0 < told.value.retry_after_s <= 120
    limits.settle(who, first, 100)
    await settled()
    second = await limits.take(who, 900)
    assert second is not None
    limits.settle(who, second, 900)
    await settled()
    with pytest.raises(Refusal):
        await limits.take(who, 1)


async def test_what_is_given_back_of_last_minute_fades_as_it_does(make: Make) -> None:
    """Taken from this minute instead it would be room for more than the limit a while later."""
    limits, who = make(), caller(tokens_per_minute=1000)
    key = RateLimitItemPerMinute(1000).key_for(who.tenant, "tokens")
    await limits._storage.incr(limits._last_minute(key), 60, amount=800)
    assert await limits.take(who, 100)
    last, last_left_s, this, this_left_s = await limits._storage.get_sliding_window(key, 60)
    assert (last, this) == (800, 100)
    if last_left_s <= module.GONE_S:
        pytest.skip("the minute was over in between")
    began = time.time() + this_left_s - 120
    limits.settle(who, module.Taken(800, began - 5), 300)
    await settled()
    assert (await limits._storage.get_sliding_window(key, 60))[::2] == (300, 100)


async def test_where_both_minutes_are_forgotten_nothing_is_given_back(make: Make) -> None:
    limits, who = make(), caller(tokens_per_minute=1000)
    limits.settle(who, module.Taken(800, time.time() - 70), 0)
    await settled()
    assert await limits.take(who, 1000)
    with pytest.raises(Refusal):
        await limits.take(who, 1)


async def test_what_was_taken_long_ago_is_not_given_back(make: Make) -> None:
    limits, who = make(), caller(tokens_per_minute=1000)
    taken = await limits.take(who, 800)
    assert taken is not None
    limits.settle(who, module.Taken(800, taken.at - 130), 0)
    await settled()
    with pytest.raises(Refusal):
        await limits.take(who, 300)


async def test_what_can_never_fit_is_told_so(make: Make) -> None:
    with pytest.raises(Refusal, match="max_tokens") as told:
        await make().take(caller(tokens_per_minute=100), 101)
    assert told.value.status == 413


async def test_requests_at_a_time(make: Make) -> None:
    limits, who = make(), caller(concurrent_requests=2)
    async with limits.running(who), limits.running(who):
        with pytest.raises(Refusal, match="Only 2 requests at a time") as told:
            async with limits.running(who):
                pass
        assert told.value.status == 429
        async with limits.running(caller("other", concurrent_requests=1)):
            pass
    await settled()
    async with limits.running(who):
        pass


async def test_a_killed_routers_places_come_back(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    from redis.asyncio import Redis as Client

    monkeypatch.setattr("router.tenancy.leases.LEASE_S", 1.5)
    leases = RedisLeases(Client.from_url(redis.url))
    assert await leases.take("killed", "a", 1)
    assert not await leases.take("killed", "b", 1)
    await asyncio.sleep(0.8)
    await leases.renew("killed", "a")
    await asyncio.sleep(0.8)
    assert not await leases.take("killed", "b", 1), "it was renewed"
    await asyncio.sleep(0.8)
    assert await leases.take("killed", "b", 1)


@pytest.mark.parametrize("down", ["open", "closed"])
async def test_without_redis_it_fails_as_configured(down: str, redis: Redis, patient: None) -> None:
    limits = Limits(redis.url, down=down)  # type: ignore[arg-type]
    who = caller(f"down-{down}", requests_per_minute=1, tokens_per_minute=10, concurrent_requests=1)
    await limits.request(who, True)
    redis.stop()
    try:
        for _ in range(3):
            if down == "open":
                await limits.request(who, True)
                async with limits.running(who), limits.running(who):
                    limits.settle(who, await limits.take(who, 10), 3)
            else:
                with pytest.raises(Refusal) as told:
                    await limits.request(who, True)
                assert told.value.status == 503
                with pytest.raises(Refusal):
                    async with limits.running(who):
                        pass
                with pytest.raises(Refusal):
                    await limits.take(who, 10)
    finally:
        redis.start()
    await settled()
    await asyncio.sleep(module.PAUSE_S)
    await limits.request(who, True)
    with pytest.raises(Refusal, match="requests a minute"):
        await limits.request(who, True)
