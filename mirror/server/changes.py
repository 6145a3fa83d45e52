"""The changes that an operator can make by HTTP, to what is cached and to what is given out."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from mirror.api.v1 import Change
from mirror.config.model import Config
from mirror.inventory.blocking import block, unblock
from mirror.inventory.cache import Cache
from mirror.inventory.removal import removal
from mirror.inventory.ruling import Rulings
from mirror.oci.image_name import ImageName, parse_image
from mirror.oci.reference import InvalidName, InvalidReference
from mirror.registry_client.client import PullError
from mirror.registry_client.pull import Wanted
from mirror.server.control import ControlDirectory
from mirror.server.maintenance import keeping_rule
from mirror.server.pulls import Pulls
from mirror.server.shared_state import SharedState
from mirror.server.warming import located
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.layout import ObjectKey
from mirror.user_error import UserError

_log = logging.getLogger(__name__)
_BY: Final = "HTTP token"  # where commands have the system user
_TOLD_SECONDS: Final = 10.0
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
        """Return the changes by name."""
        return {
            "warm": self.warm,
            "keep": self.keep,
            "release": self.release,
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

    async def keep(self, image: str, _: str) -> Any:
        """Keep an image until it is released: it is never evicted."""
        return await self._list(image, keep=True)

    async def release(self, image: str, _: str) -> Any:
        """Let an image be evicted again; the images of ``[[keep]]`` stay."""
        return await self._list(image, keep=False)

    async def _list(self, image: str, *, keep: bool) -> Any:
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
        keys = [ObjectKey.parse(_key(each)) for each in gone["objects"]]
        for link in gone["links"]:
            await self.pulls.manifests.forget(link)
        for key in keys:
            store.objects.let_go(key)
        names = list(map(str, keys))
        for start in range(0, max(len(gone["links"]), len(names)), _MOST_TOLD):
            end = start + _MOST_TOLD
            told = {"links": gone["links"][start:end], "objects": names[start:end]}
            await self._tell_others("/control/forget", told)
        self.shared_state.browser.outdate()
        _noted("dropped", ", ".join(each["name"] for each in gone["images"]))
        return {"image": image, "bytes": gone["bytes"], "objects": len(keys)}

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
        try:
            for name in await asyncio.to_thread(sockets.live):
                if name.partition(".")[0] != str(os.getpid()):
                    await _tell(sockets.address(name), path, told)
        finally:
            sockets.close()

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


async def _tell(address: str, path: str, told: Mapping[str, Any]) -> None:
    connector = aiohttp.UnixConnector(address)
    limit = aiohttp.ClientTimeout(total=_TOLD_SECONDS)
    try:
        async with (
            aiohttp.ClientSession("http://mirror", connector=connector) as session,
            session.post(path, json=told, timeout=limit),
        ):
            pass
    except (aiohttp.ClientError, TimeoutError):  # the process has ended, or serves nothing
        return


def _key(told: Mapping[str, Any]) -> str:
    return f"{told['kind']}.{str(told['digest']).replace(':', '.')}"
