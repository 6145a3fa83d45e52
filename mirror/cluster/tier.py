"""The object store as fills use it: blobs that another mirror has uploaded."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.pull.parallel import Stream


class TierError(Exception):
    """A tier of the cluster is slow, broken or down."""


class TierMissError(TierError):
    """The tier answers, but does not have the object."""


class ObjectTier(Protocol):
    """The blobs in the object store.  Their bytes are not verified."""

    @property
    def up(self) -> bool:
        """Whether the store may be asked: False for a while after failures."""

    def open_blob(self, digest: Digest, start: int) -> AbstractAsyncContextManager[Stream]:
        """Open a blob from byte ``start`` on; the stream raises TierError too.

        Raises:
            TierMissError: the blob is not there.
            TierError: the store does not answer, or not in time.
        """

    async def discard(self, digest: Digest) -> None:
        """Remove a blob whose bytes are wrong, as well as possible."""

    def upload(self, digest: Digest) -> None:
        """Upload a public blob, which the local store has adopted, in the background."""
