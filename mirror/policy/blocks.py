"""Recalled images: the block list, and what it covers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from mirror.oci.digest import Digest, InvalidDigest
from mirror.oci.image_glob import FullName, ImageGlob, InvalidGlob, Naming, is_glob
from mirror.policy.rules import told_time

_EVERY_TAG: Final = "*"
_ALGORITHMS: Final = ("sha256:", "sha512:")
_SPELT_OUT: Final = Naming("")  # completes nothing


@dataclass(frozen=True, slots=True)
class Block:
    """One entry: ``target`` is a digest, or a full name or glob of images.

    ``digests`` are the manifests and configurations that it covers in every repository, ``layers``
    the blobs whose transfers it breaks off when it is new.  ``since`` is its time (Unix seconds),
    ``by`` the system user; for a block of the configuration they are 0 and empty.  ``lifted``: it
    records that the block was removed at that time, and blocks nothing.
    """

    target: str
    reason: str = ""
    since: float = 0.0
    by: str = ""
    digests: frozenset[Digest] = frozenset()
    layers: frozenset[Digest] = frozenset()
    lifted: bool = False

    def refusal(self, name: str) -> str:
        """The message for a client that asks for ``name``."""
        what = name if name.endswith(self.target) else f"{name} ({self.target})"
        since, remedy = "", "to remove it from [[block]]"
        if self.since:
            since, remedy = f" since {told_time(self.since)}", f"for: mirror unblock {self.target}"
        reason = f": {self.reason}" if self.reason else ""
        return (
            f"{what} is blocked by the operator of this mirror{since}{reason}; pull another "
            f"version, or ask the operator {remedy}"
        )

    def document(self) -> dict[str, Any]:
        """Return the block as a JSON object."""
        return {
            "target": self.target,
            "reason": self.reason,
            "since": self.since,
            "by": self.by,
            "digests": sorted(map(str, self.digests)),
            "layers": sorted(map(str, self.layers)),
            **({"lifted": True} if self.lifted else {}),
        }

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the block of a JSON object.

        Raises:
            ValueError, LookupError, TypeError: the object is not a block.
        """
        block = cls(
            str(document["target"]),
            str(document["reason"]),
            float(document["since"]),
            str(document["by"]),
            frozenset(map(Digest.parse, document["digests"])),
            frozenset(map(Digest.parse, document["layers"])),
            bool(document.get("lifted")),
        )
        parse_target(block.target, _SPELT_OUT)
        return block

    def merged(self, other: Self) -> Self:
        """Return the later one of two records of a target; of the same time, all that both cover.

        All replicas of a cluster find the same one, in whatever order they learn of records.
        """
        last = max(
            self, other, key=lambda each: (each.since, not each.lifted, each.by, each.reason)
        )
        if self.since != other.since or last.lifted:
            return last
        return replace(
            last, digests=self.digests | other.digests, layers=self.layers | other.layers
        )


@dataclass(frozen=True, slots=True)
class Blocks:
    """All blocks in force, and how to find the one that covers an image or an object."""

    all: tuple[Block, ...] = ()
    _digests: Mapping[Digest, Block] = field(default_factory=dict)
    _images: Mapping[FullName, Block] = field(default_factory=dict)
    _globs: tuple[tuple[ImageGlob, Block], ...] = ()

    @classmethod
    def of(cls, blocks: Iterable[Block]) -> Self:
        """Return the blocks in force; their targets are spelt out.

        Raises:
            InvalidGlob: a target is neither a digest nor a glob of images.
        """
        everything = tuple(blocks)
        digests = {digest: block for block in everything for digest in block.digests}
        images, globs = {}, []
        for block in everything:
            target = parse_target(block.target, _SPELT_OUT)
            if isinstance(target, Digest):
                digests[target] = block
            elif target.exact is not None:
                images[target.exact] = block
            else:
                globs.append((target, block))
        return cls(everything, digests, images, tuple(globs))

    def may_cover(self, upstream: str) -> bool:
        """Whether a block may cover content of an upstream."""
        named = any(image.registry == upstream for image in self._images)
        return bool(self._digests) or named or any(g.may_mean(upstream) for g, _ in self._globs)

    def of_digest(self, upstream: str, repository: str, digest: Digest) -> Block | None:
        """Return the block that covers a manifest or blob of a repository, or None."""
        name = FullName(upstream, repository, str(digest))
        return self._digests.get(digest) or self._of_name(name)

    def of_tag(self, upstream: str, repository: str, tag: str) -> Block | None:
        """Return the block that covers a tag, or None; its digest may be covered by another."""
        return self._of_name(FullName(upstream, repository, tag))

    def _of_name(self, name: FullName) -> Block | None:
        found = self._images.get(name)
        if found is not None:
            return found
        for glob, block in self._globs:
            whole = glob.reference == _EVERY_TAG and glob.is_in(name)  # all of the repository
            if whole or glob.matches(name):
                return block
        return None


def parse_target(text: str, naming: Naming) -> Digest | ImageGlob:
    """Parse what an operator blocks: a digest, also after a name, or an image or its glob.

    Raises:
        InvalidGlob: the text is neither.
    """
    try:
        return Digest.parse(text.rpartition("@")[2])
    except InvalidDigest as error:
        if text.startswith(_ALGORITHMS):  # not the tag of a repository of this name
            raise InvalidGlob(str(error)) from error
        # Without a tag: all tags for a glob, otherwise the one of Docker.
        return ImageGlob.parse(text, naming, _EVERY_TAG if is_glob(text) else "latest")


def spelt_out(target: Digest | ImageGlob) -> str:
    """Return the text of a target with its registry and tag."""
    if isinstance(target, Digest):
        return str(target)
    return str(FullName(target.registry, target.repository, target.reference))
