"""An open cache directory for cache operations."""

import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from mirror.config.keep import kept_images, naming
from mirror.config.model import Config
from mirror.oci.image_glob import FullName, ImageGlob, Naming
from mirror.store.images.catalogue import Catalogue, Section
from mirror.store.local.eviction import Limits
from mirror.store.local.layout import Layout
from mirror.store.local.objects import Objects
from mirror.store.local.sqlite import IndexUnavailableError
from mirror.store.metadata.kv import KeyValueStore
from mirror.store.metadata.tags import Tags
from mirror.threads import Threads
from mirror.user_error import UserError


@dataclass(frozen=True, slots=True)
class Cache:
    """The stored objects, the catalogue of images, the naming rules, and the kept images."""

    objects: Objects
    catalogue: Catalogue
    naming: Naming
    kept: Sequence[ImageGlob]
    upstreams: Sequence[str]

    @classmethod
    def of(cls, config: Config, objects: Objects, catalogue: Catalogue) -> Self:
        """Combine an open cache with the rules of a configuration."""
        names = tuple(config.enabled())
        return cls(objects, catalogue, naming(config), kept_images(config), names)

    def keeps(self, image: FullName) -> bool:
        """Return True if a ``[[keep]]`` rule matches an image."""
        return any(glob.matches(image) for glob in self.kept)


class _NoEvictions:
    def evicted(self, size: int) -> None:
        """Do nothing: cache operations do not evict."""


@asynccontextmanager
async def opened_cache(config: Config) -> AsyncIterator[Cache]:
    """Open the cache directory of a configuration; other processes may use it at the same time.

    Raises:
        UserError: the directory cannot be used, now or inside the context.
    """
    layout = Layout(config.cache.directory.absolute())
    try:
        disk_bytes = shutil.disk_usage(layout.root).total  # fails for a misspelt directory
        limits = Limits(config.cache.max_size.of(disk_bytes), 0)
        with Threads(workers(), "files") as threads:
            objects = Objects(layout, limits, _NoEvictions(), threads)
            notes = public, private = tuple(
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
    except (OSError, IndexUnavailableError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"the cache directory {config.cache.directory} cannot be used: {reason}; "
            "name another with --cache-dir or [cache] directory"
        ) from error


def workers() -> int:
    """Return the number of worker threads."""
    return max(2, os.cpu_count() or 1)
