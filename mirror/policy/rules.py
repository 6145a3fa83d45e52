"""Decisions by pins and rules: what a tag means here, and when it follows its upstream."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Literal

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName, ImageGlob


class Decision(StrEnum):
    """What a policy makes of one request."""

    ALLOWED = "allowed"  # a rule lets upstream's digest pass
    HELD = "held"  # too new: the tag means its former digest, or is refused
    UNSIGNED = "unsigned"  # no signature satisfies the rule: refused
    AUDITED = "audited"  # served, although a rule would not
    BLOCKED = "blocked"  # recalled by the operator: refused
    PINNED = "pinned"  # the tag means another digest than upstream says


class PolicyError(Exception):
    """Content that must not leave the mirror; the message says why, and what to do.

    ``passing``: the decision could not be made now.
    """

    def __init__(self, decision: Decision, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.decision = decision
        self.passing = passing


_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


def told_span(seconds: float) -> str:
    """Format a time span for people, in the largest unit that fits."""
    for unit, length in _UNITS:
        if seconds >= length:
            number = seconds / length
            return f"{number:.3g} {unit}" if number < 100 else f"{number:.0f} {unit}"
    return f"{seconds:.0f} s"


def told_time(seconds: float) -> str:
    """Format Unix seconds for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


Unseen = Literal["created", "allow", "deny"]

_REFERRERS: Final = re.compile(r"sha(?:256-[0-9a-f]{64}|512-[0-9a-f]{128})(?:\.[a-z]+)?")
#: Former meanings of a tag that are remembered: a tag moved back to one of them follows at once.
MOST_MEANINGS: Final = 32
#: In seconds; what was cached within it may come from the pull that asks.
_LONGEST_PULL: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Pin:
    """``image`` means ``digest``; ``note`` is the operator's reason."""

    image: FullName
    digest: Digest
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.image} is pinned to {self.digest} by the operator of this mirror{note}"


@dataclass(frozen=True, slots=True)
class Moment:
    """A time: Unix seconds, and seconds since the start of the machine, which ``boot`` names.

    Setting the clock changes the former only.  ``boot`` is empty where the system does not tell.
    """

    wall: float
    boot: str = ""
    steady: float = 0.0

    def since(self, earlier: "Moment") -> float:
        """Return the seconds since another moment, at least 0.

        The clock may have been set in between: while the machine has run on, it is not asked.
        """
        if self.boot and self.boot == earlier.boot:
            return max(0.0, self.steady - earlier.steady)
        return max(0.0, self.wall - earlier.wall)


def first_seen(now: Moment, cached: float | None) -> Moment:
    """Return when a digest without a record was first seen.

    That is when it was ``cached`` (Unix seconds) before a rule asked for records, else now.
    """
    if cached is None or now.wall - cached < _LONGEST_PULL:
        return now
    return Moment(cached)


@dataclass(frozen=True, slots=True)
class Seen:
    """When a digest was first seen in a repository.

    ``released``: the operator lets it pass.  ``passed``: a rule let it pass before, as the meaning
    of a tag or as a part of that.
    """

    first: Moment
    released: bool = False
    passed: bool = False


@dataclass(frozen=True, slots=True)
class Meanings:
    """The digests that a tag has meant here, the present one first; none if it was never served.

    ``held``: the tag means another digest upstream.
    """

    digests: tuple[Digest, ...] = ()
    held: bool = False

    def then(self, digest: Digest | None, *, held: bool) -> "Meanings":
        """Return the meanings of a tag that means ``digest`` from now on; None: it is refused."""
        former = (each for each in self.digests if each != digest)
        present = () if digest is None else (digest,)
        return Meanings((*present, *former)[:MOST_MEANINGS], held)


@dataclass(frozen=True, slots=True)
class Identity:
    """A signer without a key: the names in its certificate (a glob), and who issued its token.

    ``root`` is a trusted_root.json: the authorities and logs that are trusted.
    """

    glob: str
    issuer: str
    root: bytes


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule for the images that match one of the globs; see ``[[policy]]``.

    One of ``keys`` (PEM files with public keys) or of ``identities`` must have signed.
    """

    images: tuple[ImageGlob, ...]
    cooldown: float
    unseen: Unseen
    check_digests: bool
    audit: bool
    keys: tuple[bytes, ...] = ()
    identities: tuple[Identity, ...] = ()

    @property
    def needs_signature(self) -> bool:
        """Whether an image passes only with a signature."""
        return bool(self.keys or self.identities)

    @property
    def name(self) -> str:
        """The name of the rule in messages: its globs."""
        return f"the rule {', '.join(repr(glob.text) for glob in self.images)}"

    def may_cover(self, upstream: str) -> bool:
        """Whether the rule may be for images of an upstream."""
        return any(glob.may_mean(upstream) for glob in self.images)

    def covers(self, image: FullName) -> bool:
        """Whether the rule is for a tag, or for pulls by digest from its repository.

        The tags of signatures and referrers are for the tools that sign.
        """
        if image.by_digest:
            return self.check_digests and any(glob.is_in(image) for glob in self.images)
        if _REFERRERS.fullmatch(image.reference):
            return False
        return any(glob.matches(image) for glob in self.images)

    def spares(self, image: FullName) -> bool:
        """Whether the rule leaves pulls by digest from the whole repository to the client."""
        whole = (glob for glob in self.images if glob.reference == "*")
        return image.by_digest and any(glob.is_in(image) for glob in whole)

    def unsigned(self, image: FullName, digest: Digest, lacking: str) -> str:
        """The message for an image without a signature that satisfies the rule."""
        keys = {"a key": "signed_by"} if self.keys else {}
        named = keys | ({"an identity": "identities"} if self.identities else {})
        what = image if image.by_digest else f"{image} ({digest})"
        return (
            f"{what} is not signed by {' or '.join(named)} of {self.name}: {lacking}; "
            f"pull a signed version, or ask the operator to change {' or '.join(named.values())}"
        )


def lookup_rule(rules: Iterable[Rule], image: FullName) -> Rule | None:
    """Return the first rule that covers an image, None if there is none.

    A rule for all tags of a repository, in front of the others, is an exception for its digests
    too: a client that gets the tag asks for what it means by digest.
    """
    found = next((rule for rule in rules if rule.covers(image) or rule.spares(image)), None)
    return found if found is not None and found.covers(image) else None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the digest that a tag means upstream; times are seconds until now.

    ``created`` is the age that the image claims, None if that was not looked up.
    """

    image: FullName
    digest: Digest
    known: float
    free: bool
    meanings: Meanings = Meanings()
    created: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``serve`` is what the image means, None to refuse it; ``left`` seconds until it may change.

    ``why`` is empty if upstream's digest is served.
    """

    serve: Digest | None
    left: float = 0.0
    why: str = ""


def needs_date(rule: Rule, facts: Facts) -> bool:
    """Whether the verdict depends on the image's own date."""
    undecided = not facts.meanings.digests and rule.unseen == "created" and facts.created is None
    return undecided and not _passes(rule, facts)


def judge(rule: Rule, facts: Facts, now: float) -> Verdict:
    """Return the verdict of the rule at ``now`` (Unix seconds, for the message)."""
    if _passes(rule, facts):
        return Verdict(facts.digest)
    age = facts.known
    if not facts.meanings.digests:
        if rule.unseen == "allow":
            return Verdict(facts.digest)
        if rule.unseen == "created":
            age = max(age, facts.created or 0.0)
            if age >= rule.cooldown:
                return Verdict(facts.digest)
    left = rule.cooldown - age
    return Verdict(next(iter(facts.meanings.digests), None), left, _told(rule, facts, left, now))


def _passes(rule: Rule, facts: Facts) -> bool:
    return facts.free or facts.digest in facts.meanings.digests or facts.known >= rule.cooldown


def _told(rule: Rule, facts: Facts, left: float, now: float) -> str:
    image = facts.image
    place = FullName(image.registry, image.repository, str(facts.digest))
    meant = facts.meanings.digests
    moved = "moved to" if meant else "is"
    what = str(image) if image.by_digest else f"{image} {moved} {facts.digest}"
    means = f"; {image.reference} is served as {meant[0]}" if meant else ""
    by_digest = "" if rule.check_digests or meant else "pull it by digest, or "
    return (
        f"{what}, first seen {told_span(facts.known)} ago; {rule.name} waits "
        f"{told_span(rule.cooldown)}, until {told_time(now + left)}{means}; "
        f"{by_digest}ask the operator for: mirror release {place}"
    )
