"""An open cache directory, as cache operations need it, and the verification of its objects."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Self

from mirror.config.cluster import ClusterConfig
from mirror.config.model import Config
from mirror.config.policy import kept_images, naming
from mirror.oci.image_glob import FullName, ImageGlob, Naming
from mirror.store.images.catalogue import Catalogue
from mirror.store.local.entry import Verification
from mirror.store.local.layout import ObjectKey
from mirror.store.local.objects import Objects


@dataclass(frozen=True, slots=True)
class Cache:
    """The stored objects, the catalogue of images, the naming rules, and the kept images.

    ``kept`` are the globs of the configuration, ``chosen`` the names of the keep list, ``cluster``
    what the mirror shares with others.
    """

    objects: Objects
    catalogue: Catalogue
    naming: Naming
    kept: Sequence[ImageGlob]
    upstreams: Sequence[str]
    chosen: Collection[str]
    cluster: ClusterConfig

    @classmethod
    def of(
        cls, config: Config, objects: Objects, catalogue: Catalogue, chosen: Collection[str]
    ) -> Self:
        names = tuple(config.enabled())
        rules = naming(config), kept_images(config), names, chosen
        return cls(objects, catalogue, *rules, config.cluster)

    def keeps(self, image: FullName) -> bool:
        """Return True if a ``[[keep]]`` rule matches an image, or the keep list names it."""
        return str(image) in self.chosen or any(glob.matches(image) for glob in self.kept)


async def verify(
    cache: Cache,
    expected: Callable[[int], None],
    advanced: Callable[[int], None],
    dropped: Callable[[ObjectKey], Awaitable[None]],
) -> Verification:
    """Hash all cached objects and remove damaged ones.

    ``expected`` is called once with the total of bytes on the disk, ``advanced`` with those of each
    finished object, ``dropped`` with the key of each damaged one.

    Raises:
        IndexUnavailableError, OSError: the cache cannot be used.
    """
    verification, objects = Verification(), cache.objects
    await objects.rebuilt()
    expected((await objects.usage()).used_bytes)
    rows, turn = objects.rows(), asyncio.Lock()

    async def work() -> None:
        while True:
            async with turn:
                row = await anext(rows, None)
            if row is None:
                return
            verdict = await objects.verify(row.key)
            if verdict is False:
                verification.damaged.append(row.key)
                await dropped(row.key)
            if verdict is not None:  # None: evicted in the meantime
                verification.objects += 1
                verification.bytes += row.size
            advanced(row.takes)

    await asyncio.gather(*(work() for _ in range(max(2, os.cpu_count() or 1))))
    return verification
