"""What this replica knows of the state of the others: they are asked when a person looks.

The answers are not signed, so they are read like anything from outside.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from mirror.cluster.peers import PeerError, Peers
from mirror.stats.report import Figures, Replica
from mirror.trouble import Problem, Trouble

_STATS: Final = "/api/v1/stats"
_ANSWER_SECONDS: Final = 1.0
_KEPT_SECONDS: Final = 3.0
_MOST_TEXT: Final = 40  # characters of a version
_MOST_COUNT: Final = 2**63
_MOST_TIME: Final = 2**33  # Unix seconds: the year 2242
_REMEDY: Final = "look at its log, start it again, or remove it from [cluster] peers"

_log = logging.getLogger(__name__)


class View:
    """The states of all replicas; those of the others are kept for some seconds."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._others: Sequence[Replica] = ()
        self._until = -math.inf
        self._asking = asyncio.Lock()
        self._troubles: dict[str, Trouble] = {}

    async def replicas(self, own: Mapping[str, Any]) -> Sequence[Replica]:
        """Return all replicas, those in trouble first; ``own`` is the result of ``stats`` here.

        A replica that hangs costs a second.
        """
        clock: Callable[[], float] = asyncio.get_running_loop().time
        async with self._asking:
            if clock() >= self._until:
                addresses = self._peers.others()
                self._troubles = {each: self._troubles.get(each, Trouble()) for each in addresses}
                self._others = await asyncio.gather(*map(self._ask, addresses))
                self._until = clock() + _KEPT_SECONDS
        here = _read(self._peers.own, own, here=True)
        found = sorted((here, *self._others), key=lambda each: each.address)
        return sorted(found, key=lambda each: (each.problem is None, -each.problems))

    async def _ask(self, address: str) -> Replica:
        trouble = self._troubles[address]
        try:
            said = _read(address, await self._peers.ask(address, _STATS, _ANSWER_SECONDS))
        except PeerError as error:
            cause = str(error)
        except (ValueError, LookupError, TypeError, AttributeError):
            cause = f"{address} has another version, or is no mirror"
        else:
            trouble.over()
            return said
        problem = Problem(f"No figures from the replica {address}", cause, _REMEDY)
        if trouble.met(problem):
            _log.warning("no figures from a replica: %s", cause)
        return Replica(address, problem=trouble.problem)


def _read(address: str, said: Mapping[str, Any], *, here: bool = False) -> Replica:
    """Return the state of a replica from what its ``/api/v1/stats`` says.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is of another form.
    """
    cache, running = said["cache"], said["running"]
    version = str(running["version"])[:_MOST_TEXT]
    started = datetime.fromisoformat(running["started"]).timestamp()
    if not 0 <= started < _MOST_TIME:
        raise ValueError("no time at which a mirror began")
    return Replica(
        address,
        here,
        version if version.isprintable() else "",
        started,
        _figures(said["total"]),
        _figures(said["today"]),
        _count(cache["bytes"]),
        _count(cache["max_bytes"]),
        _count(cache["objects"]),
        len(said["problems"]),
    )


def _figures(said: Mapping[str, Any]) -> Figures:
    requests = {result: _count(number) for result, number in said["results"].items()}
    return Figures(requests, _count(said["served_bytes"]), _count(said["upstream_bytes"]))


def _count(number: object) -> int:
    if not isinstance(number, int) or not 0 <= number < _MOST_COUNT:
        raise ValueError("no number of bytes or requests")
    return number
