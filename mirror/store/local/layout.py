"""The file tree of the cache directory.  It defines names and paths and opens directories only.

::

    <root>/
      cache.db                             index of the objects (diskcache, SQLite)
      blobs/sha256/ab/<hex>.<suffix>       a complete, verified blob
      manifests/sha256/ab/<hex>.<suffix>   a complete, verified manifest
      private-blobs/, private-manifests/   objects fetched with the credentials of a client; they
                                           stay private even if all databases are lost; the suffix
                                           begins with a mark of the upstream
      partial/<kind>.sha256.<hex>          a fill: the length is its progress, the leader holds a
                                           flock on it
      expected/<kind>.sha256.<hex>         the expected size of the fill
      pending/<act>.<kind>.sha256.<hex>.<suffix>
                                           a second link to an object whose row is being written
                                           (``adopt``) or removed (``evict``); see ``index``
      tags/cache.db                        the last known manifest of each tag
      listings/cache.db                    the last response for each listing, and 404s
      uploads/<kind>.sha256.<hex>          an object that is not yet in the cluster's object store
      pushed/<hash>                        the last push to a repository through the proxy
      control/<pid>.sock                   the control socket of each process of a running mirror
      control/token                        the hash of the token that allows changes by HTTP
      keep                                 the images that are kept by the status page
      ledger/ledger.db                     the ledger: usage statistics (SQLite)
      private/cache.db                     tags, listings and links of private repositories
      format                               the number of this layout, see ``FORMAT``
      lock                                 a shared flock of every process that uses the directory
      blocks.json                          the images that operators have blocked by command
      scrub                                the number of the row that was scrubbed last
      rebuild                              exists while a lost index is rebuilt from the files

The suffix is new for every file.  diskcache removes the *former* file of a key after it has
written the new row, so with a name that depends on the content alone it would remove the file
that was just stored.
"""

import contextlib
import errno
import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror import __version__
from mirror.oci.digest import Digest
from mirror.user_error import UserError

BLOBS: Final = "blobs"
MANIFESTS: Final = "manifests"
PRIVATE_BLOBS: Final = "private-blobs"
PRIVATE_MANIFESTS: Final = "private-manifests"
_KINDS: Final = (BLOBS, MANIFESTS, PRIVATE_BLOBS, PRIVATE_MANIFESTS)

#: The format of the directory and of its databases.  Raise it for a change that a former version
#: would misread; a change that former versions can live with needs no new number.  Directories of
#: 0.2.0 and before have this format, but no file that says so.
FORMAT: Final = 1
#: The former formats that this version reads, too; a loss of power may leave an empty file.
_READABLE: Final = frozenset({str(FORMAT), ""})

_RANDOM_BYTES: Final = 4
_MARK_LENGTH: Final = 12
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_CACHEDIR_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of container images.\n"


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """The key of an object: its kind (the name of the top directory) and its digest.

    A private and a public object with the same digest are two objects.
    """

    kind: str
    digest: Digest

    def __str__(self) -> str:
        return f"{self.kind}.{self.digest.algorithm}.{self.digest.hex}"

    @classmethod
    def parse(cls, text: str) -> "ObjectKey":
        """Parse the result of ``str``.

        Raises:
            ValueError: the text is not a key.
        """
        kind, algorithm, hexadecimal = text.split(".")
        if kind not in _KINDS:
            raise ValueError(f"no such kind of object: {kind!r}")
        return cls(kind, Digest.parse(f"{algorithm}:{hexadecimal}"))

    @classmethod
    def of_name(cls, name: str) -> "ObjectKey":
        """Return the key for an object's file name, relative to the root.

        Raises:
            ValueError: the name is not that of an object.
        """
        kind, algorithm, _, file = name.split("/")
        return cls.parse(f"{kind}.{algorithm}.{file.partition('.')[0]}")

    @property
    def is_manifest(self) -> bool:
        return self.kind in {MANIFESTS, PRIVATE_MANIFESTS}

    @property
    def private_twin(self) -> "ObjectKey | None":
        """The key of the private object of the same digest; None if this key is private."""
        twin = {BLOBS: PRIVATE_BLOBS, MANIFESTS: PRIVATE_MANIFESTS}.get(self.kind)
        return None if twin is None else ObjectKey(twin, self.digest)

    def new_name(self, origin: str = "") -> str:
        """Return a unique new file name, relative to the root; see :func:`origin_of`."""
        digest = self.digest
        directory = f"{self.kind}/{digest.algorithm}/{digest.hex[:2]}"
        return f"{directory}/{digest.hex}.{origin}{secrets.token_hex(_RANDOM_BYTES)}"


def origin_mark(upstream: str) -> str:
    """Return the mark of an upstream in the file names of its private objects."""
    return hashlib.sha256(upstream.encode()).hexdigest()[:_MARK_LENGTH]


def origin_of(path: Path) -> str:
    """Return the mark of a private object's upstream; empty for a public object.

    The mark is part of the file name, so that it cannot be lost before the file.
    """
    return path.name.rpartition(".")[2][: -2 * _RANDOM_BYTES]


class Layout:
    """The paths in one cache directory, as in the tree above."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.partial = root / "partial"
        self.reservations = root / "expected"
        self.pending = root / "pending"
        self.tags = root / "tags"
        self.listings = root / "listings"
        self.private = root / "private"
        self.ledger = root / "ledger"
        self.uploads = root / "uploads"
        self.pushed = root / "pushed"
        self.control = root / "control"
        self.format = root / "format"
        self.token = self.control / "token"
        self.keep_list = root / "keep"
        self.lock = root / "lock"
        self.blocks = root / "blocks.json"
        self.scrub = root / "scrub"
        self.rebuild = root / "rebuild"

    def records(self) -> Iterator[Path]:
        yield from (self.tags, self.listings, self.private)

    def others(self) -> Iterator[Path]:
        """Yield the files of the ledger, of reservations, of pending changes and of pushes."""
        for directory in (self.ledger, self.reservations, self.pending, self.pushed):
            with contextlib.suppress(OSError):
                yield from directory.iterdir()

    def all_directories(self) -> Iterator[Path]:
        """Yield all directories: on most file systems each takes at least one block."""
        fixed = (self.root, self.partial, self.reservations, self.pending, self.pushed)
        yield from (*fixed, *self.records(), self.ledger, self.control)
        for kind in _KINDS:
            yield from (self.root / kind, *(self.root / kind).glob("*"))
        yield from self.directories()

    def directories(self) -> Iterator[Path]:
        for kind in _KINDS:
            yield from (self.root / kind).glob("*/*")

    def partial_of(self, key: ObjectKey, origin: str = "") -> Path:
        return self.partial / (f"{key}.{origin}" if origin else str(key))

    def ensure(self) -> None:
        """Create the directories, accessible to their owner only.

        Raises:
            OSError: the cache directory cannot be created or written, or has no hard links.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        growing = (self.partial, self.reservations, self.pending)
        for directory in (*growing, self.tags, self.listings, self.private):
            directory.mkdir(mode=0o700, exist_ok=True)
        # Backup programs skip a directory with this file (bford.info/cachedir).
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():  # on a full disk, writing it again could fail
            tag.write_text(_CACHEDIR_TAG)
        self._note_format()
        self._probe_links()

    def check_format(self) -> None:
        """Check that this version can read the directory; also one that does not exist yet.

        Raises:
            UserError: a newer version has written the directory.
        """
        try:
            found = self.format.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # missing, or the disk has errors that opening the index reports
            return
        if found not in _READABLE:
            raise UserError(
                f"the cache directory {self.root} has the format {found[:20]!r} of a newer version "
                f"of mirror, and {__version__} reads up to {FORMAT}; run the "
                "newer version, or name another directory with --cache-dir or [cache] directory"
            )

    def _note_format(self) -> None:
        if self.format.exists():
            return
        new = self.format.with_name(f"format.{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):  # a full disk: without the file it is the same format
            new.write_text(f"{FORMAT}\n")
            new.replace(self.format)
        new.unlink(missing_ok=True)

    def _probe_links(self) -> None:
        """Fail at startup on file systems without hard links (some network and FUSE ones)."""
        probe = self.root / "probe"  # a fixed name, so that crashes leave one file at most
        try:
            with contextlib.suppress(FileExistsError):  # from a crash or another process
                probe.hardlink_to(self.root / "CACHEDIR.TAG")
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise OSError(error.errno, "its file system has no hard links") from error
        finally:
            probe.unlink(missing_ok=True)


def left_in(root: Path) -> Callable[[Digest], int]:
    """Return a function from a digest to the bytes of its blob that a past download left."""
    layout = Layout(root)

    def left_of(digest: Digest) -> int:
        try:
            return layout.partial_of(ObjectKey(BLOBS, digest)).stat().st_size
        except OSError:
            return 0

    return left_of
