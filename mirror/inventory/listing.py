"""What ``mirror ls`` and ``mirror stats`` tell of a cache: its images, its use and its statistics.

The results are JSON, which ``--json`` prints unchanged; the field names are therefore stable.
Sizes are bytes, rates are fractions of one, times are RFC 3339.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from mirror.inventory.cache import Cache
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName, ImageGlob, InvalidGlob, Naming
from mirror.stats.report import Figures, Filling, StatsReport, UpstreamAccount
from mirror.store.images.image import CachedImage
from mirror.store.local.layout import ObjectKey
from mirror.trouble import Problem
from mirror.user_error import UserError

#: Stands for the names of private images, for clients.
PRIVATE: Final = "(private)"


class _Bill:
    """The total size of objects, each counted once; compact for a million objects."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.bytes = 0

    def put(self, objects: Mapping[ObjectKey, int]) -> None:
        for key, size in objects.items():
            mark = int(key.digest.hex[:15], 16)  # 60 bits identify it in a quarter of the memory
            if mark not in self._seen:
                self._seen.add(mark)
                self.bytes += size


async def listing(cache: Cache, patterns: Sequence[str]) -> dict[str, Any]:
    """Return the images that match a pattern, and their total size; no pattern means all images.

    Raises:
        UserError: a pattern is invalid.
        IndexUnavailableError: the cache cannot be read.
    """
    globs = [parse_glob(pattern, cache.naming) for pattern in patterns]

    def wanted(name: FullName) -> bool:
        return not globs or any(glob.is_in(name) for glob in globs)

    images, bill, named = [], _Bill(), set[Digest]()
    async for image in cache.catalogue.images(wanted):
        assert image.name is not None
        named |= {key.digest for key in image.manifests}
        if not globs or any(glob.matches(image.name) for glob in globs):
            images.append(told(image, kept=cache.keeps(image.name)))
            bill.put(image.objects)
    if not globs:
        async for image in cache.catalogue.nameless(named):
            images.append(told(image, kept=False))
            bill.put(image.objects)
    usage = await cache.objects.usage()
    return {
        "images": sorted(images, key=lambda each: str(each["name"])),
        "total": {"images": len(images), "bytes": bill.bytes},
        "cache": {
            "bytes": usage.used_bytes,
            "max_bytes": usage.max_bytes,
            "objects": usage.objects,
        },
    }


def parse_glob(text: str, naming: Naming, tag: str = "*") -> ImageGlob:
    """Parse a glob for images that a user typed; ``tag`` is the default tag.

    Raises:
        UserError: the glob is invalid.
    """
    try:
        return ImageGlob.parse(text, naming, tag)
    except InvalidGlob as error:
        raise UserError(f"found {text!r}, allowed: {error}") from error


def told(image: CachedImage, *, kept: bool) -> dict[str, Any]:
    return {
        "name": str(image),
        "registry": image.name.registry if image.name else None,
        "repository": image.name.repository if image.name else None,
        "tag": image.name.reference if image.name and not image.name.by_digest else None,
        "digest": str(image.digest),
        "media_type": image.media_type,
        "platforms": [
            {
                "platform": platform.platform or None,
                "digest": str(platform.digest),
                "bytes": platform.size,
                "missing_bytes": platform.missing,
            }
            for platform in image.platforms
        ],
        "bytes": image.size,
        "missing_bytes": image.missing,
        "whole": image.whole,
        "private": image.private,
        "kept": kept,
        "last_used": rfc3339(image.used),
    }


def rfc3339(seconds: float) -> str:
    """Format Unix seconds as RFC 3339, in UTC, rounded down to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


async def statistics(cache: Cache, said: StatsReport) -> dict[str, Any]:
    """Return the figures of a ledger, and the use of the cache.

    Raises:
        IndexUnavailableError, OSError: the cache cannot be read.
    """
    usage = await cache.objects.usage()
    kept = await cache.objects.consult(lambda index: index.kept.bytes())
    accounts = {account.name: account for account in said.upstreams}
    never = (UpstreamAccount(name, Figures(), Figures()) for name in cache.upstreams)
    return {
        "since": _moment(said.since),
        "total": figures_told(said.total),
        "today": figures_told(said.today),
        "cache": {
            "bytes": usage.used_bytes,
            "max_bytes": usage.max_bytes,
            "kept_bytes": kept,
            "objects": usage.objects,
        },
        "upstreams": [
            _upstream(account)
            for account in ({each.name: each for each in never} | accounts).values()
        ],
        "fills": [_fill(fill) for fill in said.fills],
        "problems": [problem_told(problem) for problem in said.problems],
        "trouble": said.trouble,
    }


def figures_told(figures: Figures) -> dict[str, Any]:
    served = figures.served_bytes
    return {
        "requests": figures.answered,
        "failed": figures.failed,
        "hits": figures.spared,
        "hit_rate": figures.hit_rate,
        "byte_hit_rate": figures.saved_bytes / served if served else None,
        "served_bytes": served,
        "upstream_bytes": figures.upstream_bytes,
        "saved_bytes": figures.saved_bytes,
        "results": dict(figures.requests),
    }


def _upstream(account: UpstreamAccount) -> dict[str, Any]:
    return {
        "name": account.name,
        "up": account.up,
        "last_answer": account.code or None,
        "answered_at": _moment(account.answered_at),
        "rate_limit": account.allowed,
        "rate_limit_remaining": account.remaining,
        "total": figures_told(account.total),
        "today": figures_told(account.today),
    }


def problem_told(problem: Problem) -> dict[str, Any]:
    return {
        "title": problem.title,
        "cause": problem.cause,
        "remedy": problem.remedy,
        "since": rfc3339(problem.since),
        "seen": rfc3339(problem.seen),
        "until": _moment(problem.until),
    }


def _fill(fill: Filling) -> dict[str, Any]:
    return {
        "upstream": fill.upstream,
        "repository": fill.repository,
        "digest": fill.digest,
        "bytes": fill.length,
        "total_bytes": fill.total,
        "bytes_per_second": round(fill.rate),
        "clients": fill.waiting,
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)
