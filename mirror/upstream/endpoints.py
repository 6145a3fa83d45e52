"""One upstream behind several addresses: its mirrors in order, then the registry itself.

A mirror that sent wrong content is asked last.
"""

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, TypeVar

from mirror.lru import Lru
from mirror.oci.digest import Digest
from mirror.oci.image_name import short_digest
from mirror.trouble import Problem, Trouble
from mirror.upstream.auth import Authenticator
from mirror.upstream.errors import NonsenseError, UpstreamError
from mirror.upstream.login import Principal
from mirror.upstream.registry import Registry
from mirror.upstream.responses import BlobStream, ManifestBody, ManifestHead
from mirror.upstream.transport import READ_BUFFER_BYTES

#: How long a mirror is asked last, in seconds.
_BEHIND_SECONDS: Final = 300.0
#: After this many failures within that time, a mirror is asked last for everything.
_FAILURES: Final = 3
_MOST_THINGS: Final = 10_000


class Doubts:
    """The failures of the mirrors of one upstream."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: Lru[tuple[int, str], float] = Lru(_MOST_THINGS)
        self._failures: dict[int, deque[float]] = {}
        self._gave: Lru[str, set[int]] = Lru(_MOST_THINGS)

    def is_behind(self, mirror: int, thing: str) -> bool:
        """Whether a mirror is asked for ``thing`` only after all the other addresses."""
        failures = self._failures.setdefault(mirror, deque(maxlen=_FAILURES))
        often = len(failures) == _FAILURES and self._is_recent(failures[0])
        return often or self._has_failed(mirror, thing)

    def gave(self, mirror: int, thing: str) -> None:
        """Note that a mirror answered; the bytes are verified later."""
        self._gave.put(thing, (self._gave.get(thing) or set()) | {mirror})

    def failed(self, mirror: int, thing: str) -> bool:
        """Note that a mirror answered with other content than ``thing``.

        Returns:
            whether the mirror had not failed for ``thing`` before.
        """
        now, fresh = self._clock(), not self._has_failed(mirror, thing)
        self._failed.put((mirror, thing), now)
        self._failures.setdefault(mirror, deque(maxlen=_FAILURES)).append(now)
        return fresh

    def blame(self, thing: str) -> list[int]:
        """Note that ``thing`` has wrong content: ask all mirrors that sent a part of it last.

        Returns:
            the mirrors that had not failed for ``thing`` before.
        """
        return [mirror for mirror in self._gave.pop(thing) or () if self.failed(mirror, thing)]

    def _has_failed(self, mirror: int, thing: str) -> bool:
        failed = self._failed.get((mirror, thing))
        return failed is not None and self._is_recent(failed)

    def _is_recent(self, moment: float) -> bool:
        return moment > self._clock() - _BEHIND_SECONDS


R = TypeVar("R")
_WRONG_SECONDS: Final = 3600.0
_log = logging.getLogger(__name__)
#: State of principals is a cache: it can be dropped and made again.
_MOST_PRINCIPALS: Final = 1_000
_MOST_PRINCIPAL_BYTES: Final = 4 * 1024 * 1024  # of Authorization fields: up to 64 KiB each


class StateLog:
    """Log lines about one upstream: one for each change, however many requests meet it."""

    def __init__(self, name: str, registries: Sequence[Registry]) -> None:
        self._name = name
        self._registries = registries
        self._stale = Trouble()
        self._wrong = Trouble()
        self._mismatched: Lru[Digest, bool] = Lru(_MOST_THINGS)

    def fell_back(self, cause: str) -> None:
        """Note that the last known answer is served, since upstream cannot answer."""
        remedy = "nothing to do here: tags are renewed once the registry answers"
        if self._stale.met(Problem(f"{self._name}: tags may be outdated", cause, remedy)):
            text = "%s: serving the last known tags and listings (stale): %s"
            _log.warning(text, self._name, cause)

    def caught_up(self) -> None:
        """Note that upstream has answered for a tag or a listing."""
        seconds = self._stale.over()
        if seconds is not None:
            _log.warning("%s: serving no stale answers any more, after %.0f s", self._name, seconds)

    def mismatched(self, digest: Digest, error: UpstreamError) -> None:
        """Note that the bytes for a digest are wrong."""
        addresses = ", ".join(each.address for each in self._registries)
        cause = f"bytes that are not {short_digest(str(digest))}; they were not stored"
        remedy = f"check the registry ({addresses}) and the proxies and caches on the way"
        self._wrong.met(Problem(f"{self._name} sent wrong bytes", cause, remedy))
        if self._mismatched.get(digest) is None:
            self._mismatched.put(digest, True)
            _log.warning("%s; not stored: %s", error, remedy)

    def problems(self) -> list[Problem]:
        """Return the troubles that last; wrong bytes for a while, since nothing ends them."""
        found = [problem for each in self._registries for problem in each.problems()]
        stale, wrong = self._stale.problem, self._wrong.problem
        if stale is not None and not found:  # else it follows from the others
            found.append(stale)
        if wrong is not None and time.time() < wrong.seen + _WRONG_SECONDS:
            found.append(wrong)
        return found


class Endpoints:
    """The addresses of one upstream.

    If one address fails for any reason, the next one is asked, as containerd does; the registry
    itself comes last.  A mirror that sent wrong content is asked after the registry.  Every method
    raises UpstreamError if no address has the content; the error is that of the registry itself.
    Listings are asked of ``origin``, the registry itself, alone, since a mirror may lack entries.
    """

    def __init__(
        self,
        name: str,
        registries: Sequence[Registry],
        introduce: Callable[[Principal], Authenticator],
        log: "StateLog | None" = None,
    ) -> None:
        """Ask ``registries`` in order; the last one is the registry itself.

        ``introduce`` returns the authenticator of a principal for the registry itself.
        ``log`` is that of the same upstream for other clients.
        """
        self.name = name
        *self.mirrors, self.origin = registries
        self._introduce = introduce
        self._doubts = Doubts()
        self.log = log or StateLog(name, registries)
        self._of_principals: Lru[Principal, Endpoints] = Lru(
            _MOST_PRINCIPALS, _MOST_PRINCIPAL_BYTES
        )

    def with_credentials(self, principal: Principal | None) -> "Endpoints":
        """Return the upstream for a principal: only the registry itself gets its credentials."""
        if principal is None:
            return self
        endpoints = self._of_principals.get(principal)
        if endpoints is None:
            registry = self.origin.with_credentials(self._introduce(principal))
            endpoints = Endpoints(self.name, [registry], self._introduce, self.log)
            self._of_principals.put(principal, endpoints, len(principal.authorization))
        return endpoints

    async def confirm(
        self, kind: str, repository: str, reference: str, accept: str = "*/*"
    ) -> None:
        await self._ask(
            reference if kind == "blob" else f"{repository} {reference}",
            lambda each: each.confirm(kind, repository, reference, accept),
        )

    async def head_manifest(self, repository: str, reference: str, accept: str) -> ManifestHead:
        return await self._ask(
            f"{repository} {reference}",
            lambda each: each.head_manifest(repository, reference, accept),
        )

    async def get_manifest(
        self, repository: str, reference: str, accept: str, read: Callable[[ManifestBody], R]
    ) -> R:
        """Return the result of ``read`` for a manifest; see :meth:`Registry.get_manifest`.

        If ``read`` raises an UpstreamError, the next address is asked.
        """

        async def question(each: Registry) -> R:
            return read(await each.get_manifest(repository, reference, accept))

        return await self._ask(f"{repository} {reference}", question)

    async def head_blob(self, repository: str, digest: Digest) -> int | None:
        return await self._ask(str(digest), lambda each: each.head_blob(repository, digest))

    @asynccontextmanager
    async def open_blob(
        self,
        repository: str,
        digest: Digest,
        start: int,
        stop: int | None = None,
        buffer_bytes: int = READ_BUFFER_BYTES,
    ) -> AsyncIterator[BlobStream]:
        async with AsyncExitStack() as stack:
            yield await self._ask(
                str(digest),
                lambda each: stack.enter_async_context(
                    each.open_blob(repository, digest, start, stop, buffer_bytes)
                ),
            )

    @property
    def max_blob_bytes(self) -> int:
        """The size of the largest blob that is accepted, in bytes."""
        return self.origin.max_blob_bytes

    def blame(self, *thing: object) -> bool:
        """Note wrong content: ask the mirrors that sent a part of it last.

        Args:
            thing: the digest of a blob, or the repository and the reference of a manifest.

        Returns:
            whether another address is asked first from now on.
        """
        name = " ".join(map(str, thing))
        blamed = self._doubts.blame(name)
        for mirror in blamed:
            self._tell(mirror, name)
        return bool(blamed)

    async def _ask(self, thing: str, question: Callable[[Registry], Awaitable[R]]) -> R:
        first, last = list[int](), list[int]()
        for mirror in range(len(self.mirrors)):
            (last if self._doubts.is_behind(mirror, thing) else first).append(mirror)
        for mirror in first:
            try:
                return await self._ask_mirror(mirror, thing, question)
            except UpstreamError as error:
                _log.debug("%s; asking the next address", error)
        try:
            return await question(self.origin)
        except UpstreamError:
            for mirror in last:
                try:
                    return await self._ask_mirror(mirror, thing, question)
                except UpstreamError as error:
                    _log.debug("%s; no address is left", error)
            raise

    async def _ask_mirror(
        self, mirror: int, thing: str, question: Callable[[Registry], Awaitable[R]]
    ) -> R:
        try:
            answer = await question(self.mirrors[mirror])
        except NonsenseError:
            if self._doubts.failed(mirror, thing):
                self._tell(mirror, thing)
            raise
        self._doubts.gave(mirror, thing)
        return answer

    def _tell(self, mirror: int, thing: str) -> None:
        address = self.mirrors[mirror].address
        _log.warning("%s: %s sent wrong bytes for %s; it is asked last", self.name, address, thing)
