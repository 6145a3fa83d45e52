"""The store, opened and closed."""

import shutil
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.app.errors import StartError
from mirror.config.model import Config
from mirror.metrics import Metrics
from mirror.store.blobs import Blobs
from mirror.store.catalogue import Catalogue, Section
from mirror.store.keeping import Keeping
from mirror.store.layout import Layout
from mirror.store.links import Links
from mirror.store.listings import Listings
from mirror.store.manifests import Manifests
from mirror.store.notes import Notes
from mirror.store.objects import Objects
from mirror.store.space import Limits
from mirror.store.tags import Tags
from mirror.threads import Threads

_FILE_THREADS: Final = 16
_READING_THREADS: Final = 2  # for whoever looks through the cache, apart from those that serve


@dataclass(frozen=True, slots=True)
class Private:
    """What is kept of private repositories; ``links`` says what each of them has."""

    blobs: Blobs
    manifests: Manifests
    tags: Tags
    listings: Listings
    links: Links


@dataclass(frozen=True, slots=True)
class Store:
    """What is kept on disk."""

    layout: Layout
    objects: Objects
    blobs: Blobs
    manifests: Manifests
    tags: Tags
    listings: Listings
    private: Private
    notes: tuple[Notes, ...]
    catalogue: Catalogue
    keeping: Keeping

    async def heal(self) -> None:
        """Open again what was damaged, removed, or could not be opened; to be called often."""
        await self.objects.heal()
        for notes in self.notes:
            await notes.heal()


@asynccontextmanager
async def opened_store(config: Config, metrics: Metrics) -> AsyncIterator[Store]:
    """Open the store; a disk in trouble does not keep it from opening.

    Raises:
        StartError: the directory could never be used.
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
    store = _store(layout, objects, threads, reading)
    await store.heal()
    try:
        yield store
    finally:
        await objects.close()
        for notes in store.notes:
            await notes.close()
        reading.shutdown()
        threads.shutdown()


def _store(layout: Layout, objects: Objects, threads: Executor, reading: Executor) -> Store:
    parts = (layout, objects, threads)
    places = (layout.tags, layout.listings, layout.private)
    notes = tags, listings, private = tuple(Notes(place) for place in places)
    hidden = Private(
        Blobs(*parts, private=True),
        Manifests(*parts, private=True),
        Tags(private),
        Listings(private),
        Links(private),
    )
    manifests, public = Manifests(*parts), Section.public(Tags(tags))
    sections = (public, Section.private(hidden.tags))
    catalogue = Catalogue(objects, sections, reading)
    keeping = Keeping(objects, catalogue)
    for section, stored in zip(sections, (manifests, hidden.manifests), strict=True):
        keeping.watch(section, stored)
    return Store(
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
    """How much may be kept, on the disk that the cache is on."""
    disk_bytes = _disk_bytes(config.cache.directory.absolute())
    return Limits(config.cache.max_size.of(disk_bytes), config.cache.min_free.of(disk_bytes))


def _disk_bytes(directory: Path) -> int:
    """The size of the disk that a directory is, or will be, on."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(there).total


def _directory_error(config: Config, error: Exception) -> StartError:
    reason = error.strerror if isinstance(error, OSError) else error
    return StartError(
        f"the cache directory {config.cache.directory} cannot be used: {reason}; "
        "choose another with --cache-dir or [cache] directory"
    )
