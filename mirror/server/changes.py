"""The changes that an operator can make by HTTP: pull an image ahead, keep, release and drop it."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from mirror.api.v1 import Change
from mirror.config.model import Config
from mirror.inventory.cache import Cache
from mirror.inventory.removal import removal
from mirror.oci.image_name import ImageName, parse_image
from mirror.oci.reference import InvalidName, InvalidReference
from mirror.registry_client.client import PullError
from mirror.registry_client.plan import Wanted
from mirror.server.control import ControlDirectory
from mirror.server.maintenance import keeping_rule
from mirror.server.pulls import Pulls
from mirror.server.shared_state import SharedState
from mirror.server.warming import located
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.layout import ObjectKey
from mirror.user_error import UserError

_TOLD_SECONDS: Final = 10.0
_MOST_TOLD: Final = 2000  # names per request, well below the limit of a request


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes under one configuration.  All methods take the name of one image.

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
        }

    async def warm(self, image: str) -> Any:
        """Begin to pull an image for the platform of this machine."""
        wanted = self._wanted(image)
        self.shared_state.requested.pull(self.config, wanted)
        self.shared_state.browser.outdate()
        return {"image": wanted.full_name, "state": "pulling"}

    async def keep(self, image: str) -> Any:
        """Keep an image until it is released: it is never evicted."""
        return await self._list(image, keep=True)

    async def release(self, image: str) -> Any:
        """Let an image be evicted again; the images of ``[[keep]]`` stay."""
        return await self._list(image, keep=False)

    async def _list(self, image: str, *, keep: bool) -> Any:
        store, name = self.shared_state.store, self._wanted(image).full_name
        try:
            await asyncio.to_thread(store.keep_list.change, name, keep=keep)
            await asyncio.to_thread(store.keep_list.reread)
            rule = keeping_rule(self.config, store.keep_list.known, store.keeping.meant)
            store.keeping.rule = rule
            if not keep:
                await store.keeping.review()
            async for page in store.catalogue.names(lambda each: keep and str(each) == name):
                for each in page:
                    await store.keeping.noted(each.section, each.name, each.digest)
        except (OSError, IndexUnavailableError) as error:
            raise UserError(f"the cache directory cannot be used: {error}") from error
        return {"image": name, "kept": keep}

    async def drop(self, image: str) -> Any:
        """Drop an image, and the data that no other image uses; the next pull asks upstream."""
        store = self.shared_state.store
        parts = store.objects, store.catalogue, store.keep_list.known
        try:
            gone = await removal(Cache.of(self.config, *parts), [str(_parsed(image))])
        except (OSError, IndexUnavailableError) as error:
            raise UserError(f"the cache directory cannot be used: {error}") from error
        keys = [ObjectKey.parse(_key(each)) for each in gone["objects"]]
        for link in gone["links"]:
            await self.pulls.manifests.forget(link)
        for key in keys:
            store.objects.let_go(key)
        await self._tell_others(gone["links"], list(map(str, keys)))
        self.shared_state.browser.outdate()
        return {"image": image, "bytes": gone["bytes"], "objects": len(keys)}

    async def _tell_others(self, links: list[str], keys: list[str]) -> None:
        """Make the other processes of this mirror forget what was dropped."""
        try:
            sockets = ControlDirectory.open(self.shared_state.store.layout.control)
        except OSError:  # then no other process can be told
            return
        try:
            for name in await asyncio.to_thread(sockets.live):
                if name.partition(".")[0] != str(os.getpid()):
                    await _tell(sockets.address(name), links, keys)
        finally:
            sockets.close()

    def _wanted(self, image: str) -> Wanted:
        try:
            return located(self.config, _parsed(image))
        except PullError as error:
            raise UserError(str(error)) from error


def _parsed(image: str) -> ImageName:
    try:
        return parse_image(image.strip())
    except (InvalidName, InvalidReference) as error:
        raise UserError(str(error)) from error


async def _tell(address: str, links: list[str], keys: list[str]) -> None:
    connector = aiohttp.UnixConnector(address)
    limit = aiohttp.ClientTimeout(total=_TOLD_SECONDS)
    try:
        async with aiohttp.ClientSession("http://mirror", connector=connector) as session:
            for start in range(0, max(len(links), len(keys)), _MOST_TOLD):
                end = start + _MOST_TOLD
                told = json.dumps({"links": links[start:end], "objects": keys[start:end]})
                async with session.post("/control/forget", data=told, timeout=limit):
                    pass
    except (aiohttp.ClientError, TimeoutError):  # the process has ended, or serves nothing
        return


def _key(told: Mapping[str, Any]) -> str:
    return f"{told['kind']}.{str(told['digest']).replace(':', '.')}"
