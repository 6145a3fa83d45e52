"""Lists, removes, verifies and blocks cached images.

A running mirror does the work; if none runs, this process does it.  All processes of the mirror
forget removed content before the command ends.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from mirror.admin.client import Running, check_owner, lookup_running, user_name
from mirror.config.model import Config
from mirror.config.policy import configured_blocks, naming
from mirror.inventory.cache import verify
from mirror.inventory.listing import listing, parse_glob, rfc3339, statistics
from mirror.inventory.removal import removal
from mirror.inventory.ruling import Rulings, block, unblock
from mirror.inventory.ruling import listed as listed_blocks
from mirror.server.commands import commands_to_forget
from mirror.server.shared_state import moment
from mirror.server.store import opened_cache, opened_records
from mirror.stats.queries import read_report
from mirror.store.local.entry import Verification
from mirror.store.local.layout import Layout, ObjectKey
from mirror.store.metadata.operator_files import BlockFile
from mirror.user_error import UserError


async def listed(config: Config, patterns: Sequence[str]) -> dict[str, Any]:
    """The images that match one of the patterns (all, without patterns): see ``inventory.listing``.

    Raises:
        UserError: the cache cannot be read, or a pattern is invalid.
    """
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            return await running.ask("/control/images", {"patterns": list(patterns)})
    async with opened_cache(config) as cache:
        return await listing(cache, patterns)


async def listed_cluster(config: Config, patterns: Sequence[str]) -> dict[str, Any]:
    """The images as ``listed``, and as ``object_store`` those that only the object store has.

    Raises:
        UserError: the cache or the object store cannot be read, or a pattern is invalid.
    """
    _check_object_store(config, "list")
    from mirror.cluster.upkeep import names  # noqa: PLC0415  # an extra

    found = await listed(config, patterns)
    globs = [parse_glob(pattern, naming(config)) for pattern in patterns]
    shared = await names(config.cluster, globs)
    here = {each["name"] for each in found["images"]}
    only = sorted(each for each in shared.written if str(each) not in here)
    images = [{"name": str(each), "written": rfc3339(shared.written[each])} for each in only]
    return {**found, "object_store": {"images": images, "whole": shared.whole}}


def _check_object_store(config: Config, purpose: str) -> None:
    if not config.cluster.objects:
        text = f"[cluster] objects is empty: there is no object store to {purpose}"
        raise UserError(text)
    from mirror.cluster import check_installed  # noqa: PLC0415  # only for a cluster

    check_installed()


async def stats(config: Config, *, local: bool = False) -> dict[str, Any]:
    """Savings, size of the cache and state of upstreams: see ``inventory.listing``.

    ``running`` describes the running mirror and its number of processes; None if none runs.
    ``cluster`` has the figures of all replicas, if there are others and ``local`` is False.

    Raises:
        UserError: the cache cannot be read.
    """
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            answer = await running.ask("/api/v1/stats")
            answer["running"]["processes"] = len(running.workers)
            if config.cluster.peers and not local:
                with contextlib.suppress(UserError):  # it runs without the keys of the file yet
                    answer["cluster"] = await running.ask("/api/v1/replicas")
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
            answer = await running.ask("/control/remove", told)
            if not dry_run:
                for batch in commands_to_forget(answer):
                    await running.tell("/control/forget", batch)
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


async def verified_cluster(
    config: Config, expected: Callable[[int], None], advanced: Callable[[int], None]
) -> Verification:
    """Hash all objects of the object store and remove damaged ones.

    Raises:
        UserError: there is none, or it fails.
    """
    _check_object_store(config, "verify")
    from mirror.cluster.upkeep import verify as verify_shared  # noqa: PLC0415  # an extra

    return await verify_shared(config.cluster, expected, advanced)


async def blocked(config: Config, targets: Sequence[str], reason: str) -> dict[str, Any]:
    """Block images or digests in all processes: see ``inventory.ruling``.

    Raises:
        UserError: a target is invalid, or the list cannot be written.
    """
    told = {"targets": list(targets), "reason": reason, "by": user_name()}
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            return await _changed(running, "/control/block", told)
    async with _own_rulings(config) as own:
        return await block(own.cache, own.blocks, targets, reason, user_name(), time.time())


async def unblocked(config: Config, targets: Sequence[str]) -> dict[str, Any]:
    """Remove blocks of images or digests in all processes.

    Raises:
        UserError: a target is not blocked, or the list cannot be written.
    """
    told = {"targets": list(targets), "by": user_name()}
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            return await _changed(running, "/control/unblock", told)
    async with _own_rulings(config) as own:
        return await unblock(own.blocks, own.cache.naming, targets, user_name())


async def blocks(config: Config) -> dict[str, Any]:
    """All blocks, of the configuration and of commands.

    Raises:
        UserError: the list cannot be read.
    """
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            return await running.ask("/control/blocks")
    async with _own_rulings(config) as own:
        return listed_blocks([*configured_blocks(config), *own.blocks.read()])


async def _changed(running: Running, path: str, told: dict[str, Any]) -> dict[str, Any]:
    answer = await running.ask(path, told)
    await running.tell("/control/decide-anew", {})
    return answer


async def released(config: Config, targets: Sequence[str]) -> dict[str, Any]:
    """Let digests pass the rules that hold them: see ``inventory.ruling``.

    Raises:
        UserError: a target is not an image, or its digest is unknown.
    """
    told = {"targets": list(targets), "by": user_name()}
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            return await _changed(running, "/control/release", told)
    async with _own_rulings(config) as rulings:
        return await rulings.release(targets, user_name())


async def explained(config: Config, image: str) -> dict[str, Any]:
    """What blocks, pins and rules make of an image: see ``inventory.ruling``.

    Raises:
        UserError: the text is not an image, or the cache cannot be read.
    """
    async with lookup_running(config.cache.directory.absolute()) as running:
        if running is not None:
            return await running.ask("/control/policy", {"image": image})
    async with _own_rulings(config) as rulings:
        return await rulings.explain(config, image)


@asynccontextmanager
async def _own_rulings(config: Config) -> AsyncIterator[Rulings]:
    """The rulings of a mirror that does not run.

    Raises:
        UserError: the cache directory cannot be used by this user.
    """
    directory = config.cache.directory.absolute()
    check_owner(directory)
    async with opened_records(config) as (cache, decisions):
        yield Rulings(cache, decisions, BlockFile(Layout(directory).blocks), moment)
