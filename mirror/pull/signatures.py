"""Finds the signatures of a manifest upstream; only the gate calls it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirror.oci.digest import Digest, InvalidDigest
from mirror.oci.reference import Tag
from mirror.policy.rules import Rule
from mirror.policy.signatures import (
    ANNOTATION,
    BUNDLE,
    SIMPLE_SIGNING,
    Candidate,
    NotSignedError,
    Signed,
    accepted,
    signer,
)
from mirror.pull.cooldown import Cooldown
from mirror.pull.listings import ListingPulls
from mirror.pull.private import AuthorizedListings
from mirror.pull.refusals import CANNOT_ANSWER
from mirror.upstream.errors import NonsenseError, NotFoundError, UpstreamError
from mirror.upstream.routing import Target

_MOST: Final = 64  # manifests and layers with signatures, of one manifest
_MOST_PAGES: Final = 8


@dataclass(frozen=True, slots=True)
class Signatures:
    """Checks the signatures of manifests, once per manifest, repository and signer.

    ``names`` returns the names of an upstream's registry in signatures.
    """

    content: Cooldown
    listings: ListingPulls | AuthorizedListings
    names: Callable[[str], frozenset[str]]

    async def lacking(self, rule: Rule, target: Target, digest: Digest) -> str:
        """Return why no signature satisfies a rule; empty if one does.

        A signature of an index counts for the manifests that it lists.

        Raises:
            UpstreamError, FullError: upstream cannot be asked.
        """
        records = self.content.records
        known = await records.signers(target.record, digest)
        if not known.isdisjoint(accepted(rule)):
            return ""
        places = {f"{name}/{target.repository}" for name in self.names(target.upstream)}
        signed, why = Signed(digest, frozenset(places)), "no signature was found"
        failures: list[UpstreamError] = []
        async for candidate in self._candidates(target, digest, failures):
            try:
                key = await asyncio.to_thread(_signer, candidate, signed, rule)
            except NotSignedError as error:
                why = f"there is {error}"
            else:
                for part in await self.content.parts(target, digest):
                    known = await records.signers(target.record, part)
                    await records.sign(target.record, part, known | {key})
                return ""
        if failures:
            raise failures[0]
        return why

    async def _candidates(
        self, target: Target, digest: Digest, failures: list[UpstreamError]
    ) -> AsyncIterator[Candidate]:
        """Yield the signatures in both layouts; add what upstream refuses or garbles to failures.

        Raises:
            UpstreamError, FullError: upstream cannot be asked.
        """
        async for place in self._places(target, digest, failures):
            try:
                async for candidate in self._in(target, place):
                    yield candidate
            except UpstreamError as error:
                _add_if_answer(failures, error)

    async def _places(
        self, target: Target, digest: Digest, failures: list[UpstreamError]
    ) -> AsyncIterator[Tag | Digest]:
        """Yield the manifests of signatures: the tag of the old layout, then the referrers."""
        mark = f"{digest.algorithm}-{digest.hex}"
        yield Tag(f"{mark}.sig")
        try:
            referrers = await self._referrers(target, digest, mark)
        except UpstreamError as error:
            _add_if_answer(failures, error)
        else:
            for each in referrers:
                yield each

    async def _in(self, target: Target, place: Tag | Digest) -> AsyncIterator[Candidate]:
        """Yield the signatures in a manifest, the newest first: they are added at its end."""
        is_old = not isinstance(place, Digest)
        body = await self._manifest(target, place)
        layers = list(_digests(body, "layers", SIMPLE_SIGNING if is_old else BUNDLE))
        for part, layer in reversed(layers[-_MOST:]):
            annotations = layer.get("annotations")
            signature = annotations.get(ANNOTATION) if isinstance(annotations, dict) else None
            if is_old and not isinstance(signature, str):
                continue
            if payload := await self._read(target, part):
                yield Candidate(payload, signature if is_old else None)

    async def _referrers(self, target: Target, digest: Digest, mark: str) -> list[Digest]:
        """Return the manifests with bundles: from the referrers API, or from the tag instead."""
        found: list[Digest] = []
        query = ""
        try:
            for _ in range(_MOST_PAGES):
                listing = (await self.listings.referrers(target, digest, query)).listing
                found += _bundles(listing.body)
                query = listing.next_query or ""
                if not query:
                    break
        except NotFoundError as error:
            _raise_unless_missing(error)
            body = await self._manifest(target, Tag(mark))
            found = _bundles(body)
        return found[:_MOST]

    async def _manifest(self, target: Target, reference: Tag | Digest) -> bytes:
        try:
            return (await self.content.manifests.get(target, reference, "")).manifest.body
        except NotFoundError as error:
            _raise_unless_missing(error)
            return b""

    async def _read(self, target: Target, digest: Digest) -> bytes:
        try:
            return await self.content.read(target, digest)
        except NotFoundError as error:
            _raise_unless_missing(error)
        except ValueError:  # too large for a signature
            pass
        return b""


def _signer(candidate: Candidate, signed: Signed, rule: Rule) -> str:
    """Return what identifies the key or the identity that signed the manifest.

    Raises:
        NotSignedError: none of the rule's did, or they signed something else.
    """
    keyless = bool(rule.identities) and candidate.is_keyless
    if rule.keys or not keyless:
        try:
            return signer(candidate, signed, rule.keys)
        except NotSignedError:
            if not keyless:
                raise
    # Imported late: it costs 15 MiB, and needs an extra.
    from mirror.policy.keyless import keyless_signer  # noqa: PLC0415

    return keyless_signer(candidate.payload, signed, rule.identities)


def _bundles(index: bytes) -> list[Digest]:
    """Return the referrers in an index that may be bundles: some registries omit the type."""
    entries = _digests(index, "manifests", "")
    return [each for each, entry in entries if entry.get("artifactType") in {None, BUNDLE}]


def _raise_unless_missing(error: NotFoundError) -> None:
    """Raise an error that repeats the last 404 of an upstream that cannot be asked."""
    if isinstance(error.__cause__, CANNOT_ANSWER):
        raise error


def _add_if_answer(failures: list[UpstreamError], error: UpstreamError) -> None:
    """Note what upstream refuses or garbles: other places may have a signature; else raise it."""
    if isinstance(error, CANNOT_ANSWER) and not isinstance(error, NonsenseError):
        raise error
    failures.append(error)


def _digests(body: bytes, key: str, media_type: str) -> Iterator[tuple[Digest, Mapping[str, Any]]]:
    """Yield the descriptors in a manifest, of one media type if given; skip malformed ones."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return
    entries = document.get(key) if isinstance(document, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or (media_type and entry.get("mediaType") != media_type):
            continue
        try:
            yield Digest.parse(str(entry.get("digest"))), entry
        except InvalidDigest:
            continue
