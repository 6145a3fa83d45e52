"""The operator's commands, as a process of the mirror executes them.  Translation only."""

import os
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from mirror import __version__
from mirror.api.control import Command, Commands
from mirror.inventory.cache import Cache
from mirror.inventory.listing import listing, rfc3339
from mirror.inventory.removal import removal
from mirror.inventory.ruling import Rulings, block, listed, unblock
from mirror.policy.rules import Moment
from mirror.server.blocks import BlockWatch
from mirror.server.generation import Generations
from mirror.server.store import Store
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.layout import ObjectKey
from mirror.user_error import UserError


def commands(
    store: Store,
    generations: Generations,
    watch: BlockWatch,
    clock: Callable[[], Moment],
    started: float,
) -> Commands:
    """Return the commands of this process; ``started`` is its start time (Unix seconds)."""

    def cache() -> Cache:
        return Cache.of(
            generations.current.config, store.objects, store.catalogue, store.keep_list.known
        )

    async def about(_: Mapping[str, Any]) -> Any:
        return {"version": __version__, "pid": os.getpid(), "started": rfc3339(started)}

    async def images(told: Mapping[str, Any]) -> Any:
        return await listing(cache(), told["patterns"])

    async def remove(told: Mapping[str, Any]) -> Any:
        dry_run, force = told["dry_run"], told["force"]
        return await removal(cache(), told["targets"], dry_run=dry_run, force=force)

    async def forget(told: Mapping[str, Any]) -> Any:
        """Forget links and objects before answering."""
        for link in told["links"]:
            await generations.current.pulls.manifests.forget(link)
        for key in told["objects"]:
            store.objects.let_go(ObjectKey.parse(key))
        return {}

    async def add_blocks(told: Mapping[str, Any]) -> Any:
        by, reason = told["by"], told["reason"]
        done = await block(cache(), watch.file, told["targets"], reason, by, time.time())
        return await watch.shared(done)

    async def remove_blocks(told: Mapping[str, Any]) -> Any:
        done = await unblock(watch.file, cache().naming, told["targets"], told["by"])
        return await watch.shared(done)

    async def blocks(_: Mapping[str, Any]) -> Any:
        return listed(watch.blocks.current.all)

    async def decide_anew(_: Mapping[str, Any]) -> Any:
        """Apply changed blocks and releases before answering."""
        await watch.decide_anew()
        return {}

    def rulings() -> Rulings:
        return Rulings(cache(), store.decisions, watch.file, clock)

    async def release(told: Mapping[str, Any]) -> Any:
        return await rulings().release(told["targets"], told["by"])

    async def explain(told: Mapping[str, Any]) -> Any:
        return await rulings().explain(generations.current.config, told["image"])

    return {
        ("GET", "/control/about"): about,
        ("POST", "/control/images"): _obeyed(images),
        ("POST", "/control/remove"): _obeyed(remove),
        ("POST", "/control/forget"): _obeyed(forget),
        ("GET", "/control/blocks"): _obeyed(blocks),
        ("POST", "/control/block"): _obeyed(add_blocks),
        ("POST", "/control/unblock"): _obeyed(remove_blocks),
        ("POST", "/control/release"): _obeyed(release),
        ("POST", "/control/policy"): _obeyed(explain),
        ("POST", "/control/decide-anew"): _obeyed(decide_anew),
    }


def _obeyed(command: Command) -> Command:
    """The command; its errors become one line for the client."""

    @wraps(command)
    async def obey(told: Mapping[str, Any]) -> Any:
        try:
            return await command(told)
        except IndexUnavailableError as error:
            raise UserError(str(error)) from error
        except OSError as error:
            raise UserError(f"the cache directory: {error.strerror}") from error
        except (LookupError, TypeError, ValueError) as error:
            text = f"the command and the mirror differ in version: {error}"
            raise UserError(text) from error

    return obey
