"""Fair shares of limited resources: downloads, requests to upstreams, bytes of answers in memory.

Each unit is held for one upstream and one client.  Neither may hold more than its share, so some
units remain for others; the pairs of upstream and client that wait take turns.  The client comes
from the context: a task counts for the client whose request created it.
"""

import asyncio
import contextlib
import ipaddress
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, NamedTuple

#: Work that no client asked for: warm-up, commands of the operator, clients of a unix socket.
OPERATOR: Final = "operator"
_RETRY_SECONDS: Final = 5.0
#: Fewer units are not divided: a share would be zero, or too small for a client that is alone.
_LEAST_DIVIDED: Final = 4
#: One host has up to 2**64 addresses in a subnet (RFC 4291, 2.5.1), so they count as one client.
_IPV6_PREFIX: Final = 64
#: Answers up to this size are not counted: the connection itself takes as much memory.
SMALL_BYTES: Final = 32 * 1024

_ASKER: Final[ContextVar[str]] = ContextVar("asker", default=OPERATOR)


def client_name(address: str) -> str:
    """Return the client of an address: an IPv6 /64 is one client, a unix socket is the operator."""
    if ":" not in address:
        return address or OPERATOR
    try:
        network = ipaddress.ip_network((address.partition("%")[0], _IPV6_PREFIX), strict=False)
    except ValueError:
        return address
    return str(network)


def asker() -> str:
    """The client on whose behalf the current task works."""
    return _ASKER.get()


@contextmanager
def asking(address: str) -> Iterator[None]:
    """Count all work that begins in this context, tasks too, for the client at ``address``."""
    before = _ASKER.set(client_name(address))
    try:
        yield
    finally:
        _ASKER.reset(before)


class FullError(Exception):
    """No units are available; ``retry_after`` is in seconds from now."""

    word = "overloaded"

    def __init__(self, message: str, retry_after: float = _RETRY_SECONDS) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Limits:
    """``size`` units, and ``waiting`` requests in line, each for at most ``patience`` seconds.

    ``connections``: the units of an upstream, by name, for upstreams with a limit of their own.
    The shares (0 to 1) limit one upstream and one client, both in units and in places in line.
    """

    size: int
    waiting: int
    patience: float
    connections: Mapping[str, int] = field(default_factory=dict)
    upstream_share: float = 1.0
    client_share: float = 1.0

    def of_upstream(self, upstream: str) -> int:
        """The number of units that one upstream may hold."""
        share = _part(self.size, self.upstream_share)
        return min(share, self.connections.get(upstream, share))

    @property
    def of_client(self) -> int:
        """The number of units that one client may hold."""
        return _part(self.size, self.client_share)


class _Owner(NamedTuple):
    upstream: str
    client: str


@dataclass(slots=True)
class _Waiter:
    amount: int
    turn: asyncio.Future[None]


class Hold:
    """Held units, until :meth:`release` or until the object is garbage."""

    __slots__ = ("_loop", "_owner", "_shares", "amount")

    def __init__(self, shares: "Shares", owner: _Owner, amount: int) -> None:
        self._shares = shares
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.amount = amount

    def grow(self, amount: int) -> None:
        """Take ``amount`` more units without waiting: a holder that waits could deadlock.

        Raises:
            FullError: the units are not available.
        """
        self._shares.take_now(self._owner, amount)
        self.amount += amount

    def shrink(self, amount: int) -> None:
        """Give back all units but ``amount``."""
        back = self.amount - amount
        if back > 0:
            self.amount = amount
            self._shares.give_back(self._owner, back)

    def release(self) -> None:
        self.shrink(0)

    def __del__(self) -> None:
        if self.amount:
            with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits
                # A thread may drop the last reference.
                self._loop.call_soon_threadsafe(self._shares.give_back, self._owner, self.amount)


class Shares:
    """A pool of units; the configuration key of its size is ``noun`` + "s"."""

    def __init__(self, noun: str, limits: Limits) -> None:
        self._noun = noun
        self.limits = limits
        self.taken = 0  # units held in all
        self._by_upstream: Counter[str] = Counter()
        self._by_client: Counter[str] = Counter()
        self._lines: OrderedDict[_Owner, deque[_Waiter]] = OrderedDict()
        self.waiting = 0  # requests in line
        self._waiting_upstreams: Counter[str] = Counter()
        self._waiting_clients: Counter[str] = Counter()

    def change(self, limits: Limits) -> None:
        """Apply new limits; held units stay held, and count."""
        self.limits = limits
        self._let_in()

    def held_for(self, upstream: str) -> int:
        return self._by_upstream[upstream]

    def spare(self, upstream: str) -> int:
        """How many units the client may take for an upstream now; 0 while any request waits."""
        if self.waiting:
            return 0
        limits = self.limits
        of_upstream = limits.of_upstream(upstream) - self._by_upstream[upstream]
        of_client = limits.of_client - self._by_client[asker()]
        return min(limits.size - self.taken, of_upstream, of_client)

    async def hold(self, upstream: str, amount: int = 1) -> Hold:
        """Take ``amount`` units; wait until they are available.

        Raises:
            FullError: too many requests wait already, or the wait took too long.
        """
        owner = _Owner(upstream, asker())
        if self._is_free(owner, amount):
            self._take(owner, amount)
        else:
            await self._wait(owner, amount)
        return Hold(self, owner, amount)

    def try_hold(self, upstream: str, amount: int = 1) -> Hold | None:
        """Take ``amount`` units; return None if they are not available now."""
        owner = _Owner(upstream, asker())
        if not self._is_free(owner, amount):
            return None
        self._take(owner, amount)
        return Hold(self, owner, amount)

    def take_now(self, owner: _Owner, amount: int) -> None:
        """Take more units at once, for an owner that holds some.

        Raises:
            FullError: the share of the owner is used up, or too few units are free.
        """
        if not self._may_have(owner, amount) or self._is_short(amount):
            raise FullError(f"no room for a larger {self._noun} ({self._reason(owner, amount)})")
        self._take(owner, amount)

    def give_back(self, owner: _Owner, amount: int) -> None:
        """Return units to the pool, and let waiting owners take them."""
        self.taken -= amount
        _count(self._by_upstream, owner.upstream, -amount)
        _count(self._by_client, owner.client, -amount)
        self._let_in()

    async def _wait(self, owner: _Owner, amount: int) -> None:
        if self._is_crowded(owner):
            reason = self._reason(owner, amount)
            raise FullError(f"too many {self._noun}s wait already ({reason})")
        waiter = _Waiter(amount, asyncio.get_running_loop().create_future())
        self._lines.setdefault(owner, deque()).append(waiter)
        self.waiting += 1
        self._waiting_upstreams[owner.upstream] += 1
        self._waiting_clients[owner.client] += 1
        try:
            async with asyncio.timeout(self.limits.patience):
                await waiter.turn
        except BaseException as error:
            reason = self._reason(owner, amount)
            if not waiter.turn.cancelled():  # the units were assigned at the same moment
                self.give_back(owner, amount)
            if isinstance(error, TimeoutError):
                text = f"no {self._noun} ended in time to begin another ({reason})"
                raise FullError(text) from error
            raise
        finally:
            self.waiting -= 1
            _count(self._waiting_upstreams, owner.upstream, -1)
            _count(self._waiting_clients, owner.client, -1)
            self._leave_line(owner, waiter)

    def _leave_line(self, owner: _Owner, waiter: _Waiter) -> None:
        line = self._lines.get(owner)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[owner]
            self._let_in()  # this waiter may have blocked all others

    def _let_in(self) -> None:
        """Give units to the owners in line, in turns."""
        served = True
        while served:
            served = False
            for owner in list(self._lines):
                line = self._lines[owner]
                if line[0].turn.done() or not self._may_have(owner, line[0].amount):
                    continue
                if self._is_short(line[0].amount):
                    return  # otherwise small amounts would overtake a large one for ever
                waiter = line.popleft()
                del self._lines[owner]
                if line:
                    self._lines[owner] = line
                self._take(owner, waiter.amount)
                waiter.turn.set_result(None)
                served = True

    def _take(self, owner: _Owner, amount: int) -> None:
        self.taken += amount
        self._by_upstream[owner.upstream] += amount
        self._by_client[owner.client] += amount

    def _is_free(self, owner: _Owner, amount: int) -> bool:
        """Whether units are available now, without overtaking an owner that waits for them."""
        if not self._may_have(owner, amount) or self._is_short(amount):
            return False
        return not any(self._may_have(each, line[0].amount) for each, line in self._lines.items())

    def _is_short(self, amount: int) -> bool:
        return bool(self.taken) and self.taken + amount > self.limits.size

    def _may_have(self, owner: _Owner, amount: int) -> bool:
        return not self._is_over_client(owner, amount) and not self._is_over_upstream(owner, amount)

    def _is_over_client(self, owner: _Owner, amount: int) -> bool:
        most, held = self.limits.of_client, self._by_client[owner.client]
        return self._is_over(most, held, amount)

    def _is_over_upstream(self, owner: _Owner, amount: int) -> bool:
        most, held = self.limits.of_upstream(owner.upstream), self._by_upstream[owner.upstream]
        return self._is_over(most, held, amount)

    def _is_over(self, most: int, held: int, amount: int) -> bool:
        # An amount larger than the share is given to an owner that holds nothing else.
        return most < self.limits.size and bool(held) and held + amount > most

    def _is_crowded(self, owner: _Owner) -> bool:
        limits = self.limits
        return (
            self.waiting >= limits.waiting
            or self._waiting_clients[owner.client] >= _part(limits.waiting, limits.client_share)
            or self._waiting_upstreams[owner.upstream]
            >= _part(limits.waiting, limits.upstream_share)
        )

    def _reason(self, owner: _Owner, amount: int) -> str:
        """The limit that is reached, and its configuration key."""
        limits = self.limits
        if self._is_over_client(owner, amount):
            held, most = self._by_client[owner.client], limits.of_client
            return f"{owner.client} holds {held} of its share of {most}: [limits] client_share"
        if self._is_over_upstream(owner, amount):
            held, most = self._by_upstream[owner.upstream], limits.of_upstream(owner.upstream)
            named = most == limits.connections.get(owner.upstream)
            key = "max_connections" if named else "[limits] upstream_share"
            return f"{owner.upstream} holds {held} of its share of {most}: {key}"
        return f"{self.taken} of {limits.size} are taken: [limits] {self._noun}s"


@dataclass(frozen=True, slots=True)
class Rooms:
    """Limits for small answers: concurrent ``questions`` to upstreams, and bytes of ``answers``.

    An answer of more than ``SMALL_BYTES`` counts from before the mirror reads it until it has
    been sent to all clients.
    """

    questions: Shares
    answers: Shares


def _part(whole: int, share: float) -> int:
    """The share of ``whole`` in units; a small ``whole`` is not divided."""
    return whole if whole < _LEAST_DIVIDED else max(1, int(whole * share))


def _count(counter: Counter[str], name: str, change: int) -> None:
    """Change a count, and delete the name when its count is 0."""
    counter[name] += change
    if not counter[name]:
        del counter[name]
