"""The state that all replicas share, in Redis or Valkey: leases and entries that expire.

All of it is hints, and may be lost or wrong at any time.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

from aiocache.backends.redis import RedisCache
from aiocache.serializers import NullSerializer
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from mirror.cluster.tier import Availability, Observer

R = TypeVar("R")
#: The prefix of all keys; the number is that of their format.
PREFIX: Final = "mirror:1"
TIER: Final = "state"  # the label of metrics
_CONNECTIONS: Final = 20
_FIRST: Final = 4  # of them
_REMEDY: Final = "check the server that [cluster] state names; each replica goes on by itself"
_MOST_BYTES: Final = 1024 * 1024  # of a value; larger ones are not of a mirror
#: The value, if it has at most ARGV[1] bytes, and its remaining life in milliseconds.
_GET: Final = """
if redis.call('STRLEN', KEYS[1]) > tonumber(ARGV[1]) then return {} end
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
"""
#: What a server that is no Redis makes of the client (RecursionError: nested arrays).
_FAILURES: Final = (RedisError, OSError, ValueError, RecursionError)  # a TimeoutError is an OSError


class StateDownError(Exception):
    """The shared state cannot be asked now."""


class State:
    """One server, asked by this process."""

    def __init__(self, client: Redis, place: str, observer: Observer, patience: float) -> None:
        """``place``: the server's name in the log, without a password; ``patience``: seconds."""
        self._patience = patience
        self._observer = observer
        # aiocache's own pool raises an error when it is full; this one waits.
        self._cache = RedisCache(serializer=NullSerializer(encoding=None), namespace=PREFIX)
        self._cache.client = client
        self._cache.timeout = None  # `_asked` has one for all
        self._place = place
        told = partial(observer.tier_up, TIER)
        self.availability = Availability(place, _REMEDY, self._probe, told)

    async def connect(self) -> None:
        """Open some connections, so that the first questions do not wait for them."""
        with contextlib.suppress(StateDownError):
            pings = (self._asked("ping", self._cache.client.ping) for _ in range(_FIRST))
            await asyncio.gather(*pings)

    async def run(self, operation: str, script: str, name: str, *arguments: str | int) -> Any:
        """Run a Lua script on one key; ``operation`` is for metrics.

        Raises:
            StateDownError: there is no answer.
        """
        key = f"{PREFIX}:{name}"
        ask = self._cache.raw
        return await self._asked(operation, lambda: ask("eval", script, 1, key, *arguments))

    async def lookup(self, name: str) -> tuple[bytes, float] | None:
        """Return a value and its remaining life in seconds, None if there is none."""
        with contextlib.suppress(StateDownError):
            match await self.run("get", _GET, name, _MOST_BYTES):
                case [bytes(value), int(left)] if left > 0:
                    return value, left / 1000
        return None

    async def put(self, name: str, value: bytes, ttl: float) -> None:
        """Store a value for ``ttl`` seconds, if the server answers."""
        with contextlib.suppress(StateDownError):
            await self._asked("put", lambda: self._cache.set(name, value, ttl=float(ttl)))

    async def forget(self, name: str) -> None:
        """Remove a value, if the server answers."""
        with contextlib.suppress(StateDownError):
            await self._asked("delete", lambda: self._cache.delete(name))

    async def close(self) -> None:
        await self.availability.close()
        with contextlib.suppress(RedisError, OSError):
            await self._cache.client.aclose(close_connection_pool=True)

    async def _asked(self, operation: str, question: Callable[[], Awaitable[R]]) -> R:
        if not self.availability.up:
            raise StateDownError(self._place)
        clock = asyncio.get_running_loop().time
        started, result = clock(), "error"
        try:
            async with asyncio.timeout(self._patience):
                answer = await question()
            result = "hit"
            return answer
        except _FAILURES as error:
            self.availability.failed()
            raise StateDownError(self._place) from error
        finally:
            self._observer.tier_answered(TIER, operation, result, clock() - started)

    async def _probe(self) -> str | None:
        """Return why the server cannot be asked, None if it can."""
        try:
            async with asyncio.timeout(self._patience):
                await self._cache.client.ping()
        except TimeoutError:
            return "no answer in time"
        except _FAILURES as error:
            return str(error)
        return None


def redis_trust(url: str, ca_file: str) -> dict[str, Any]:
    """Return the options of a client that trusts the authorities in ``ca_file`` too."""
    return {"ssl_ca_certs": ca_file} if ca_file and url.startswith("rediss:") else {}


@asynccontextmanager
async def opened_state(
    url: str, observer: Observer, patience: float, ca_file: str = ""
) -> AsyncIterator[State]:
    """Connect to the server at ``url`` (``redis://``, ``rediss://``).

    ``patience``: how long one question may take, in seconds.  ``ca_file``: authorities besides the
    system's.

    Raises:
        ValueError: the URL is wrong.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=patience,
        socket_timeout=patience,
        socket_connect_timeout=patience,
        **redis_trust(url, ca_file),
    )
    place = pool.connection_kwargs.get("host", "localhost")
    state = State(Redis(connection_pool=pool), f"redis at {place}", observer, patience)
    try:
        await state.connect()
        yield state
    finally:
        await state.close()
