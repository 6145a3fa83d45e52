"""Opens and closes the store."""

import contextlib
import logging
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.config.model import Config
from mirror.metrics.metrics import Metrics
from mirror.server.limits import answer_limits, question_limits
from mirror.shares import Rooms, Shares
from mirror.store.images.catalogue import Catalogue, Section
from mirror.store.images.keep import KeptImages
from mirror.store.local.blobs import Blobs
from mirror.store.local.disk_usage import total_inodes
from mirror.store.local.eviction import Limits
from mirror.store.local.layout import Layout
from mirror.store.local.manifests import Manifests
from mirror.store.local.objects import Objects
from mirror.store.local.sqlite import IndexUnavailableError
from mirror.store.metadata.kv import KeyValueStore
from mirror.store.metadata.links import Links
from mirror.store.metadata.listings import Listings
from mirror.store.metadata.tags import Tags
from mirror.threads import Threads
from mirror.user_error import UserError

_log = logging.getLogger(__name__)

_FILE_THREADS: Final = 16
_READING_THREADS: Final = 2  # for scans of the cache, separate from the threads that serve


@dataclass(frozen=True, slots=True)
class Private:
    """Stored objects of private repositories; ``links`` holds what each repository has."""

    blobs: Blobs
    manifests: Manifests
    tags: Tags
    listings: Listings
    links: Links


@dataclass(frozen=True, slots=True)
class Store:
    """Everything on disk; ``rooms`` limit how much of it, and of responses, is in memory."""

    rooms: Rooms
    layout: Layout
    objects: Objects
    blobs: Blobs
    manifests: Manifests
    tags: Tags
    listings: Listings
    private: Private
    notes: tuple[KeyValueStore, ...]
    catalogue: Catalogue
    keeping: KeptImages

    async def heal(self) -> None:
        """Reopen databases that were damaged, removed, or could not be opened; call it often."""
        await self.objects.heal()
        for notes in self.notes:
            await notes.heal()

    async def limit(self, limits: Limits) -> None:
        """Apply other limits from now on, and drop at once what exceeds them.

        Raises:
            OSError, IndexUnavailableError: the disk or a database cannot be used now.
        """
        for notes in self.notes:
            await notes.limit(limits.bounds)
        await self.objects.limit(limits)  # after the databases, whose size counts


@asynccontextmanager
async def opened_store(config: Config, metrics: Metrics) -> AsyncIterator[Store]:
    """Open the store; it opens even if the disk has errors.

    Raises:
        UserError: the directory can never be used.
    """
    layout = Layout(config.cache.directory.absolute())
    limits = cache_limits(config)
    threads = Threads(_FILE_THREADS, "files")
    objects = Objects(layout, limits, metrics, threads)
    try:
        await objects.open()
    except OSError as error:
        raise _directory_error(config, error) from error
    reading = Threads(_READING_THREADS, "catalogue")
    questions = Shares("question", question_limits(config))
    rooms = Rooms(questions, Shares("answer", answer_limits(config)))
    store = _store(layout, limits, objects, (threads, reading), rooms)
    await store.heal()
    await _warn_of_databases(config, objects)
    try:
        yield store
    finally:
        await objects.close()
        for notes in store.notes:
            await notes.close()
        reading.shutdown()
        threads.shutdown()


async def _warn_of_databases(config: Config, objects: Objects) -> None:
    """Log one warning if the cache is so small that its databases leave no room."""
    with contextlib.suppress(OSError, IndexUnavailableError):  # the alarm has logged it
        usage = await objects.usage()
        if usage.overhead_bytes > usage.max_bytes // 2:
            _log.warning(
                "max_size %s leaves little or no room: the databases of the cache take %d bytes; "
                "raise max_size",
                config.cache.max_size.text,
                usage.overhead_bytes,
            )


def _store(
    layout: Layout,
    limits: Limits,
    objects: Objects,
    executors: tuple[Executor, Executor],
    rooms: Rooms,
) -> Store:
    threads, reading = executors
    parts = (layout, objects, threads)
    places = (layout.tags, layout.listings, layout.private)
    notes = tags, listings, private = tuple(KeyValueStore(place, limits.bounds) for place in places)
    hidden = Private(
        Blobs(*parts, private=True),
        Manifests(*parts, private=True, answers=rooms.answers),
        Tags(private),
        Listings(private),
        Links(private),
    )
    manifests = Manifests(*parts, answers=rooms.answers)
    public = Section.public(Tags(tags))
    sections = (public, Section.private(hidden.tags))
    catalogue = Catalogue(objects, sections, reading)
    keeping = KeptImages(objects, catalogue)
    for section, stored in zip(sections, (manifests, hidden.manifests), strict=True):
        keeping.watch(section, stored)
    return Store(
        rooms,
        layout,
        objects,
        Blobs(*parts),
        manifests,
        public.tags,
        Listings(listings),
        hidden,
        notes,
        catalogue,
        keeping,
    )


def cache_limits(config: Config) -> Limits:
    """How much may be stored, given the disk of the cache directory."""
    there = _existing(config.cache.directory.absolute())
    disk_bytes = shutil.disk_usage(there).total
    min_free = config.cache.min_free.of(disk_bytes)
    inodes = min_free * total_inodes(there) // max(disk_bytes, 1)  # the same share of them
    return Limits(config.cache.max_size.of(disk_bytes), min_free, inodes)


def _existing(directory: Path) -> Path:
    """The directory, or its nearest existing parent."""
    return next(path for path in (directory, *directory.parents) if path.exists())


def _directory_error(config: Config, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) else error
    return UserError(
        f"the cache directory {config.cache.directory} cannot be used: {reason}; "
        "choose another with --cache-dir or [cache] directory"
    )
