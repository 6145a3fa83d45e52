"""One upstream behind several addresses: its mirrors in order, then the registry itself."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from mirror.oci.digest import Digest
from mirror.upstream.answers import BlobStream, Listing, ManifestBody, ManifestHead
from mirror.upstream.errors import UpstreamError
from mirror.upstream.registry import Registry
from mirror.upstream.transport import READ_BUFFER_BYTES

R = TypeVar("R")
_log = logging.getLogger(__name__)


class Endpoints:
    """The addresses of one upstream.

    What one cannot give, for whatever reason, the next is asked for, as containerd does it; the
    last one has the last word.  Every method raises UpstreamError where it cannot be had.
    """

    def __init__(self, name: str, registries: Sequence[Registry]) -> None:
        self.name = name
        *self._mirrors, self._registry = registries

    async def head_manifest(self, repository: str, reference: str, accept: str) -> ManifestHead:
        """See :meth:`Registry.head_manifest`."""
        return await self._ask(lambda each: each.head_manifest(repository, reference, accept))

    async def get_manifest(self, repository: str, reference: str, accept: str) -> ManifestBody:
        """See :meth:`Registry.get_manifest`."""
        return await self._ask(lambda each: each.get_manifest(repository, reference, accept))

    async def head_blob(self, repository: str, digest: Digest) -> int | None:
        """See :meth:`Registry.head_blob`."""
        return await self._ask(lambda each: each.head_blob(repository, digest))

    @asynccontextmanager
    async def open_blob(
        self,
        repository: str,
        digest: Digest,
        start: int,
        stop: int | None = None,
        buffer_bytes: int = READ_BUFFER_BYTES,
    ) -> AsyncIterator[BlobStream]:
        """See :meth:`Registry.open_blob`."""
        async with AsyncExitStack() as stack:
            yield await self._ask(
                lambda each: stack.enter_async_context(
                    each.open_blob(repository, digest, start, stop, buffer_bytes)
                )
            )

    async def tags(self, repository: str, query: str) -> Listing:
        """See :meth:`Registry.tags`."""
        return await self._ask(lambda each: each.tags(repository, query))

    async def referrers(self, repository: str, digest: Digest, query: str) -> Listing:
        """See :meth:`Registry.referrers`."""
        return await self._ask(lambda each: each.referrers(repository, digest, query))

    async def _ask(self, question: Callable[[Registry], Awaitable[R]]) -> R:
        for mirror in self._mirrors:
            try:
                return await question(mirror)
            except UpstreamError as error:
                _log.info("%s; asking the next address", error)
        return await question(self._registry)
