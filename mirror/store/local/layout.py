"""The tree of the cache directory.  Knows names and places; opens nothing but directories.

::

    <root>/
      cache.db                             index of the objects (diskcache, SQLite)
      blobs/sha256/ab/<hex>.<suffix>       a whole, verified blob
      manifests/sha256/ab/<hex>.<suffix>   a whole, verified manifest
      private-blobs/, private-manifests/   the same, got with the credentials of a client: what is
                                           there is not for everybody, whatever else is lost; its
                                           suffix begins with a mark of the upstream it is from
      partial/<kind>.sha256.<hex>          a fill: its length is its progress, its flock its leader
      expected/<kind>.sha256.<hex>         what it will grow to
      pending/<act>.<kind>.sha256.<hex>.<suffix>
                                           a second name of an object whose row is being written
                                           (``adopt``) or removed (``evict``); see ``index``
      tags/cache.db                        what each tag last meant
      listings/cache.db                    what each listing last said
      pushed/<hash>                        when a repository was pushed to through the proxy
      control/<pid>.sock                   where each process of a running mirror takes commands
      ledger/ledger.db                     what the mirror has done (SQLite), for people to see
      private/cache.db                     the same of private repositories, and what they have
      lock                                 flock: shared by all who use the directory
      scrub                                the number of the row that was scrubbed last
      rebuild                              the index was lost: files are still to be found

The suffix is new for every file: diskcache removes the *former* file name of a key after it
has written the new one, so a name that depends on the content alone would remove what was
just stored.
"""

import contextlib
import errno
import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.oci.digest import Digest

BLOBS: Final = "blobs"
MANIFESTS: Final = "manifests"
PRIVATE_BLOBS: Final = "private-blobs"
PRIVATE_MANIFESTS: Final = "private-manifests"
_KINDS: Final = (BLOBS, MANIFESTS, PRIVATE_BLOBS, PRIVATE_MANIFESTS)

_RANDOM_BYTES: Final = 4
_MARK_LENGTH: Final = 12
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_CACHEDIR_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of container images.\n"


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """Which object: its kind (the name of a directory of objects) and its digest.

    What is private is another object than what everybody may have, though its digest be the same.
    """

    kind: str
    digest: Digest

    def __str__(self) -> str:
        return f"{self.kind}.{self.digest.algorithm}.{self.digest.hex}"

    @classmethod
    def parse(cls, text: str) -> "ObjectKey":
        """Read back what ``str`` wrote.

        Raises:
            ValueError: the text is not a key.
        """
        kind, algorithm, hexadecimal = text.split(".")
        if kind not in _KINDS:
            raise ValueError(f"no such kind of object: {kind!r}")
        return cls(kind, Digest.parse(f"{algorithm}:{hexadecimal}"))

    @classmethod
    def of_name(cls, name: str) -> "ObjectKey":
        """The key of an object's file name, relative to the root.

        Raises:
            ValueError: it is none.
        """
        kind, algorithm, _, file = name.split("/")
        return cls.parse(f"{kind}.{algorithm}.{file.partition('.')[0]}")

    @property
    def is_manifest(self) -> bool:
        """Whether it is a manifest, which has a media type."""
        return self.kind in {MANIFESTS, PRIVATE_MANIFESTS}

    @property
    def private_twin(self) -> "ObjectKey | None":
        """The private object of the same bytes, None for what is private itself."""
        twin = {BLOBS: PRIVATE_BLOBS, MANIFESTS: PRIVATE_MANIFESTS}.get(self.kind)
        return None if twin is None else ObjectKey(twin, self.digest)

    def new_name(self, origin: str = "") -> str:
        """A file name, relative to the root, that no file has had before; see :func:`origin_of`."""
        digest = self.digest
        directory = f"{self.kind}/{digest.algorithm}/{digest.hex[:2]}"
        return f"{directory}/{digest.hex}.{origin}{secrets.token_hex(_RANDOM_BYTES)}"


def origin_mark(upstream: str) -> str:
    """What stands for an upstream in the names of files that it has given as private."""
    return hashlib.sha256(upstream.encode()).hexdigest()[:_MARK_LENGTH]


def origin_of(path: Path) -> str:
    """The mark of the upstream that a private object is from, empty for what is everybody's.

    It is in the file's name, so that it is lost together with the file and not before.
    """
    return path.name.rpartition(".")[2][: -2 * _RANDOM_BYTES]


@dataclass(frozen=True, slots=True)
class Layout:
    """The places below one cache directory."""

    root: Path

    @property
    def partial(self) -> Path:
        """Where fills grow."""
        return self.root / "partial"

    @property
    def expected(self) -> Path:
        """Where fills say what they will grow to."""
        return self.root / "expected"

    @property
    def pending(self) -> Path:
        """Where changes to the index are noted before they are made."""
        return self.root / "pending"

    @property
    def tags(self) -> Path:
        """Where the index of tags lives."""
        return self.root / "tags"

    @property
    def listings(self) -> Path:
        """Where the index of listings lives."""
        return self.root / "listings"

    @property
    def ledger(self) -> Path:
        """Where the ledger lives."""
        return self.root / "ledger"

    @property
    def private(self) -> Path:
        """Where the index of private repositories lives: their tags, and what they have."""
        return self.root / "private"

    @property
    def rebuild(self) -> Path:
        """Is there while the index does not know all files."""
        return self.root / "rebuild"

    @property
    def pushed(self) -> Path:
        """Where the moments of pushes are."""
        return self.root / "pushed"

    @property
    def lock(self) -> Path:
        """The file whose lock says who uses the directory."""
        return self.root / "lock"

    @property
    def control(self) -> Path:
        """Where the processes of a running mirror take commands."""
        return self.root / "control"

    @property
    def scrub(self) -> Path:
        """How far the scrub has come."""
        return self.root / "scrub"

    def records(self) -> Iterator[Path]:
        """The directories of the databases of small records."""
        yield from (self.tags, self.listings, self.private)

    def others(self) -> Iterator[Path]:
        """The other files that are neither objects nor partial files, nor the index's."""
        for directory in (self.ledger, self.expected, self.pending, self.pushed):
            with contextlib.suppress(OSError):
                yield from directory.iterdir()

    def all_directories(self) -> Iterator[Path]:
        """All directories: on most file systems each takes a block, or more when it is large."""
        fixed = (self.root, self.partial, self.expected, self.pending, self.pushed)
        yield from (*fixed, *self.records(), self.ledger, self.control)
        for kind in _KINDS:
            yield from (self.root / kind, *(self.root / kind).glob("*"))
        yield from self.directories()

    def directories(self) -> Iterator[Path]:
        """The directories that objects are in."""
        for kind in _KINDS:
            yield from (self.root / kind).glob("*/*")

    def partial_of(self, key: ObjectKey, origin: str = "") -> Path:
        """Where one object grows until it is whole."""
        return self.partial / (f"{key}.{origin}" if origin else str(key))

    def ensure(self) -> None:
        """Create the directories, for the owner's eyes only.

        Raises:
            OSError: the cache directory cannot be created or written, or has no hard links.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        growing = (self.partial, self.expected, self.pending)
        for directory in (*growing, self.tags, self.listings, self.private):
            directory.mkdir(mode=0o700, exist_ok=True)
        # Backup programs skip a directory that carries this file (bford.info/cachedir).
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():  # on a full disk it may not be written again
            tag.write_text(_CACHEDIR_TAG)
        self._probe_links()

    def _probe_links(self) -> None:
        """Fail at the start where every adoption would (some network and FUSE file systems)."""
        probe = self.root / "probe"  # one name for all, so that crashes do not collect them
        try:
            with contextlib.suppress(FileExistsError):  # of a crash, or of whoever starts with us
                probe.hardlink_to(self.root / "CACHEDIR.TAG")
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise OSError(error.errno, "its file system has no hard links") from error
        finally:
            probe.unlink(missing_ok=True)


def left_in(root: Path) -> Callable[[Digest], int]:
    """Tells how many bytes of a blob an earlier download has left in a cache directory."""
    layout = Layout(root)

    def left_of(digest: Digest) -> int:
        try:
            return layout.partial_of(ObjectKey(BLOBS, digest)).stat().st_size
        except OSError:
            return 0

    return left_of
