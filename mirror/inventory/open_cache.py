"""An open cache, as upkeep needs it."""

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from mirror.config.keep import kept_images, naming
from mirror.config.model import Config
from mirror.inventory.errors import UpkeepError
from mirror.oci.image_glob import FullName, ImageGlob, Naming
from mirror.store.images.catalogue import Catalogue, Section
from mirror.store.local.eviction import Limits
from mirror.store.local.layout import Layout
from mirror.store.local.objects import Objects
from mirror.store.local.sqlite import IndexUnavailableError
from mirror.store.metadata.kv import KeyValueStore
from mirror.store.metadata.tags import Tags
from mirror.threads import NoThreadError, Threads


@dataclass(frozen=True, slots=True)
class Cache:
    """What is there, what of it is an image, what images are called here, and which are kept."""

    objects: Objects
    catalogue: Catalogue
    naming: Naming
    kept: Sequence[ImageGlob]
    upstreams: Sequence[str]

    @classmethod
    def of(cls, config: Config, objects: Objects, catalogue: Catalogue) -> Self:
        """An open cache as a configuration has it."""
        names = tuple(config.enabled())
        return cls(objects, catalogue, naming(config), kept_images(config), names)

    def keeps(self, image: FullName) -> bool:
        """Whether an image is to be kept."""
        return any(glob.matches(image) for glob in self.kept)


class _Nobody:
    def evicted(self, size: int) -> None:
        """Upkeep makes no room."""


@asynccontextmanager
async def opened_cache(config: Config) -> AsyncIterator[Cache]:
    """Open the cache directory of a configuration, whoever else uses it.

    Raises:
        UpkeepError: it cannot be used, at once or later on.
    """
    layout = Layout(config.cache.directory.absolute())
    try:
        disk_bytes = shutil.disk_usage(layout.root).total  # never make one that was misspelt
        limits = Limits(config.cache.max_size.of(disk_bytes), 0)
        with Threads(workers(), "files") as threads:
            objects = Objects(layout, limits, _Nobody(), threads)
            notes = public, private = (
                KeyValueStore(directory, limits.bounds)
                for directory in (layout.tags, layout.private)
            )
            await objects.open()
            for each in notes:
                await each.heal()
            sections = Section.public(Tags(public)), Section.private(Tags(private))
            try:
                catalogue = Catalogue(objects, sections, threads)
                yield Cache.of(config, objects, catalogue)
            finally:
                await objects.close()
                for each in notes:
                    await each.close()
    except NoThreadError as error:
        raise UpkeepError(str(error)) from error
    except (OSError, IndexUnavailableError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UpkeepError(
            f"the cache directory {config.cache.directory} cannot be used: {reason}; "
            "name another with --cache-dir or [cache] directory"
        ) from error


def workers() -> int:
    """How many things to do at once."""
    return max(2, os.cpu_count() or 1)
