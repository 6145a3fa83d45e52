"""Applies a rule to the digest that a tag means upstream; only the gate calls it."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import NotAManifest, index_entries, is_runnable, references
from mirror.oci.media_types import DOCKER_LIST, OCI_INDEX, accepts, narrow_accept
from mirror.policy.rules import (
    Facts,
    Meanings,
    Moment,
    Rule,
    Seen,
    Verdict,
    first_seen,
    judge,
    needs_date,
)
from mirror.pull.blobs import BlobPulls
from mirror.pull.manifests import ManifestPulls
from mirror.pull.outcome import BrokenOffError
from mirror.pull.private import AuthorizedBlobs, AuthorizedManifests
from mirror.store.interface import DecisionStore, Link, link_name
from mirror.upstream.errors import NotFoundError, UnavailableError
from mirror.upstream.routing import Target

_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
_MOST_LEVELS: Final = 3
_MOST_PLATFORMS: Final = 16
_MOST_BYTES: Final = 4 * 1024 * 1024

_NEVER: Final = Meanings()

#: Protects the content of a digest of a repository from eviction.
Keep = Callable[[FullName], Awaitable[None]]
#: Returns a link by its name, of public or private content.
LookupLink = Callable[[str], Awaitable[Link | None]]


@dataclass(frozen=True, slots=True)
class Cooldown:
    """The records that rules need, and the pulls of the content that they judge by.

    ``checks_digests``: a rule holds for pulls by digest.  Every method raises UpstreamError if
    upstream does not send the manifest, or the configuration with the image's own date, that it
    needs.
    """

    records: DecisionStore
    clock: Callable[[], Moment]
    keep: Keep
    link: LookupLink
    manifests: ManifestPulls | AuthorizedManifests
    blobs: BlobPulls | AuthorizedBlobs
    checks_digests: bool

    async def judged(self, rule: Rule, target: Target, image: FullName, digest: Digest) -> Verdict:
        """Return the verdict on a pull by digest, or on the digest of a tag."""
        verdict = await self.resolved(rule, target, image, digest, _NEVER)
        if verdict.serve is not None:
            await self.let_parts_pass(target, digest)
        return verdict

    async def former(self, rule: Rule, target: Target, image: FullName, accept: str) -> Meanings:
        """Return what a tag has meant here; to be called before upstream is asked.

        A tag may have been served before there was a rule, or to clients with another Accept
        header only: then it means what it meant to them, if that is old enough for the rule, or
        imported by the operator.
        """
        narrow = narrow_accept(accept)
        found = await self.records.meanings(link_name(image, narrow))
        if found != _NEVER:
            return found
        for each in dict.fromkeys((narrow, "")):
            if each != narrow:
                found = await self.records.meanings(link_name(image))
            link = await self.link(link_name(image, each))
            if not found.digests and link is not None:
                seen = await self._seen(target, link.descriptor.digest)
                if link.imported or self.clock().since(seen.first) >= rule.cooldown:
                    found = Meanings((link.descriptor.digest,))
            if found.digests and await self._is_accepted(image, found.digests[0], narrow):
                await self.records.mean(link_name(image, narrow), found)
                return found
        return _NEVER

    async def _is_accepted(self, image: FullName, digest: Digest, narrow: str) -> bool:
        if not narrow:
            return True
        link = await self.link(link_name(replace(image, reference=str(digest))))
        return link is not None and accepts(narrow, link.descriptor.media_type)

    async def resolved(
        self, rule: Rule, target: Target, image: FullName, digest: Digest, former: Meanings
    ) -> Verdict:
        """Return the verdict on a tag."""
        seen = await self._seen(target, digest)
        free = seen.released or (image.by_digest and seen.passed)
        facts = Facts(image, digest, self.clock().since(seen.first), free, former)
        if needs_date(rule, facts):
            facts = replace(facts, created=await self._age(target, digest))
        return judge(rule, facts, self.clock().wall)

    async def record(
        self,
        target: Target,
        image: FullName,
        digest: Digest,
        accept: str,
        former: Meanings,
        verdict: Verdict,
    ) -> None:
        """Record what a tag means from now on, and let pulls of it by digest pass."""
        held = verdict.serve != digest
        meanings = former.then(verdict.serve, held=held)
        if meanings != former:
            await self.records.mean(link_name(image, narrow_accept(accept)), meanings)
        if verdict.serve is None:
            return
        if self.checks_digests:
            await self.let_parts_pass(target, verdict.serve)
        if held:
            await self.keep(replace(image, reference=str(verdict.serve)))

    async def _seen(self, target: Target, digest: Digest) -> Seen:
        """Return when a digest was first seen in a repository; it may be now."""
        seen = await self.records.seen(target.record, digest)
        if seen is None:
            link = await self.link(f"{target.record} {digest}")
            seen = Seen(first_seen(self.clock(), None if link is None else link.seen))
            await self.records.see(target.record, digest, seen)
        return seen

    async def is_artifact(self, target: Target, digest: Digest) -> bool:
        """Whether a manifest is none that runs, such as a signature."""
        manifest = (await self.manifests.get(target, digest, "")).manifest
        return manifest.media_type not in _INDEXES and not is_runnable(manifest.body)

    async def parts(self, target: Target, digest: Digest) -> set[Digest]:
        """Return a manifest and those that it lists."""
        manifest = (await self.manifests.get(target, digest, "")).manifest
        parts = {digest}
        if manifest.media_type in _INDEXES:
            parts |= {each.descriptor.digest for each in index_entries(manifest.body)}
        return parts

    async def let_parts_pass(self, target: Target, digest: Digest) -> None:
        """Let pulls by digest pass, of a manifest and of those that it lists."""
        known = await self.records.seen(target.record, digest)
        if known is not None and known.passed:
            return
        for part in await self.parts(target, digest):
            seen = await self._seen(target, part)
            await self.records.see(target.record, part, replace(seen, passed=True))

    async def _age(self, target: Target, digest: Digest) -> float:
        """Return the seconds since the date in the image's configuration; 0 without a date."""
        try:
            config = await self._config(target, digest)
            created = json.loads(config)["created"]
            made = datetime.fromisoformat(created)
            made = made if made.tzinfo else made.replace(tzinfo=UTC)
            if made.year == 1:  # Go's time.Time without a value
                return 0.0
            return max(0.0, self.clock().wall - made.timestamp())
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            return 0.0

    async def _config(self, target: Target, digest: Digest, levels: int = _MOST_LEVELS) -> bytes:
        manifest = (await self.manifests.get(target, digest, "")).manifest
        if manifest.media_type not in _INDEXES:
            config = references(manifest.body)[0]
            return await self.read(target, config.digest)
        entries = index_entries(manifest.body) if levels > 1 else ()
        runnable = [each for each in entries if each.platform[0] not in {"", "unknown"}]
        for each in (runnable or entries)[:_MOST_PLATFORMS]:
            with contextlib.suppress(NotFoundError):  # a copy may lack some platforms
                return await self._config(target, each.descriptor.digest, levels - 1)
        raise NotAManifest("an index without a manifest")

    async def read(self, target: Target, digest: Digest) -> bytes:
        """Return a small blob.

        Raises:
            UpstreamError: upstream does not send it.
            ValueError: it is too large.
        """
        content = (await self.blobs.get(target, digest)).content
        data = b""
        try:
            async for piece in content.pieces(0, None):
                size = piece.length if isinstance(piece, FileRange) else len(piece)
                if len(data) + size > _MOST_BYTES:
                    raise ValueError("the blob is too large")
                if isinstance(piece, FileRange):
                    data += await asyncio.to_thread(piece.read)
                else:
                    data += piece
            return data
        except BrokenOffError as error:
            raise UnavailableError(target.upstream, str(error)) from error
        finally:
            await content.close()
