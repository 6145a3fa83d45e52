"""Fair shares of what is bounded: downloads, questions to upstreams, bytes of answers in memory.

Each unit is held on behalf of an upstream and of a client.  Neither may hold more than its share,
so there is always some left for others, and the pairs that wait take turns.  The client is found
through the context: a task counts for the client in whose request it was created.
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
#: Below this a share of the whole would be nothing, or would leave nothing for one client alone.
_LEAST_DIVIDED: Final = 4
#: One site gives a host 2**64 addresses (RFC 4291, 2.5.1), so they are one client.
_IPV6_PREFIX: Final = 64

_ASKER: Final[ContextVar[str]] = ContextVar("asker", default=OPERATOR)


def client_name(address: str) -> str:
    """The client that an address belongs to: all of an IPv6 /64 are one, a unix socket is ours."""
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
    """Count what is begun inside, tasks too, for the client at ``address``."""
    before = _ASKER.set(client_name(address))
    try:
        yield
    finally:
        _ASKER.reset(before)


class FullError(Exception):
    """Nothing came free; ``retry_after`` is in seconds from now."""

    def __init__(self, message: str, retry_after: float = _RETRY_SECONDS) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Limits:
    """``size`` units at once, ``waiting`` requests in line, each for at most ``patience`` seconds.

    ``connections``: units at once for an upstream, by its name, where there is such a limit.  The
    shares (0 to 1) are the most that one upstream or one client may hold, of the units and of the
    places in line.
    """

    size: int
    waiting: int
    patience: float
    connections: Mapping[str, int] = field(default_factory=dict)
    upstream_share: float = 1.0
    client_share: float = 1.0

    def of_upstream(self, upstream: str) -> int:
        """Units that one upstream may hold."""
        share = _part(self.size, self.upstream_share)
        return min(share, self.connections.get(upstream, share))

    @property
    def of_client(self) -> int:
        """Units that one client may hold."""
        return _part(self.size, self.client_share)


#: Answers up to this size are not counted: a connection costs as much.
SMALL_BYTES: Final = 32 * 1024


class _Owner(NamedTuple):
    upstream: str
    client: str


@dataclass(slots=True)
class _Waiter:
    amount: int
    turn: asyncio.Future[None]


class Hold:
    """Units that are held, until they are released or nothing refers to them any more."""

    __slots__ = ("_loop", "_owner", "_shares", "amount")

    def __init__(self, shares: "Shares", owner: _Owner, amount: int) -> None:
        self._shares = shares
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.amount = amount

    def grow(self, amount: int) -> None:
        """Hold ``amount`` more, without waiting: whoever holds some must not wait for more.

        Raises:
            FullError: there is no room for it.
        """
        self._shares.take_now(self._owner, amount)
        self.amount += amount

    def shrink(self, amount: int) -> None:
        """Give back all but ``amount``."""
        back = self.amount - amount
        if back > 0:
            self.amount = amount
            self._shares.give_back(self._owner, back)

    def release(self) -> None:
        """Give back all."""
        self.shrink(0)

    def __del__(self) -> None:
        if self.amount:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
                # A thread may drop the last reference.
                self._loop.call_soon_threadsafe(self._shares.give_back, self._owner, self.amount)


class Shares:
    """Hands out units; the key of their limit is the plural of ``noun``."""

    def __init__(self, noun: str, limits: Limits) -> None:
        self._noun = noun
        self.limits = limits
        self._taken = 0
        self._by_upstream: Counter[str] = Counter()
        self._by_client: Counter[str] = Counter()
        self._lines: OrderedDict[_Owner, deque[_Waiter]] = OrderedDict()
        self.waiting = 0  # requests in line
        self._waiting_upstreams: Counter[str] = Counter()
        self._waiting_clients: Counter[str] = Counter()

    def change(self, limits: Limits) -> None:
        """Other limits from now on; what is held stays, and counts."""
        self.limits = limits
        self._let_in()

    def held_for(self, upstream: str) -> int:
        """Units that are held for an upstream."""
        return self._by_upstream[upstream]

    @property
    def taken(self) -> int:
        """Units that are held."""
        return self._taken

    async def hold(self, upstream: str, amount: int = 1) -> Hold:
        """Take ``amount`` units, after waiting for them if need be.

        Raises:
            FullError: too many wait already, or not enough came free in time.
        """
        owner = _Owner(upstream, asker())
        if self._is_free(owner, amount):
            self._take(owner, amount)
        else:
            await self._wait(owner, amount)
        return Hold(self, owner, amount)

    def try_hold(self, upstream: str, amount: int = 1) -> Hold | None:
        """Take ``amount`` units, None where it would have to wait for them."""
        owner = _Owner(upstream, asker())
        if not self._is_free(owner, amount):
            return None
        self._take(owner, amount)
        return Hold(self, owner, amount)

    def take_now(self, owner: _Owner, amount: int) -> None:
        """Take more units for an owner that holds some.

        Raises:
            FullError: it may not have them, or there are not enough.
        """
        if not self._may_have(owner, amount) or self._is_short(amount):
            raise FullError(f"no room for a larger {self._noun} ({self._reason(owner, amount)})")
        self._take(owner, amount)

    def give_back(self, owner: _Owner, amount: int) -> None:
        """Units are free again."""
        self._taken -= amount
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
            if not waiter.turn.cancelled():  # its turn came in the very same moment
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
            self._let_in()  # it may have been the one that all waited for

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
                    return  # else small amounts would pass a large one for ever
                waiter = line.popleft()
                del self._lines[owner]
                if line:
                    self._lines[owner] = line
                self._take(owner, waiter.amount)
                waiter.turn.set_result(None)
                served = True

    def _take(self, owner: _Owner, amount: int) -> None:
        self._taken += amount
        self._by_upstream[owner.upstream] += amount
        self._by_client[owner.client] += amount

    def _is_free(self, owner: _Owner, amount: int) -> bool:
        """Whether an owner may have units now, without passing one that waits for them."""
        if not self._may_have(owner, amount) or self._is_short(amount):
            return False
        return not any(self._may_have(each, line[0].amount) for each, line in self._lines.items())

    def _is_short(self, amount: int) -> bool:
        return bool(self._taken) and self._taken + amount > self.limits.size

    def _may_have(self, owner: _Owner, amount: int) -> bool:
        return not self._is_over_client(owner, amount) and not self._is_over_upstream(owner, amount)

    def _is_over_client(self, owner: _Owner, amount: int) -> bool:
        most, held = self.limits.of_client, self._by_client[owner.client]
        return self._is_over(most, held, amount)

    def _is_over_upstream(self, owner: _Owner, amount: int) -> bool:
        most, held = self.limits.of_upstream(owner.upstream), self._by_upstream[owner.upstream]
        return self._is_over(most, held, amount)

    def _is_over(self, most: int, held: int, amount: int) -> bool:
        # What is larger than a share can only be had alone.
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
        """What is at its limit, and which key says so."""
        limits = self.limits
        if self._is_over_client(owner, amount):
            held, most = self._by_client[owner.client], limits.of_client
            return f"{owner.client} holds {held} of its share of {most}: [limits] client_share"
        if self._is_over_upstream(owner, amount):
            held, most = self._by_upstream[owner.upstream], limits.of_upstream(owner.upstream)
            named = most == limits.connections.get(owner.upstream)
            key = "max_connections" if named else "[limits] upstream_share"
            return f"{owner.upstream} holds {held} of its share of {most}: {key}"
        return f"{self._taken} of {limits.size} are taken: [limits] {self._noun}s"


@dataclass(frozen=True, slots=True)
class Rooms:
    """What there is for small answers: ``questions`` to upstreams at once, bytes of ``answers``.

    An answer of more than ``SMALL_BYTES`` is counted from before it is read until no client has
    any of it to come.
    """

    questions: Shares
    answers: Shares


def _part(whole: int, share: float) -> int:
    """How much of ``whole`` one may have; a few are not divided."""
    return whole if whole < _LEAST_DIVIDED else max(1, int(whole * share))


def _count(counter: Counter[str], name: str, change: int) -> None:
    """Add to a count, and forget a name that counts nothing."""
    counter[name] += change
    if not counter[name]:
        del counter[name]
