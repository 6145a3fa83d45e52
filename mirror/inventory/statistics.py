"""The usage statistics of a mirror and of its cache.

The result is JSON, which ``mirror stats --json`` prints unchanged; its field names are therefore
stable.  Sizes are bytes, rates are fractions of one, times are RFC 3339.
"""

from typing import Any

from mirror.inventory.cache import Cache
from mirror.inventory.listing import rfc3339
from mirror.stats.report import Figures, Filling, StatsReport, UpstreamAccount
from mirror.trouble import Problem


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
