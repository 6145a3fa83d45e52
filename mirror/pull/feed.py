"""Where a fill gets its bytes from.

Without a cluster that is always upstream (:class:`mirror.pull.body.Source`).  A cluster puts other
places before it, such as an object store, and another replica that downloads the same blob.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from mirror.oci.digest import Digest
from mirror.pull.parallel import Stream
from mirror.upstream.errors import UpstreamError

if TYPE_CHECKING:
    from mirror.pull.body import Source


class Feed(Protocol):
    """The places that have the bytes of one fill."""

    @property
    def several(self) -> bool:
        """Whether there is more than one place."""

    @property
    def place(self) -> str:
        """The kind of the place that was opened last, as a token of Cache-Status; "": upstream."""

    def spread(
        self, digest: Digest, start: int, arrived: Callable[[int], None]
    ) -> AbstractAsyncContextManager[Stream]:
        """Open the blob from byte ``start`` on.

        ``arrived`` is called with the size of each piece that arrives, in any order.
        """

    @property
    def leads(self) -> bool:
        """Whether this replica asks upstream for the blob, or gets it from there."""

    def lead(self) -> bool:
        """Promise another replica that these bytes come from no replica, from now on.

        The promise ends if another replica takes the download over.

        Returns:
            False, without a promise, if they come from a replica now.
        """

    async def blame(self, digest: Digest) -> bool:
        """Note that the bytes are wrong.

        Returns:
            whether another place is asked first from now on.
        """

    def mismatched(self, digest: Digest, error: UpstreamError) -> None:
        """Note that the fill fails because its bytes are wrong."""

    def ended(self, digest: Digest, *, stored: bool) -> None:
        """Note that the fill has ended; ``stored``: the blob is in the store."""


class Feeds(Protocol):
    """Makes the feed of each fill."""

    def feed(self, source: "Source", digest: Digest) -> Feed:
        """Return the feed of a fill, whose last place is ``source``."""
