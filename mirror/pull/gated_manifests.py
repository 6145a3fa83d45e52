"""Manifests behind the gate: what a tag means here, by blocks, pins and rules."""

import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.reference import Tag
from mirror.policy.rules import Decision, PolicyError, Rule, Verdict, lookup_rule
from mirror.pull.cooldown import Cooldown
from mirror.pull.gate import Gate
from mirror.pull.manifests import ManifestAnswer, ManifestPulls, Resolution
from mirror.pull.outcome import Outcome
from mirror.pull.prefetch import Prefetch
from mirror.pull.private import AuthorizedManifests
from mirror.shares import FullError
from mirror.upstream.errors import NotFoundError, UpstreamError
from mirror.upstream.routing import Target

if TYPE_CHECKING:
    from mirror.pull.signatures import Signatures

A = TypeVar("A", ManifestAnswer, Resolution)


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What to pull for a reference.

    ``resolution`` is the answer for a tag that a rule covers; it counts until ``until`` (monotonic
    seconds), and ``detail`` goes into Cache-Status.  ``instead``: why it is not what upstream says.
    """

    reference: Tag | Digest
    resolution: Resolution | None = None
    until: float = math.inf
    detail: str = ""
    instead: str = ""


@dataclass(frozen=True, slots=True)
class GatedManifests:
    """:class:`ManifestPulls` behind the gate; a refused manifest raises PolicyError."""

    gate: Gate
    manifests: ManifestPulls | AuthorizedManifests
    cooldown: Cooldown
    signatures: "Signatures | None" = None
    prefetch: Prefetch | None = None

    async def get(self, target: Target, reference: Tag | Digest, accept: str) -> ManifestAnswer:
        async with self._meant(target, reference, accept) as meant:
            answer = await self.manifests.get(target, meant.reference, accept)
        self.gate.check(target, answer.manifest.digest)
        if self.prefetch is not None and not answer.private:
            self.prefetch.expect(target, answer.manifest)
        return _as_resolved(answer, meant)

    async def head(self, target: Target, reference: Tag | Digest, accept: str) -> Resolution:
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
        rule = lookup_rule(self.gate.rules, image)
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
        """Whether the signatures of what a verdict serves satisfy a rule; it is reported if not."""
        meant = digest if rule.audit or verdict.serve is None else verdict.serve
        self.gate.check(target, meant)
        if verdict.serve is None and not rule.audit:
            return True  # it is refused anyway
        if self.signatures is None or not rule.needs_signature:
            return True
        try:
            lacking = await self.signatures.lacking(rule, target, meant)
        except (UpstreamError, FullError) as error:
            text = f"the signatures of {image} ({meant}) cannot be checked now: {error}"
            self.gate.unsigned(target, rule, image, text, passing=True)
            return False
        if lacking:
            self.gate.unsigned(target, rule, image, rule.unsigned(image, meant, lacking))
        return not lacking

    def touch(self, digest: Digest) -> None:
        self.manifests.touch(digest)

    async def forget(self, name: str) -> None:
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
