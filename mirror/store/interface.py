"""The store as ``mirror.pull`` uses it: Protocols, their values and their errors.

Any number of tasks may use a store at once; a partial blob belongs to the task that staged it.
Methods raise ``IndexUnavailableError`` or ``OSError`` only where this is documented: a lookup in a
failing store is a miss.
``tests/store/test_conformance.py`` tests these promises.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest, Hasher
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import Descriptor
from mirror.policy.rules import Meanings, Seen
from mirror.shares import Hold

#: Bytes of a blob, or a view of them in the memory of the library that has received them.
Chunk = bytes | memoryview

#: A page of tags takes a few KiB, the full list of a busy repository 100 KiB.
MOST_PAGE_BYTES: Final = 256 * 1024


class NoRoomError(Exception):
    """The limits leave too little space, and eviction cannot make any."""


class PartialBusyError(Exception):
    """Another leader, most likely another process, is filling this blob."""


class IndexUnavailableError(Exception):
    """The index cannot be read or written: lock timeout, full disk, or disk failure."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Manifest:
    """A manifest, byte for byte as upstream sent it; ``hold`` is its share of the memory."""

    digest: Digest
    media_type: str
    body: bytes
    hold: Hold | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Link:
    """A tag's manifest, and the time when upstream confirmed it (Unix seconds).

    ``imported``: the operator imported the tag.  Such a link never becomes too old; the operator
    removes it.
    """

    descriptor: Descriptor
    seen: float
    imported: bool = False


def link_name(image: FullName, accept: str = "") -> str:
    """Return the name of an image's link: for all clients, or for those with this ``accept``."""
    return f"{image.registry} {image.repository} {image.reference} {accept}".rstrip()


@dataclass(frozen=True, slots=True)
class Page:
    """A page, its header fields by name, and the time when upstream sent it (Unix seconds).

    ``body`` is None if upstream answered 404, for a listing or for other content.
    """

    body: bytes | None
    fields: Mapping[str, str]
    seen: float


class PartialBlob(Protocol):
    """The growing prefix of a blob, for the fill that leads it.

    The fill leads, in all processes, until it calls :meth:`release`.
    """

    @property
    def length(self) -> int:
        """The number of bytes so far."""

    @property
    def hasher(self) -> Hasher:
        """The hasher, which has seen exactly these bytes."""

    @property
    def content(self) -> FileRange:
        """The bytes so far.  Readers use a duplicate, which stays readable after ``release``."""

    def verified(self) -> bool:
        """Return True if the bytes so far hash to the digest."""

    async def reserve(self, size: int, total: int | None) -> bool:
        """Reserve space for ``size`` bytes, by eviction if needed; False if there is none.

        ``total`` is the size of the blob in bytes, None if unknown; followers are told.

        Raises:
            OSError, IndexUnavailableError: the disk or the index cannot be used.
        """

    async def append(self, pieces: Sequence[Chunk]) -> None:
        """Write and hash the next bytes.

        Raises:
            OSError: the write failed; ``length`` and ``hasher`` count the written bytes only.
        """

    async def restart(self) -> None:
        """Discard the bytes so far; there must not be readers.

        Raises:
            OSError: the file cannot be truncated.
        """

    async def adopt(self) -> None:
        """Store the verified blob: from now on the store finds it.

        It survives a crash and a loss of power.  A new public blob replaces a private one.

        Raises:
            OSError, IndexUnavailableError: the blob could not be stored.
        """

    async def release(self, *, discard: bool = False) -> None:
        """End the fill and its reservation: keep the bytes for the next leader, or discard them."""


@dataclass(frozen=True, slots=True)
class PartialStatus:
    """The state of a partial blob: ``length`` of ``total`` bytes; ``led`` if it has a leader."""

    length: int
    total: int | None
    led: bool


class PartialBlobReader(Protocol):
    """The growing prefix of a blob that another process leads."""

    @property
    def content(self) -> FileRange:
        """The bytes at the last :meth:`look`; the same file after the leader has adopted it."""

    def look(self) -> PartialStatus:
        """Return the current state, in a few microseconds.

        Raises:
            OSError: the file cannot be queried.
        """

    async def hashed(self, digest: Digest, length: int) -> Hasher:
        """Hash the first ``length`` bytes.

        Raises:
            OSError: the file cannot be read, or is shorter.
        """

    def close(self) -> None:
        """Close the file."""


class BlobStore(Protocol):
    """The stored blobs, and the partial blobs that become stored blobs."""

    @property
    def private(self) -> bool:
        """Whether new blobs are private to the upstream given to :meth:`of`."""

    def of(self, upstream: str) -> Self:
        """Return the blobs that ``upstream`` may serve: public ones, and its own private ones.

        A public store returns itself.  It never finds private blobs.
        """

    async def lookup(self, digest: Digest) -> FileRange | None:
        """Open a stored blob, or return None; the caller closes it.

        The bytes hash to the digest, and stay readable if the blob is removed meanwhile.
        """

    async def stage(self, digest: Digest) -> PartialBlob:
        """Become the only leader of a blob's fill.

        It starts with the bytes that the last leader left, also after a crash of that process.

        Raises:
            PartialBusyError: another fill leads.
            OSError: the disk cannot be used.
        """

    async def tail(self, digest: Digest) -> PartialBlobReader | None:
        """Open the partial blob that another process leads; None if that fill has just ended.

        Raises:
            OSError: the disk cannot be used.
        """

    def touch(self, digest: Digest) -> None:
        """Record a use of a blob that was not looked up."""


class ManifestStore(Protocol):
    """The stored manifests."""

    def of(self, upstream: str) -> "ManifestStore":
        """Return the manifests that ``upstream`` may serve, as for blobs."""

    async def lookup(self, digest: Digest) -> Manifest | None:
        """Return the manifest of a digest, or None; its bytes hash to the digest."""

    async def put(self, manifest: Manifest) -> None:
        """Store a manifest whose digest the caller has verified; replace its media type.

        It survives a crash, and is found or missing as a whole.

        Raises:
            NoRoomError, OSError, IndexUnavailableError, PartialBusyError: it was not stored.
        """

    def touch(self, digest: Digest) -> None:
        """Record a use of a manifest that was not looked up."""


class TagStore(Protocol):
    """Links by name (see :func:`link_name`).  They survive a restart; the oldest may be dropped."""

    async def lookup(self, name: str) -> Link | None:
        """Return the link, or None."""

    async def put(self, name: str, link: Link) -> None:
        """Record a link; replace the link of the same name.

        Raises:
            IndexUnavailableError: the link could not be written.
        """

    async def forget(self, name: str) -> None:
        """Remove a link, if it exists.

        Raises:
            IndexUnavailableError: the link could not be removed.
        """


class ListingStore(Protocol):
    """Pages of listings by name.  They survive a restart; the oldest may be dropped."""

    async def lookup(self, name: str) -> Page | None:
        """Return the last page, or None."""

    async def put(self, name: str, page: Page) -> None:
        """Record a page; forget the last one instead if the page exceeds MOST_PAGE_BYTES.

        A failed write is skipped.
        """

    async def forget(self, name: str) -> None:
        """Remove a page, if there is one.  A failed write is skipped."""


class DecisionStore(Protocol):
    """What rules need to know: first-seen digests by repository, and what tags have meant here.

    They survive a restart; the oldest may be dropped.  ``repository`` and ``name`` are chosen by
    the caller, and unique.
    """

    async def seen(self, repository: str, digest: Digest) -> Seen | None:
        """Return what was recorded of a digest, or None."""

    async def see(self, repository: str, digest: Digest, seen: Seen) -> None:
        """Record it; a failed write is logged, and the digest counts as unseen."""

    async def signers(self, repository: str, digest: Digest) -> frozenset[str]:
        """Return the keys by which a signature of the digest was verified."""

    async def sign(self, repository: str, digest: Digest, keys: frozenset[str]) -> None:
        """Record these keys; a failed write is logged."""

    async def meanings(self, name: str) -> Meanings:
        """Return what a tag has meant; nothing for an unknown tag."""

    async def mean(self, name: str, meanings: Meanings) -> None:
        """Record what a tag has meant; a failed write is logged."""

    async def learn(self, repository: str, digest: Digest) -> bool:
        """Record what other replicas know of a digest; return whether that is something new."""

    async def held(self) -> list[tuple[str, FullName, Meanings]]:
        """Return the tags that mean another digest upstream: names as for ``mean``, and meanings.

        Raises:
            IndexUnavailableError: the records cannot be read.
        """


class RepositoryLinks(Protocol):
    """Which private objects belong to which repository, by name, as upstream confirmed."""

    async def has(self, name: str) -> bool:
        """Return True if the link was recorded; False if this is unknown."""

    async def put(self, name: str) -> None:
        """Record a link that upstream has just confirmed; a failed write is skipped."""
