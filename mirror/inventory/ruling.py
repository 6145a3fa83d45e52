"""Blocks and releases of images by command, and what blocks, pins and rules make of an image.

The results are JSON, which ``--json`` prints unchanged; times are RFC 3339.
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
from mirror.oci.image_glob import FullName, ImageGlob, InvalidGlob, Naming
from mirror.oci.image_name import familiar_reference, familiar_repository
from mirror.policy.blocks import Block, Blocks, parse_target, spelt_out
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
from mirror.store.images.catalogue import MANIFEST_KINDS, Catalogue
from mirror.store.interface import DecisionStore, link_name
from mirror.store.metadata.operator_files import BlockFile
from mirror.user_error import UserError

_MOST_LEVELS: Final = 4  # an image, its index, and two indexes above that index
_EMPTY_BYTES: Final = 2  # "{}": the configuration that all artifacts without one share

_log = logging.getLogger(__name__)


async def block(
    cache: Cache, file: BlockFile, texts: Sequence[str], reason: str, by: str, now: float
) -> dict[str, Any]:
    """Block digests, images or globs; a further block of the same target replaces the first.

    Raises:
        UserError: a text is neither a digest, nor the name or glob of an image.
        OSError, IndexUnavailableError: the cache cannot be read, or the list not be written.
    """
    targets = {spelt_out(target): target for target in _parsed(texts, cache.naming)}
    reason = " ".join(reason.split())  # a refusal is one line
    added = [
        Block(text, reason, now, by, *await parts_of(cache.catalogue, target))
        for text, target in targets.items()
    ]
    await asyncio.to_thread(
        file.change, lambda former: [*(b for b in former if b.target not in targets), *added]
    )
    for each in added:
        _log.warning("blocked", extra={"target": each.target, "by": by, "reason": reason})
    return listed(added)


async def unblock(file: BlockFile, naming: Naming, texts: Sequence[str], by: str) -> dict[str, Any]:
    """Remove blocks by target.

    Raises:
        UserError: a target is not blocked by a command.
        OSError: the list cannot be read or written.
    """
    targets = {spelt_out(target) for target in _parsed(texts, naming)}
    gone: list[Block] = []

    def without(former: tuple[Block, ...]) -> list[Block]:
        gone.extend(each for each in former if each.target in targets)
        if missing := targets - {each.target for each in gone}:
            raise UserError(f"{min(missing)} is not blocked by a command; see mirror blocks")
        return [each for each in former if each.target not in targets]

    await asyncio.to_thread(file.change, without)
    for each in gone:
        _log.warning("unblocked", extra={"target": each.target, "by": by})
    return listed(gone)


def listed(blocks: Sequence[Block]) -> dict[str, Any]:
    return {"blocks": [_told(each) for each in blocks]}


def _told(block: Block) -> Mapping[str, Any]:
    document = {**block.document(), "since": rfc3339(block.since) if block.since else None}
    del document["layers"]
    return document


def _parsed(texts: Sequence[str], naming: Naming) -> list[Digest | ImageGlob]:
    try:
        return [parse_target(text, naming) for text in texts]
    except InvalidGlob as error:
        raise UserError(f"allowed: a digest, or {error}") from error


async def parts_of(
    catalogue: Catalogue, target: Digest | ImageGlob
) -> tuple[frozenset[Digest], frozenset[Digest]]:
    """Return the cached manifests and configurations of a target, and its layers.

    The configurations are blocked too: without them, no client can use the layers it may get.
    """
    if isinstance(target, Digest):
        below = {target}
    else:
        matching = [
            each.digest
            async for page in catalogue.names(target.is_in)
            for each in page
            if target.matches(each.name)
        ]
        below = set(matching)
        for section in catalogue.sections:
            below |= await section.tags.meant(target.matches)
    digests, layers = set(below), set[Digest]()
    for _ in range(_MOST_LEVELS):
        nodes = (await catalogue.nodes(MANIFEST_KINDS, below)).values()
        below = {part.digest for node in nodes for part in node.manifests} - digests
        digests |= below
        for node in nodes:
            digests |= {part.digest for part in node.blobs[:1] if part.size > _EMPTY_BYTES}
            layers |= {part.digest for part in node.blobs[1:]}
    return frozenset(digests), frozenset(layers)


_MOST_HELD: Final = 500  # looked at for one list; the newest


@dataclass(frozen=True, slots=True)
class Rulings:
    """An open cache, and what its mirror knows for its rules."""

    cache: Cache
    records: DecisionStore
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
