"""The gate in front of all pulls: the one place that asks ``mirror.policy`` for its decisions.

Public, private and proxied pulls pass through it.  Answers of the response cache do not, so each
change of the decisions must empty that cache.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.reference import Tag
from mirror.policy.blocks import Block, Blocks
from mirror.policy.rules import Decision, Pin, PolicyError, Rule, Verdict
from mirror.pull.blobs import BlobAnswer, BlobHead, BlobPulls, BlobsForReplicas
from mirror.pull.body import Content, Piece
from mirror.pull.outcome import BrokenOffError
from mirror.pull.policy import HOLD_BACK_BYTES
from mirror.pull.prefetch import Prefetch
from mirror.pull.private import AuthorizedBlobs
from mirror.upstream.routing import Target

_log = logging.getLogger(__name__)
#: Returns the address of a blob for a client (an IP address), None if it has none.
Elsewhere = Callable[[str, Digest], Awaitable[str | None]]


class BlockList:
    """The blocks in force, of the configuration and of commands; they outlive a configuration."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` after each change; it makes the mirror decide anew."""
        self.current = Blocks()
        self.changes = 0
        self.changed = changed
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
        self.changed()

    def is_broken_off(self, digest: Digest, begun: int) -> bool:
        """Whether a block breaks off a transfer that began when ``changes`` was ``begun``."""
        return self._broken_off.get(digest, 0) > begun


class Observer(Protocol):
    """Receives the decisions."""

    def policy_decided(self, upstream: str, decision: str) -> None:
        """A request was decided upon."""


class Gate:
    """Decides for each request whether its content may leave the mirror.

    What is refused or blocked raises PolicyError.
    """

    def __init__(
        self,
        blocks: BlockList,
        pins: Mapping[FullName, Pin],
        rules: Sequence[Rule],
        observer: Observer,
    ) -> None:
        self.blocks = blocks
        self.pins = pins
        self.rules = rules
        self._observer = observer

    def limits(self, upstream: str) -> bool:
        """Whether content of an upstream may be refused, or be another than upstream's."""
        pinned = any(image.registry == upstream for image in self.pins)
        ruled = any(rule.may_cover(upstream) for rule in self.rules)
        return pinned or ruled or self.blocks.current.may_cover(upstream)

    def ruled(self, target: Target, rule: Rule, image: FullName, verdict: Verdict) -> Digest | None:
        """Report a verdict; return the digest to serve, None for that of upstream."""
        reference, served = image.reference, verdict.serve
        if not verdict.why:
            self._observer.policy_decided(target.upstream, Decision.ALLOWED)
        elif rule.audit:
            self._tell(target, reference, Decision.AUDITED, verdict.why, quiet=True)
        else:
            held = Decision.HELD
            self._tell(target, reference, held, verdict.why, served, quiet=served is not None)
            if served is None:
                raise PolicyError(held, verdict.why)
            return served
        return None

    def unsigned(
        self, target: Target, rule: Rule, image: FullName, why: str, *, passing: bool = False
    ) -> None:
        """Report an image without a signature that satisfies a rule, and refuse it."""
        decision = Decision.AUDITED if rule.audit else Decision.UNSIGNED
        self._tell(target, image.reference, decision, why, quiet=rule.audit)
        if not rule.audit:
            raise PolicyError(decision, why, passing=passing)

    def check(self, target: Target, reference: Tag | Digest) -> None:
        """Check a tag or digest against the blocks."""
        name, blocks = (target.upstream, target.repository), self.blocks.current
        if isinstance(reference, Digest):
            block = blocks.of_digest(*name, reference)
        else:
            block = blocks.of_tag(*name, reference)
        if block is not None:
            text = block.refusal(str(FullName(*name, str(reference))))
            self._tell(target, str(reference), Decision.BLOCKED, text)
            raise PolicyError(Decision.BLOCKED, text)

    def withholds(self, target: Target, layer: Digest) -> bool:
        """Whether a layer, or an image with it, is blocked; nothing is reported."""
        block = self.blocks.current.of_digest(target.upstream, target.repository, layer)
        return block is not None or self.blocks.is_broken_off(layer, 0)

    def pin(self, target: Target, reference: Tag | Digest) -> Pin | None:
        """Return the pin of a tag, or None."""
        if not self.pins or isinstance(reference, Digest):
            return None
        pin = self.pins.get(FullName(target.upstream, target.repository, reference))
        if pin is not None:
            self._tell(target, reference, Decision.PINNED, str(pin), pin.digest, quiet=True)
        return pin

    def transfer(self, target: Target, digest: Digest) -> Callable[[], None]:
        """Return the check to make before each piece of a blob is sent; it raises PolicyError."""
        begun = self.blocks.changes

        def check() -> None:
            self.check(target, digest)
            if self.blocks.is_broken_off(digest, begun):
                raise PolicyError(Decision.BLOCKED, "an image with this layer was blocked")

        return check

    def _tell(
        self,
        target: Target,
        reference: str,
        decision: Decision,
        text: str,
        served: Digest | None = None,
        *,
        quiet: bool = False,
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
        _log.log(logging.INFO if quiet else logging.WARNING, "policy", extra=fields)


@dataclass(frozen=True, slots=True)
class GatedBlobs:
    """:class:`BlobPulls` behind the gate; a blocked blob raises PolicyError."""

    gate: Gate
    blobs: BlobPulls | AuthorizedBlobs | BlobsForReplicas
    prefetch: Prefetch | None = None
    elsewhere: Elsewhere | None = None

    async def address(self, target: Target, digest: Digest, client: str) -> str | None:
        """Return where a client gets a whole public blob; None: it gets the bytes here."""
        if self.elsewhere is None or target.principal is not None:
            return None
        check = self.gate.transfer(target, digest)
        check()
        address = await self.elsewhere(client, digest)
        check()
        if address is not None:
            self.touch(digest)
        return address

    async def get(self, target: Target, digest: Digest) -> BlobAnswer:
        check = self.gate.transfer(target, digest)
        check()
        answer = await self.blobs.get(target, digest)
        left: Callable[[], None] | None = None
        try:
            check()
            if self.prefetch is not None:
                answer, left = await self.prefetch.followed(target, digest, answer)
        except BaseException:
            await answer.content.close()
            raise
        return replace(answer, content=GatedContent(answer.content, check, left))

    async def head(self, target: Target, digest: Digest) -> BlobHead:
        self.gate.check(target, digest)
        return await self.blobs.head(target, digest)

    def touch(self, digest: Digest) -> None:
        self.blobs.touch(digest)


@dataclass(frozen=True, slots=True)
class GatedContent:
    """A body that ends early if its blob is blocked meanwhile: ``check`` raises PolicyError.

    ``left`` is called when it is closed.
    """

    content: Content
    check: Callable[[], None]
    left: Callable[[], None] | None = None

    @property
    def size(self) -> int | None:
        return self.content.size

    @property
    def file(self) -> FileRange | None:
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
        try:
            await self.content.close()
        finally:
            if self.left is not None:
                self.left()


def _parts(piece: Piece, end: int | None) -> tuple[Piece, ...]:
    """Split the last bytes before ``end`` from the others, which may take minutes to send."""
    if isinstance(piece, bytes) or piece.length <= HOLD_BACK_BYTES:
        return (piece,)
    stop = piece.offset + piece.length
    if end not in {None, stop}:
        return (piece,)
    last = stop - HOLD_BACK_BYTES
    return piece.part(piece.offset, last), piece.part(last, stop)
