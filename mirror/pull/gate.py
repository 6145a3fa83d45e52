"""The gate in front of all pulls: the one place that asks ``mirror.policy`` for its decisions.

Public, private and proxied pulls pass through it.  Answers of the response cache do not, so each
change of the decisions must empty that cache.
"""

import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.reference import Tag
from mirror.policy.decisions import Decision, PolicyError
from mirror.policy.rules import Pin, Rule, Verdict, lookup_rule
from mirror.pull.blobs import BlobAnswer, BlobHead, BlobPulls, BlobsForReplicas
from mirror.pull.block_list import BlockList
from mirror.pull.body import Content, Piece
from mirror.pull.cooldown import Cooldown
from mirror.pull.manifests import ManifestAnswer, ManifestPulls, Resolution
from mirror.pull.outcome import BrokenOffError, Outcome
from mirror.pull.policy import HOLD_BACK_BYTES
from mirror.pull.prefetch import Prefetch
from mirror.pull.private import AuthorizedBlobs, AuthorizedManifests
from mirror.shares import FullError
from mirror.upstream.errors import NotFoundError, UpstreamError
from mirror.upstream.routing import Target

if TYPE_CHECKING:
    from mirror.pull.signatures import Signatures

_log = logging.getLogger(__name__)
A = TypeVar("A", ManifestAnswer, Resolution)
#: Returns the address of a blob for a client (an IP address), None if it has none.
Elsewhere = Callable[[str, Digest], Awaitable[str | None]]


class Observer(Protocol):
    """Receives the decisions."""

    def policy_decided(self, upstream: str, decision: str) -> None:
        """A request was decided upon."""


class Gate:
    """Decides for each request whether its content may leave the mirror."""

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

    def rule(self, image: FullName) -> Rule | None:
        """Return the first rule that covers a tag or digest, or None."""
        return lookup_rule(self.rules, image)

    def ruled(self, target: Target, rule: Rule, image: FullName, verdict: Verdict) -> Digest | None:
        """Report a verdict; return the digest to serve, None for that of upstream.

        Raises:
            PolicyError: the image is refused.
        """
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
        """Report an image without a signature that satisfies a rule.

        Raises:
            PolicyError: the image is refused.
        """
        decision = Decision.AUDITED if rule.audit else Decision.UNSIGNED
        self._tell(target, image.reference, decision, why, quiet=rule.audit)
        if not rule.audit:
            raise PolicyError(decision, why, passing=passing)

    def check(self, target: Target, reference: Tag | Digest) -> None:
        """Check a tag or digest against the blocks.

        Raises:
            PolicyError: it is blocked.
        """
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
    """:class:`BlobPulls` behind the gate."""

    gate: Gate
    blobs: BlobPulls | AuthorizedBlobs | BlobsForReplicas
    prefetch: Prefetch | None = None
    elsewhere: Elsewhere | None = None

    async def address(self, target: Target, digest: Digest, client: str) -> str | None:
        """Return where a client gets a whole public blob; None: it gets the bytes here.

        Raises:
            PolicyError: the blob is blocked.
        """
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
        """See :meth:`BlobPulls.get`.

        Raises:
            PolicyError: the blob is blocked.
        """
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
    """A body that ends early if its blob is blocked meanwhile: ``check`` raises PolicyError.

    ``left`` is called when it is closed.
    """

    content: Content
    check: Callable[[], None]
    left: Callable[[], None] | None = None

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


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What to pull for a reference.

    ``resolution`` is the answer for a tag that a rule covers; it counts until ``until`` (monotonic
    seconds), and ``detail`` goes into Cache-Status.  ``instead``: why it
    is not what upstream says.
    """

    reference: Tag | Digest
    resolution: Resolution | None = None
    until: float = math.inf
    detail: str = ""
    instead: str = ""


@dataclass(frozen=True, slots=True)
class GatedManifests:
    """:class:`ManifestPulls` behind the gate."""

    gate: Gate
    manifests: ManifestPulls | AuthorizedManifests
    cooldown: Cooldown
    signatures: "Signatures | None" = None
    prefetch: Prefetch | None = None

    async def get(self, target: Target, reference: Tag | Digest, accept: str) -> ManifestAnswer:
        """See :meth:`ManifestPulls.get`.

        Raises:
            PolicyError: the manifest is refused.
        """
        async with self._meant(target, reference, accept) as meant:
            answer = await self.manifests.get(target, meant.reference, accept)
        self.gate.check(target, answer.manifest.digest)
        if self.prefetch is not None and not answer.private:
            self.prefetch.expect(target, answer.manifest)
        return _as_resolved(answer, meant)

    async def head(self, target: Target, reference: Tag | Digest, accept: str) -> Resolution:
        """See :meth:`ManifestPulls.head`.

        Raises:
            PolicyError: the manifest is refused.
        """
        async with self._meant(target, reference, accept) as meant:
            answer = await self.manifests.head(target, meant.reference, accept)
        self.gate.check(target, answer.descriptor.digest)
        return _as_resolved(answer, meant)

    @asynccontextmanager
    async def _meant(
        self, target: Target, reference: Tag | Digest, accept: str
    ) -> AsyncIterator[_Meaning]:
        """Yield what to pull for a reference; raise PolicyError to refuse it."""
        self.gate.check(target, reference)
        pin = self.gate.pin(target, reference)
        if pin is None:
            meaning = await self._ruled(target, reference, accept)
        else:
            meaning = _Meaning(pin.digest, instead=f"a pin names: {pin}")
        try:
            yield meaning
        except NotFoundError as error:
            if not meaning.instead:
                raise
            raise NotFoundError(target.upstream, f"has not what {meaning.instead}") from error

    async def _ruled(self, target: Target, reference: Tag | Digest, accept: str) -> _Meaning:
        image = FullName(target.upstream, target.repository, str(reference))
        rule = self.gate.rule(image)
        if rule is None:
            if isinstance(reference, Digest) or not self.cooldown.checks_digests:
                return _Meaning(reference)
            resolution = await self.manifests.head(target, reference, accept)
            await self.cooldown.let_parts_pass(target, resolution.descriptor.digest)
            return _Meaning(resolution.descriptor.digest, resolution)
        if isinstance(reference, Digest):
            free = await self._is_pinned(target, reference)
            if not (free or await self.cooldown.is_artifact(target, reference)):
                judging = self.cooldown.judged(rule, target, image, reference)
                verdict = await _judged(rule, reference, judging)
                if await self._is_good(rule, target, image, reference, verdict):
                    self.gate.ruled(target, rule, image, verdict)
            return _Meaning(reference)
        former = await self.cooldown.former(rule, target, image, accept)
        resolution = await self.manifests.head(target, reference, accept)
        digest = resolution.descriptor.digest
        judging = self.cooldown.resolved(rule, target, image, digest, former)
        verdict = await _judged(rule, digest, judging)
        try:
            good = await self._is_good(rule, target, image, digest, verdict)
        except PolicyError:  # the tag has not meant this
            nothing = Verdict(None)
            await self.cooldown.record(target, image, digest, accept, former, nothing)
            raise
        await self.cooldown.record(target, image, digest, accept, former, verdict)
        held = self.gate.ruled(target, rule, image, verdict) if good else None
        if held is None:
            return _Meaning(digest, resolution)
        until = time.monotonic() + verdict.left
        instead = f"a held tag means: {verdict.why}"
        return _Meaning(held, resolution, until, Decision.HELD.value, instead)

    async def _is_pinned(self, target: Target, digest: Digest) -> bool:
        """Whether a pin of the repository names a digest, or an index that lists it."""
        for image, pin in self.gate.pins.items():
            if (image.registry, image.repository) != (target.upstream, target.repository):
                continue
            with contextlib.suppress(UpstreamError, FullError):
                if digest == pin.digest or digest in await self.cooldown.parts(target, pin.digest):
                    return True
        return False

    async def _is_good(
        self, rule: Rule, target: Target, image: FullName, digest: Digest, verdict: Verdict
    ) -> bool:
        """Whether the signatures of what a verdict serves satisfy a rule; it is reported if not.

        Raises:
            PolicyError: it is blocked, or the image is refused.
        """
        meant = digest if rule.audit or verdict.serve is None else verdict.serve
        self.gate.check(target, meant)
        refused = verdict.serve is None and not rule.audit
        return refused or await self._is_signed(rule, target, image, meant)

    async def _is_signed(self, rule: Rule, target: Target, image: FullName, digest: Digest) -> bool:
        """Whether the signatures satisfy a rule; it is reported if not.

        Raises:
            PolicyError: the image is refused.
        """
        if self.signatures is None or not rule.needs_signature:
            return True
        try:
            lacking = await self.signatures.lacking(rule, target, digest)
        except (UpstreamError, FullError) as error:
            text = f"the signatures of {image} ({digest}) cannot be checked now: {error}"
            self.gate.unsigned(target, rule, image, text, passing=True)
            return False
        if lacking:
            self.gate.unsigned(target, rule, image, rule.unsigned(image, digest, lacking))
        return not lacking

    def touch(self, digest: Digest) -> None:
        """See :meth:`ManifestPulls.touch`."""
        self.manifests.touch(digest)

    async def forget(self, name: str) -> None:
        """See :meth:`ManifestPulls.forget`."""
        await self.manifests.forget(name)


async def _judged(rule: Rule, digest: Digest, judging: Awaitable[Verdict]) -> Verdict:
    """Return a verdict on a digest; a rule in audit mode refuses nothing for lack of one."""
    try:
        return await judging
    except (UpstreamError, FullError) as error:
        if not rule.audit:
            raise
        return Verdict(None, why=f"{rule.name} cannot judge {digest} now: {error}")


def _as_resolved(answer: A, meant: _Meaning) -> A:
    """Return an answer for a digest as the answer for the tag that means it."""
    resolution = meant.resolution
    if resolution is None or answer.outcome is not Outcome.HIT:
        return replace(answer, detail=answer.detail or meant.detail)
    detail = meant.detail or resolution.detail
    until = min(resolution.until, meant.until)
    return replace(answer, outcome=resolution.outcome, detail=detail, until=until)
