"""Lists, removes and verifies cached images.

A running mirror does the work; if none runs, this process does it.  All processes of the mirror
forget removed content before the command ends.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from mirror.admin.client import Running, lookup_running
from mirror.config.model import Config
from mirror.inventory.listing import listing
from mirror.inventory.removal import removal
from mirror.inventory.statistics import statistics
from mirror.inventory.verification import Verification, verify
from mirror.server.store import opened_cache
from mirror.stats.queries import read_report
from mirror.store.local.layout import Layout, ObjectKey
from mirror.user_error import UserError

_MOST_TOLD: Final = 2000  # names per request, well below the limit of a request


async def listed(config: Config, patterns: Sequence[str]) -> dict[str, Any]:
    """The images that match one of the patterns (all, without patterns): see ``inventory.listing``.

    Raises:
        UserError: the cache cannot be read, or a pattern is invalid.
    """
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            answer: dict[str, Any] = await running.ask(
                "/control/images", {"patterns": list(patterns)}
            )
            return answer
    async with opened_cache(config) as cache:
        return await listing(cache, patterns)


async def stats(config: Config) -> dict[str, Any]:
    """Savings, size of the cache and state of upstreams: see ``inventory.statistics``.

    ``running`` describes the running mirror and its number of processes; None if none runs.

    Raises:
        UserError: the cache cannot be read.
    """
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            answer: dict[str, Any] = await running.ask("/api/v1/stats")
            answer["running"]["processes"] = len(running.workers)
            return answer
    said = read_report(Layout(config.cache.directory.absolute()).ledger, time.time())
    async with opened_cache(config) as cache:
        return {**await statistics(cache, replace(said, fills=())), "running": None}


async def removed(
    config: Config, targets: Sequence[str], *, dry_run: bool = False, force: bool = False
) -> dict[str, Any]:
    """Remove images, or report what would be removed: see ``inventory.removal``.

    Raises:
        UserError: an image is not in the cache, or kept, or the cache cannot be used.
    """
    told = {"targets": list(targets), "dry_run": dry_run, "force": force}
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            answer: dict[str, Any] = await running.ask("/control/remove", told)
            if not dry_run:
                keys = [f"{each['kind']}.{_dotted(each['digest'])}" for each in answer["objects"]]
                await _forget(running, answer["links"], keys)
            return answer
    async with opened_cache(config) as cache:
        return await removal(cache, targets, dry_run=dry_run, force=force)


async def verified(
    config: Config, expected: Callable[[int], None], advanced: Callable[[int], None]
) -> Verification:
    """Hash all objects and drop damaged ones, in this process even if a mirror runs.

    Raises:
        UserError: the cache cannot be used.
    """
    async with lookup_running(config.cache.directory.absolute()) as running:

        async def dropped(key: ObjectKey) -> None:
            if running is not None:
                with contextlib.suppress(UserError):  # a hung process serves nothing
                    await running.tell("/control/forget", {"links": [], "objects": [str(key)]})

        async with opened_cache(config) as cache:
            return await verify(cache, expected, advanced, dropped)


async def _forget(running: Running, links: Sequence[str], keys: Sequence[str]) -> None:
    for start in range(0, max(len(links), len(keys)), _MOST_TOLD):
        end = start + _MOST_TOLD
        told = {"links": links[start:end], "objects": keys[start:end]}
        await running.tell("/control/forget", told)


def _dotted(digest: str) -> str:
    return digest.replace(":", ".")
