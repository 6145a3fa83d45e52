"""The data of the pages and of ``/api/v1``, from ledger, store and configuration, as JSON.

Every client that may pull may see it: nothing in it names a private image.
"""

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mirror import __version__
from mirror.api.v1 import Reading
from mirror.config.model import Config
from mirror.config.upstreams import taking_credentials
from mirror.inventory.browse import ORDERS
from mirror.inventory.cache import Cache
from mirror.inventory.listing import PRIVATE, figures_told, problem_told, rfc3339, statistics
from mirror.inventory.ruling import Rulings
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName, Naming
from mirror.policy.blocks import Block, parse_target
from mirror.pull.gate import Gate
from mirror.server.shared_state import SharedState
from mirror.stats.queries import daily_pulls_of, history_of, images_of
from mirror.stats.report import (
    DAYS,
    HOURS,
    Failure,
    Figures,
    History,
    Image,
    Pull,
    Replica,
    StatsReport,
    last_days,
)
from mirror.trouble import Problem, merged

if TYPE_CHECKING:
    from mirror.cluster.view import View

_MOST_PULLS: Final = 100
_MOST_TEXT: Final = 256
_HOUR: Final = 3600


@dataclass(frozen=True, slots=True)
class Site:
    """The data under one configuration; ``started`` is the process's start (Unix seconds)."""

    config: Config
    shared_state: SharedState
    started: float
    gate: Gate

    def readings(self) -> Mapping[str, Reading]:
        """Return what ``/api/v1`` can be asked for, by name."""
        replicas = {"replicas": self.replicas_told} if self._view else {}
        return {
            **replicas,
            "problems": self.problems,
            "stats": self.stats,
            "history": self.history,
            "pulls": self.pulls,
            "policies": self.policies,
            "images": self.images,
            "image": self.image,
        }

    async def report(self, recent: int, images: int) -> StatsReport:
        """Return the ledger's report, with the troubles of all processes."""
        recorder = self.shared_state.recorder
        said = await recorder.ledger.state(recent=recent, images=images)
        problems = [*said.problems, *recorder.problems()]
        if said.trouble:
            problems.append(_unwritten(said.trouble, time.time()))
        return replace(said, problems=tuple(merged(problems)))

    async def problems(self, _: Mapping[str, str]) -> Any:
        """Return the troubles that last; the cache need not be readable."""
        return {"problems": [problem_told(each) for each in (await self.report(0, 0)).problems]}

    async def stats(self, _: Mapping[str, str]) -> Any:
        """Return what ``mirror stats --json`` prints."""
        said = await self.report(0, 0)
        about = {"version": __version__, "pid": os.getpid(), "started": rfc3339(self.started)}
        return {**await statistics(self._cache(), said), "running": about}

    @property
    def _view(self) -> "View | None":
        cluster = self.shared_state.cluster
        return cluster.view if cluster is not None and self.config.cluster.peers else None

    async def replicas(self) -> Sequence[Replica]:
        """Return the replicas of the cluster, those in trouble first; none without a cluster."""
        view = self._view
        return () if view is None else await view.replicas(await self.stats({}))

    async def replicas_told(self, _: Mapping[str, str]) -> Any:
        """Return the figures of the whole cluster, and of each replica."""
        replicas = await self.replicas()
        problems = [each.problem for each in replicas if each.problem is not None]
        return {
            **_replica_figures(replicas),
            "replicas": [
                {
                    "address": each.address,
                    "here": each.here,
                    "answers": each.problem is None,
                    "version": each.version or None,
                    "started": rfc3339(each.started) if each.started else None,
                    "problems": each.problems,
                    **_replica_figures([each]),
                }
                for each in replicas
            ],
            "problems": [problem_told(each) for each in problems],
        }

    async def periods(self) -> History:
        query = partial(history_of, hours=HOURS, days=DAYS)
        return await self.shared_state.recorder.ledger.read(query, History)

    async def history(self, _: Mapping[str, str]) -> Any:
        """Return the figures of each of the last 24 hours and 30 days, in total and by upstream."""
        found, now = await self.periods(), time.time()
        hours = range(int(now // _HOUR) - HOURS + 1, int(now // _HOUR) + 1)
        return {
            "hours": [
                {"start": rfc3339(hour * _HOUR), **_period(found.hours.get(hour, {}))}
                for hour in hours
            ],
            "days": [{"day": day, **_period(found.days.get(day, {}))} for day in last_days(now)],
        }

    async def pulls(self, _: Mapping[str, str]) -> Any:
        """Return the last pulls, and the last pulls that failed."""
        said = await self.report(_MOST_PULLS, 0)
        return {
            "pulls": [_pull(pull) for pull in said.recent],
            "failed": [_failure(failure) for failure in said.failures],
        }

    async def policies(self, _: Mapping[str, str]) -> Any:
        """Return the held tags, the first to follow first, and the blocks, the newest first."""
        blocks = sorted(self.gate.blocks.current.all, key=lambda each: each.since, reverse=True)
        return {
            "held": await self._rulings().held(self.gate.rules, self.gate.pins),
            "blocks": [await self._block(each) for each in blocks],
        }

    async def _block(self, block: Block) -> dict[str, Any]:
        """Return a block as JSON; its name, and its reason, only if they tell nothing private."""
        target = parse_target(block.target, Naming(""))
        told = {
            "target": block.target,
            "since": rfc3339(block.since) if block.since else None,
            "by": block.by,
            "reason": block.reason,
        }
        if isinstance(target, Digest) or not any(map(target.may_mean, self._with_private())):
            return told
        if await self.shared_state.browser.has(target):
            return told
        return {**told, "target": f"{target.registry}/{PRIVATE}", "reason": ""}

    def _with_private(self) -> Collection[str]:
        """The upstreams that may have private images."""
        config = self.config
        return config.enabled() if config.proxy.listen else taking_credentials(config.upstreams)

    async def _ruled(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return what keeps clients from the upstream's digest of an image."""
        name = FullName(chosen["registry"], chosen["repository"], chosen["reference"])
        held, told, meant = None, None, [chosen["digest"]]
        for pin in self.gate.pins.values():
            if name in {pin.image, replace(pin.image, reference=str(pin.digest))}:
                told = {"image": str(pin.image), "digest": str(pin.digest), "note": pin.note}
                name, meant = pin.image, [str(pin.digest)]
        if told is None and (held := await self._rulings().lookup_held(self.gate.rules, name)):
            meant += filter(None, [held["served_digest"]])
        blocks, place = self.gate.blocks.current, (name.registry, name.repository)
        found = [blocks.of_digest(*place, Digest.parse(each)) for each in meant]
        block = next(filter(None, (blocks.of_tag(*place, name.reference), *found)), None)
        return {"held": held, "pin": told, "block": block and await self._block(block)}

    def _rulings(self) -> Rulings:
        store, state = self.shared_state.store, self.shared_state
        cache = replace(self._cache(), catalogue=store.catalogue)
        return Rulings(cache, store.decisions, state.block_watch.file, state.clock)

    async def images(self, query: Mapping[str, str]) -> Any:
        """Return a page of the cached images that contain all words of ``q``."""
        text, order = query.get("q", "")[:_MOST_TEXT], query.get("sort", "")
        page = query.get("page", "1")
        number = int(page) if page.isascii() and page.isdigit() and len(page) < 7 else 1
        order = order if order in ORDERS else ORDERS[0]
        found = await self.shared_state.browser.search(text, order, number, self._cache().keeps)
        return {**found, "q": text, "sort": order}

    async def image(self, query: Mapping[str, str]) -> Any:
        """Return the images of a repository, and the layers of one of them; None if not cached.

        ``name`` is ``registry/repository``, with a tag or digest to choose an image.
        """
        place, reference = _split(query.get("name", "")[: 2 * _MOST_TEXT])
        browser = self.shared_state.browser
        found = await browser.repository(place, reference, self._cache().keeps)
        registry, _, repository = place.partition("/")
        pin = self.gate.pins.get(FullName(registry, repository, reference))
        if found is None and pin is not None:  # a pinned tag is pulled by its digest
            found = await browser.repository(place, str(pin.digest), self._cache().keeps)
        if found is None:
            return None
        ledger, names = self.shared_state.recorder.ledger, (found["registry"], found["repository"])
        known: list[Image] = await ledger.read(
            lambda connection, _: images_of(connection, *names), list
        )
        pulled = {each.reference: each for each in known}
        for each in (*found["images"], found["chosen"]):
            each.update(_pulled(pulled.get(each["reference"])))
        daily: dict[str, int] = await ledger.read(
            lambda connection, now: daily_pulls_of(connection, now, DAYS, names, reference), dict
        )
        found["chosen"].update(await self._ruled(found["chosen"]))
        days = {day: daily.get(day, 0) for day in last_days(time.time())}
        return {**found, "pulls_per_day": days, "whole_repository": not reference}

    def _cache(self) -> Cache:
        store = self.shared_state.store
        return Cache.of(self.config, store.objects, store.browsable, store.keep_list.known)


def _unwritten(reason: str, now: float) -> Problem:
    title = f"Figures are not being written: {reason}"
    remedy = "check the disk of the cache directory, and the files in its directory ledger"
    return Problem(title, "pulls continue, and figures wait in memory", remedy, None, now, now)


def _split(name: str) -> tuple[str, str]:
    """Split a full name into ``registry/repository`` and its tag or digest, which may be empty."""
    place, at, digest = name.partition("@")
    if at:
        return place, digest
    path, slash, last = name.rpartition("/")
    repository, _, tag = last.partition(":")
    return path + slash + repository, tag


def _replica_figures(replicas: Sequence[Replica]) -> dict[str, Any]:
    return {
        "total": figures_told(sum((each.total for each in replicas), Figures())),
        "today": figures_told(sum((each.today for each in replicas), Figures())),
        "cache": {
            "bytes": sum(each.cache_bytes for each in replicas),
            "max_bytes": sum(each.max_bytes for each in replicas),
            "objects": sum(each.objects for each in replicas),
        },
    }


def _period(upstreams: Mapping[str, Figures]) -> dict[str, Any]:
    total = sum(upstreams.values(), Figures())
    by_upstream = {name: figures_told(figures) for name, figures in upstreams.items() if name}
    return {"total": figures_told(total), "upstreams": by_upstream}


def _pulled(image: Image | None) -> dict[str, Any]:
    if image is None:
        return {"pulls": 0, "last_pulled": None}
    return {"pulls": image.pulls, "last_pulled": rfc3339(image.last)}


def _pull(pull: Pull) -> dict[str, Any]:
    return {
        **_named(pull),
        "client": pull.client,
        "started": rfc3339(pull.started),
        "seconds": round(pull.seconds, 3),
        "times": pull.times,
        "result": pull.result,
        "bytes": pull.sent_bytes,
        "upstream_bytes": pull.missed_bytes,
    }


def _failure(failure: Failure) -> dict[str, Any]:
    return {
        **_named(failure),
        "client": failure.client,
        "result": failure.result,
        "reason": failure.reason,
        "times": failure.times,
        "first": rfc3339(failure.first),
        "last": rfc3339(failure.last),
    }


def _named(each: Pull | Failure) -> dict[str, Any]:
    return {
        "registry": each.upstream,
        "repository": each.repository,
        "reference": each.reference,
    }
