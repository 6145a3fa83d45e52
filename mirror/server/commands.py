"""The changes that an operator can make, to what is cached and to what is given out.

``Changes`` are made by HTTP, ``commands`` come through the control socket.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from mirror import __version__
from mirror.api.v1 import Change, Command, Commands
from mirror.config.model import Config
from mirror.inventory.cache import Cache
from mirror.inventory.listing import listing, rfc3339
from mirror.inventory.removal import removal
from mirror.inventory.ruling import Rulings, block, listed, unblock
from mirror.oci.image_name import ImageName, parse_image
from mirror.oci.reference import InvalidName, InvalidReference
from mirror.registry_client.client import PullError
from mirror.registry_client.pull import Wanted
from mirror.server.control import ControlDirectory, is_own
from mirror.server.maintenance import keeping_rule
from mirror.server.pulls import Pulls
from mirror.server.shared_state import SharedState
from mirror.server.store import Store
from mirror.server.warming import located
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.layout import ObjectKey
from mirror.user_error import UserError

if TYPE_CHECKING:
    from mirror.server.generation import Generations

_log = logging.getLogger(__name__)
_BY: Final = "HTTP token"  # where commands have the system user
_TOLD_SECONDS: Final = 10.0
_TOLD_LIMIT: Final = aiohttp.ClientTimeout(total=_TOLD_SECONDS)
_MOST_TOLD: Final = 2000  # names per request, well below the limit of a request


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes under one configuration.  All take the name of one image, and a reason.

    All methods raise UserError if the name is not valid, or the change is not possible.
    """

    config: Config
    shared_state: SharedState
    pulls: Pulls

    def table(self) -> Mapping[str, Change]:
        return {
            "warm": self.warm,
            "keep": partial(self._keep, keep=True),
            "release": partial(self._keep, keep=False),
            "drop": self.drop,
            "block": self.block,
            "unblock": self.unblock,
            "release-held": self.release_held,
        }

    async def warm(self, image: str, _: str) -> Any:
        """Begin to pull an image for the platform of this machine."""
        wanted = self._wanted(image)
        self.shared_state.requested.pull(self.config, wanted)
        self.shared_state.browser.outdate()
        _noted("warming", wanted.full_name)
        return {"image": wanted.full_name, "state": "pulling"}

    async def _keep(self, image: str, _: str, *, keep: bool) -> Any:
        """Keep an image: it is never evicted; or let it be again, unless ``[[keep]]`` names it."""
        store, name = self.shared_state.store, self._wanted(image).full_name
        with _usable():
            await asyncio.to_thread(store.keep_list.change, name, keep=keep)
            await asyncio.to_thread(store.keep_list.reread)
            rule = keeping_rule(self.config, store.keep_list.known, store.keeping.meant)
            store.keeping.rule = rule
            if not keep:
                await store.keeping.review()
            async for page in store.catalogue.names(lambda each: keep and str(each) == name):
                for each in page:
                    await store.keeping.noted(each.section, each.name, each.digest)
        _noted("keeping" if keep else "keeping no longer", name)
        return {"image": name, "kept": keep}

    async def drop(self, image: str, _: str) -> Any:
        """Drop an image, and the data that no other image uses; the next pull asks upstream."""
        store = self.shared_state.store
        with _usable():
            gone = await removal(self._cache(), [str(_parsed(image))])
        for told in commands_to_forget(gone):
            await _forget(self.pulls, store, told)
            await self._tell_others("/control/forget", told)
        self.shared_state.browser.outdate()
        _noted("dropped", ", ".join(each["name"] for each in gone["images"]))
        return {"image": image, "bytes": gone["bytes"], "objects": len(gone["objects"])}

    async def block(self, image: str, reason: str) -> Any:
        """Refuse an image, the images of a glob, or a digest."""
        file = self.shared_state.block_watch.file
        with _usable():
            done = await block(self._cache(), file, [image.strip()], reason, _BY, time.time())
        return await self._shared(done)

    async def unblock(self, image: str, _: str) -> Any:
        """Remove a block; those of ``[[block]]`` stay."""
        file, naming = self.shared_state.block_watch.file, self._cache().naming
        with _usable():
            done = await unblock(file, naming, [image.strip()], _BY)
        return await self._shared(done)

    async def release_held(self, image: str, _: str) -> Any:
        """Let a digest, or the one that a tag means upstream, pass all cooldowns."""
        state = self.shared_state
        records, file = state.store.decisions, state.block_watch.file
        with _usable():
            rulings = Rulings(self._cache(), records, file, state.clock)
            done = await rulings.release([image.strip()], _BY)
        return await self._decided(done)

    async def _shared(self, done: Any) -> Any:
        """Apply changed blocks in all processes of this mirror, then on the other replicas."""
        await self._decided(done)
        with _usable():
            return await self.shared_state.block_watch.shared(done)

    async def _decided(self, done: Any) -> Any:
        """Apply changed blocks and releases in all processes of this mirror."""
        with _usable():
            await self.shared_state.block_watch.decide_anew()
        await self._tell_others("/control/decide-anew", {})
        return done

    def _cache(self) -> Cache:
        store = self.shared_state.store
        return Cache.of(self.config, store.objects, store.catalogue, store.keep_list.known)

    async def _tell_others(self, path: str, told: Mapping[str, Any]) -> None:
        """Send a command to the other processes of this mirror."""
        try:
            sockets = ControlDirectory.open(self.shared_state.store.layout.control)
        except OSError:  # then no other process can be told
            return
        with contextlib.closing(sockets):
            for name in await asyncio.to_thread(sockets.live):
                if is_own(name):
                    continue
                # A process that does not answer has ended, or serves nothing.
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with (
                        sockets.session(name, _TOLD_SECONDS) as session,
                        session.post(path, json=told, timeout=_TOLD_LIMIT),
                    ):
                        pass

    def _wanted(self, image: str) -> Wanted:
        try:
            return located(self.config, _parsed(image))
        except PullError as error:
            raise UserError(str(error)) from error


def _noted(what: str, image: str) -> None:
    """Log a change, as those of blocks are logged: many people may know the token."""
    _log.warning(what, extra={"image": image, "by": _BY})


def _parsed(image: str) -> ImageName:
    try:
        return parse_image(image.strip())
    except (InvalidName, InvalidReference) as error:
        raise UserError(str(error)) from error


@contextlib.contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except (OSError, IndexUnavailableError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"the cache directory cannot be used: {reason}") from error


def commands_to_forget(gone: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of the commands to forget what ``inventory.removal`` has removed."""
    links = gone["links"]
    keys = [f"{each['kind']}.{each['digest'].replace(':', '.')}" for each in gone["objects"]]
    for start in range(0, max(len(links), len(keys)), _MOST_TOLD):
        end = start + _MOST_TOLD
        yield {"links": links[start:end], "objects": keys[start:end]}


async def _forget(pulls: Pulls, store: Store, told: Mapping[str, Any]) -> None:
    for link in told["links"]:
        await pulls.manifests.forget(link)
    for key in told["objects"]:
        store.objects.let_go(ObjectKey.parse(key))


def commands(state: SharedState, generations: "Generations", started: float) -> Commands:
    """The commands of this process, translated; ``started`` is its start (Unix seconds)."""
    store, watch = state.store, state.block_watch

    def cache() -> Cache:
        config, kept = generations.current.config, store.keep_list.known
        return Cache.of(config, store.objects, store.catalogue, kept)

    async def about(_: Mapping[str, Any]) -> Any:
        return {"version": __version__, "pid": os.getpid(), "started": rfc3339(started)}

    async def images(told: Mapping[str, Any]) -> Any:
        return await listing(cache(), told["patterns"])

    async def remove(told: Mapping[str, Any]) -> Any:
        dry_run, force = told["dry_run"], told["force"]
        return await removal(cache(), told["targets"], dry_run=dry_run, force=force)

    async def forget(told: Mapping[str, Any]) -> Any:
        """Forget links and objects before answering."""
        await _forget(generations.current.pulls, store, told)
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
        return Rulings(cache(), store.decisions, watch.file, state.clock)

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
