"""Requests at a time: each holds a lease while it runs.

A lease that is not renewed runs out, so a router that is killed takes no place for long.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any, Protocol

from redis.exceptions import RedisError

LEASE_S = 30.0

TAKE = """
redis.call('zremrangebyscore', KEYS[1], '-inf', ARGV[1])
if redis.call('zcard', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('zadd', KEYS[1], ARGV[3], ARGV[4])
redis.call('expire', KEYS[1], ARGV[5])
return 1
"""


class Leases(Protocol):
    """Places for requests at a time. renew_s: seconds after which one that is still held has to be renewed."""

    renew_s: float

    async def take(self, tenant: str, lease: str, most: int) -> bool:
        """Whether there was room for one more."""
        ...

    async def renew(self, tenant: str, lease: str) -> None: ...

    async def give_back(self, tenant: str, lease: str) -> None: ...


class LocalLeases:
    """In memory: they end with their holder."""

    renew_s = 3600.0

    def __init__(self) -> None:
        self._held: defaultdict[str, set[str]] = defaultdict(set)

    async def take(self, tenant: str, lease: str, most: int) -> bool:
        held = self._held[tenant]
        if len(held) >= most:
            return False
        held.add(lease)
        return True

    async def renew(self, tenant: str, lease: str) -> None:
        pass

    async def give_back(self, tenant: str, lease: str) -> None:
        self._held[tenant].discard(lease)
        if not self._held[tenant]:
            del self._held[tenant]


class RedisLeases:
    """A sorted set for each tenant, of leases by when they run out."""

    renew_s = LEASE_S / 3

    def __init__(self, client: Any) -> None:
        self._client = client
        self._take = client.register_script(TAKE)

    async def take(self, tenant: str, lease: str, most: int) -> bool:
        now = time.time()
        arguments = [now, most, now + LEASE_S, lease, int(2 * LEASE_S)]
        try:
            return bool(await self._take(keys=[_key(tenant)], args=arguments))
        except RedisError as error:
            raise ConnectionError(str(error)) from error

    async def renew(self, tenant: str, lease: str) -> None:
        try:
            await self._client.zadd(_key(tenant), {lease: time.time() + LEASE_S})
            await self._client.expire(_key(tenant), int(2 * LEASE_S))
        except RedisError as error:
            raise ConnectionError(str(error)) from error

    async def give_back(self, tenant: str, lease: str) -> None:
        try:
            await self._client.zrem(_key(tenant), lease)
        except RedisError as error:
            raise ConnectionError(str(error)) from error


def _key(tenant: str) -> str:
    return f"glimprouter:running:{tenant}"
