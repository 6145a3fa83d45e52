"""Releases a digest, and explains what blocks, pins and rules make of an image.

The results are JSON, which ``--json`` prints unchanged.
"""

import asyncio
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mirror.config.model import Config
from mirror.config.policy import configured_blocks, configured_pins, configured_rules
from mirror.inventory.cache import Cache
from mirror.inventory.listing import PRIVATE, parse_glob, rfc3339
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.image_name import familiar_reference, familiar_repository
from mirror.policy.blocks import Blocks
from mirror.policy.rules import (
    Decision,
    Facts,
    Meanings,
    Moment,
    Rule,
    Seen,
    first_seen,
    judge,
    lookup_rule,
    needs_date,
)
from mirror.store.images.catalogue import MANIFEST_KINDS
from mirror.store.interface import link_name
from mirror.store.metadata.block_file import BlockFile
from mirror.store.metadata.records import Decisions
from mirror.user_error import UserError

_MOST_HELD: Final = 500  # looked at for one list; the newest

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rulings:
    """An open cache, and what its mirror knows for its rules."""

    cache: Cache
    records: Decisions
    blocks: BlockFile
    clock: Callable[[], Moment]

    async def release(self, texts: Sequence[str], by: str) -> dict[str, Any]:
        """Let digests pass all cooldowns: those that are named, or those of tags upstream.

        Raises:
            UserError: a text is not an image, or upstream's digest of the tag is unknown.
            IndexUnavailableError: the cache cannot be read.
        """
        released = []
        for text in texts:
            image = self._image(text)
            digests = await self._digests(image)
            if not digests:
                raise UserError(f"{image} is not known here: pull it once, or name its digest")
            for digest in digests:
                await self._release(image, digest)
                fields = {"image": str(image), "digest": str(digest), "by": by}
                _log.warning("released", extra=fields)
                released.append({"image": str(image), "digest": str(digest)})
        return {"released": released}

    async def _release(self, image: FullName, digest: Digest) -> None:
        nodes = (await self.cache.catalogue.nodes(MANIFEST_KINDS, [digest])).values()
        parts = {part.digest for node in nodes for part in node.manifests}
        for each in {digest, *parts}:
            record = _record(image)
            seen = await self.records.seen(record, each) or Seen(self.clock())
            await self.records.see(record, each, replace(seen, released=True))

    async def explain(self, config: Config, text: str) -> dict[str, Any]:
        """Return upstream's digest of an image, the one that is served, and each rule's verdict.

        Raises:
            UserError: the text is not an image.
            OSError, IndexUnavailableError: the cache cannot be read.
        """
        image = self._image(text)
        digests = await self._digests(image)
        upstream = digests[0] if digests else None
        pin = configured_pins(config).get(image)
        every = configured_rules(config)
        first = lookup_rule(every, image)
        rules = [
            await self._verdict(rule, image, upstream, is_first=rule is first) for rule in every
        ]
        served = next((each["serves"] for each in rules if each["applies"]), str(upstream or ""))
        if pin is not None:
            served = str(pin.digest)
        file = await asyncio.to_thread(self.blocks.read)
        blocks = Blocks.of([*configured_blocks(config), *file])
        name = (image.registry, image.repository)
        found = None if image.by_digest else blocks.of_tag(*name, image.reference)
        if found is None and served:
            found = blocks.of_digest(*name, Digest.parse(served))
        return {
            "image": str(image),
            "upstream_digest": str(upstream) if upstream else None,
            "served_digest": None if found else served or None,
            "pin": None if pin is None else str(pin),
            "block": None if found is None else found.refusal(str(image)),
            "rules": rules,
        }

    async def _verdict(
        self, rule: Rule, image: FullName, digest: Digest | None, *, is_first: bool
    ) -> Mapping[str, Any]:
        told = {"rule": rule.name, "applies": is_first, "decision": None, "serves": "", "why": ""}
        if not is_first:
            covered = rule.covers(image)
            return {**told, "why": "the first rule that matches counts"} if covered else told
        if digest is None:
            return {**told, "why": "upstream was not asked for this image yet"}
        meanings = Meanings()
        if not image.by_digest:
            meanings = await self.records.meanings(link_name(image))
        facts, now = await self._facts(image, digest, meanings), self.clock()
        if needs_date(rule, facts):
            return {**told, "why": "the next pull decides by the image's own date"}
        verdict = judge(rule, facts, now.wall)
        signed = not rule.needs_signature or await self._is_signed(rule, image, digest)
        if not verdict.why and not signed:
            return {**told, "why": "no signature was verified yet: the next pull asks upstream"}
        serve = digest if rule.audit else verdict.serve
        decision = Decision.ALLOWED
        if verdict.why:
            decision = Decision.AUDITED if rule.audit else Decision.HELD
        until = rfc3339(now.wall + verdict.left) if verdict.left else None
        told |= {"decision": decision.value, "serves": str(serve or ""), "why": verdict.why}
        return {**told, "until": until}

    async def _facts(self, image: FullName, digest: Digest, meanings: Meanings) -> Facts:
        seen, now = await self.records.seen(_record(image), digest), self.clock()
        first = first_seen(now, await self._cached(image, digest)) if seen is None else seen.first
        known = now.since(first)
        free = seen is not None and (seen.released or (image.by_digest and seen.passed))
        return Facts(image, digest, known, free, meanings)

    async def _cached(self, image: FullName, digest: Digest) -> float | None:
        name = link_name(replace(image, reference=str(digest)))
        links = [await each.tags.lookup(name) for each in self.cache.catalogue.sections]
        return next((link.seen for link in links if link is not None), None)

    async def held(self, rules: Sequence[Rule], pins: Container[FullName]) -> list[dict[str, Any]]:
        """Return the tags that do not follow upstream yet; private ones without their names.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
        if not rules:
            return []
        found: dict[FullName, dict[str, Any]] = {}  # clients that accept less have their own record
        for name, image, meanings in (await self.records.held())[-_MOST_HELD:]:
            told = None if image in pins else await self._held(rules, name, image, meanings)
            if told is not None:
                found.setdefault(image, told)
        return sorted(found.values(), key=lambda each: str(each["until"]))

    async def lookup_held(self, rules: Sequence[Rule], image: FullName) -> dict[str, Any] | None:
        """Return a public tag as :meth:`held` does; None if it follows, whatever the pins say."""
        meanings = await self.records.meanings(link_name(image))
        if not meanings.held:
            return None
        found = await self._held(rules, link_name(image), image, meanings)
        return found if found and found["name"] else None

    async def _held(
        self, rules: Sequence[Rule], name: str, image: FullName, meanings: Meanings
    ) -> dict[str, Any] | None:
        public, private = (section.tags for section in self.cache.catalogue.sections)
        rule = lookup_rule(rules, image)
        hidden = await private.lookup(name)
        link = hidden or await public.lookup(name)
        if rule is None or rule.audit or link is None:
            return None
        digest, now = link.descriptor.digest, self.clock().wall
        # Only a pull looks at the image's own date; with it the tag follows earlier.
        facts = replace(await self._facts(image, digest, meanings), created=0.0)
        verdict = judge(rule, facts, now)
        if not verdict.why:
            return None
        told = {"registry": image.registry, "until": rfc3339(now + verdict.left)}
        if hidden:
            nothing = dict.fromkeys(("name", "familiar", "served_digest", "upstream_digest"))
            return {**told, **nothing, "repository": PRIVATE, "reference": PRIVATE}
        repository = familiar_repository(image.registry, image.repository)
        return {
            **told,
            "name": str(image),
            "familiar": repository + familiar_reference(image.reference),
            "repository": image.repository,
            "reference": image.reference,
            "served_digest": str(verdict.serve) if verdict.serve else None,
            "upstream_digest": str(digest),
        }

    async def _is_signed(self, rule: Rule, image: FullName, digest: Digest) -> bool:
        # Imported late: it costs 8 MiB, which mirrors without keys should not pay.
        from mirror.policy.signatures import accepted  # noqa: PLC0415

        known = await self.records.signers(_record(image), digest)
        return not known.isdisjoint(accepted(rule))

    def _image(self, text: str) -> FullName:
        if text.startswith(("sha256:", "sha512:")):
            raise UserError(f"found {text!r}, allowed: a digest of an image, such as app@{text}")
        image = parse_glob(text, self.cache.naming, "latest").exact
        if image is None:
            raise UserError(f"found {text!r}, allowed: one image, not a glob")
        return image

    async def _digests(self, image: FullName) -> list[Digest]:
        """Return the digest of a name, or what a tag meant upstream when it was last asked."""
        if image.by_digest:
            return [Digest.parse(image.reference)]
        found = {
            each.digest: None
            async for page in self.cache.catalogue.names(lambda name: name == image)
            for each in page
        }
        return list(found)


def _record(image: FullName) -> str:
    """The key of a repository in the records, as for ``Target.record``."""
    return f"{image.registry} {image.repository}"
