"""The gate in front of all pulls: the one place that asks ``mirror.policy`` for its decisions.

Public, private and proxied pulls pass through it.  Answers of the response cache do not, so each
change of the decisions must empty that cache.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.reference import Tag
from mirror.policy.blocks import Block, Blocks
from mirror.policy.decisions import Decision, PolicyError
from mirror.policy.rules import Pin
from mirror.pull.blobs import BlobAnswer, BlobHead, BlobPulls
from mirror.pull.body import Content, Piece
from mirror.pull.manifests import ManifestAnswer, ManifestPulls, Resolution
from mirror.pull.outcome import BrokenOffError
from mirror.pull.policy import HOLD_BACK_BYTES
from mirror.pull.private import AuthorizedBlobs, AuthorizedManifests
from mirror.upstream.errors import NotFoundError
from mirror.upstream.routing import Target

_log = logging.getLogger(__name__)
_MESSAGE: Final = "policy"


class Observer(Protocol):
    """Receives the decisions."""

    def policy_decided(self, upstream: str, decision: str) -> None:
        """A request was decided upon."""


class BlockList:
    """The blocks in force, of the configuration and of commands; they outlive a configuration."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` after each change."""
        self.current = Blocks()
        self.changes = 0
        self._changed = changed
        self._configured: tuple[Block, ...] = ()
        self._commanded: tuple[Block, ...] = ()
        self._broken_off: dict[Digest, int] = {}

    def configure(self, blocks: Iterable[Block]) -> None:
        """Use these blocks of the configuration."""
        self._put(tuple(blocks), self._commanded)

    def command(self, blocks: Iterable[Block]) -> None:
        """Use these blocks of commands."""
        self._put(self._configured, tuple(blocks))

    def _put(self, configured: tuple[Block, ...], commanded: tuple[Block, ...]) -> None:
        former = frozenset(self.current.all)
        self._configured, self._commanded = configured, commanded
        blocks = Blocks.of((*configured, *commanded))
        if blocks.all == self.current.all:
            return
        self.current = blocks
        self.changes += 1
        layers = {layer for block in blocks.all if block not in former for layer in block.layers}
        in_force = {layer for block in blocks.all for layer in block.layers}
        kept = {layer: at for layer, at in self._broken_off.items() if layer in in_force}
        self._broken_off = kept | dict.fromkeys(layers, self.changes)
        self._changed()

    def is_broken_off(self, digest: Digest, begun: int) -> bool:
        """Whether a block breaks off a transfer that began when ``changes`` was ``begun``."""
        return self._broken_off.get(digest, 0) > begun


class Gate:
    """Decides for each request whether its content may leave the mirror."""

    def __init__(self, blocks: BlockList, pins: Mapping[FullName, Pin], observer: Observer) -> None:
        self._blocks = blocks
        self._pins = pins
        self._observer = observer

    @property
    def is_closed(self) -> bool:
        """Whether any content may be refused, or be another than upstream's."""
        return bool(self._blocks.current.all or self._pins)

    def check(self, target: Target, reference: Tag | Digest) -> None:
        """Check a tag or digest against the blocks.

        Raises:
            PolicyError: it is blocked.
        """
        name, blocks = (target.upstream, target.repository), self._blocks.current
        if isinstance(reference, Digest):
            block = blocks.of_digest(*name, reference)
        else:
            block = blocks.of_tag(*name, reference)
        if block is not None:
            text = block.refusal(str(FullName(*name, str(reference))))
            self._tell(target, str(reference), Decision.BLOCKED, text)
            raise PolicyError(Decision.BLOCKED, text)

    def pin(self, target: Target, reference: Tag | Digest) -> Pin | None:
        """Return the pin of a tag, or None."""
        if not self._pins or isinstance(reference, Digest):
            return None
        pin = self._pins.get(FullName(target.upstream, target.repository, reference))
        if pin is not None:
            self._tell(target, reference, Decision.PINNED, str(pin), pin.digest)
        return pin

    def transfer(self, target: Target, digest: Digest) -> Callable[[], None]:
        """Return the check to make before each piece of a blob is sent; it raises PolicyError."""
        begun = self._blocks.changes

        def check() -> None:
            self.check(target, digest)
            if self._blocks.is_broken_off(digest, begun):
                raise PolicyError(Decision.BLOCKED, "an image with this layer was blocked")

        return check

    def _tell(
        self,
        target: Target,
        reference: str,
        decision: Decision,
        text: str,
        served: Digest | None = None,
    ) -> None:
        self._observer.policy_decided(target.upstream, decision)
        fields = {
            "decision": decision.value,
            "upstream": target.upstream,
            "repository": target.repository,
            "reference": reference,
            "served": str(served or ""),
            "reason": text,
        }
        _log.log(logging.WARNING if served is None else logging.INFO, _MESSAGE, extra=fields)


@dataclass(frozen=True, slots=True)
class GatedBlobs:
    """:class:`BlobPulls` behind the gate."""

    gate: Gate
    blobs: BlobPulls | AuthorizedBlobs

    async def get(self, target: Target, digest: Digest) -> BlobAnswer:
        """See :meth:`BlobPulls.get`.

        Raises:
            PolicyError: the blob is blocked.
        """
        check = self.gate.transfer(target, digest)
        check()
        answer = await self.blobs.get(target, digest)
        try:
            check()
        except PolicyError:
            await answer.content.close()
            raise
        return replace(answer, content=GatedContent(answer.content, check))

    async def head(self, target: Target, digest: Digest) -> BlobHead:
        """See :meth:`BlobPulls.head`.

        Raises:
            PolicyError: the blob is blocked.
        """
        self.gate.check(target, digest)
        return await self.blobs.head(target, digest)

    def touch(self, digest: Digest) -> None:
        """See :meth:`BlobPulls.touch`."""
        self.blobs.touch(digest)


@dataclass(frozen=True, slots=True)
class GatedContent:
    """A body that ends early if its blob is blocked meanwhile: ``check`` raises PolicyError."""

    content: Content
    check: Callable[[], None]

    @property
    def size(self) -> int | None:
        """See :class:`Content`."""
        return self.content.size

    @property
    def file(self) -> FileRange | None:
        """See :class:`Content`."""
        return self.content.file

    async def pieces(self, start: int, stop: int | None) -> AsyncGenerator[Piece, None]:
        """Yield the pieces; the last bytes of a long one wait until the others are sent."""
        end = self.size if stop is None else stop
        async with aclosing(self.content.pieces(start, stop)) as pieces:
            async for piece in pieces:
                for part in _parts(piece, end):
                    try:
                        self.check()
                    except PolicyError as error:
                        raise BrokenOffError(str(error)) from error
                    yield part

    async def close(self) -> None:
        """See :class:`Content`."""
        await self.content.close()


def _parts(piece: Piece, end: int | None) -> tuple[Piece, ...]:
    """Split the last bytes before ``end`` from the others, which may take minutes to send."""
    if isinstance(piece, bytes) or piece.length <= HOLD_BACK_BYTES:
        return (piece,)
    stop = piece.offset + piece.length
    if end not in {None, stop}:
        return (piece,)
    last = stop - HOLD_BACK_BYTES
    return piece.part(piece.offset, last), piece.part(last, stop)


@dataclass(frozen=True, slots=True)
class GatedManifests:
    """:class:`ManifestPulls` behind the gate."""

    gate: Gate
    manifests: ManifestPulls | AuthorizedManifests

    async def get(self, target: Target, reference: Tag | Digest, accept: str) -> ManifestAnswer:
        """See :meth:`ManifestPulls.get`.

        Raises:
            PolicyError: the manifest is blocked.
        """
        self.gate.check(target, reference)
        async with self._meant(target, reference) as meant:
            answer = await self.manifests.get(target, meant, accept)
        self.gate.check(target, answer.manifest.digest)
        return answer

    async def head(self, target: Target, reference: Tag | Digest, accept: str) -> Resolution:
        """See :meth:`ManifestPulls.head`.

        Raises:
            PolicyError: the manifest is blocked.
        """
        self.gate.check(target, reference)
        async with self._meant(target, reference) as meant:
            answer = await self.manifests.head(target, meant, accept)
        self.gate.check(target, answer.descriptor.digest)
        return answer

    @asynccontextmanager
    async def _meant(self, target: Target, reference: Tag | Digest) -> AsyncIterator[Tag | Digest]:
        """Yield what to pull for a reference: a pin replaces a tag by a digest."""
        pin = self.gate.pin(target, reference)
        try:
            yield reference if pin is None else pin.digest
        except NotFoundError as error:
            if pin is None:
                raise
            raise NotFoundError(target.upstream, f"has not what a pin names: {pin}") from error

    def touch(self, digest: Digest) -> None:
        """See :meth:`ManifestPulls.touch`."""
        self.manifests.touch(digest)

    async def forget(self, name: str) -> None:
        """See :meth:`ManifestPulls.forget`."""
        await self.manifests.forget(name)
