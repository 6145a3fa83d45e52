"""Opens and closes the store."""

import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.config.model import Config
from mirror.inventory.cache import Cache
from mirror.server.open_files import answer_limits, question_limits
from mirror.shares import Rooms, Shares
from mirror.store.images.catalogue import Catalogue, Section
from mirror.store.images.keep import KeptImages
from mirror.store.interface import DecisionStore, IndexUnavailableError, Link
from mirror.store.local.content import Blobs, Manifests
from mirror.store.local.disk_usage import free_on, total_inodes
from mirror.store.local.eviction import Limits, Observer
from mirror.store.local.layout import Layout
from mirror.store.local.objects import Objects
from mirror.store.metadata.kv import KeyValueStore
from mirror.store.metadata.operator_files import KeepList
from mirror.store.metadata.records import Decisions, Links, Listings, Tags
from mirror.threads import Threads
from mirror.ui.formatting import plain_size
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
    """Everything on disk; ``rooms`` limit how much of it, and of responses, is in memory.

    ``browsable`` is the part of ``catalogue`` that every client may see.
    """

    rooms: Rooms
    layout: Layout
    objects: Objects
    blobs: Blobs
    manifests: Manifests
    tags: Tags
    listings: Listings
    decisions: DecisionStore
    private: Private
    records: tuple[KeyValueStore, ...]
    catalogue: Catalogue
    browsable: Catalogue
    keeping: KeptImages
    keep_list: KeepList

    async def heal(self) -> None:
        """Reopen databases that were damaged, removed, or could not be opened; call it often."""
        await self.objects.heal()
        for records in self.records:
            await records.heal()

    async def lookup_link(self, name: str) -> Link | None:
        return await self.tags.lookup(name) or await self.private.tags.lookup(name)

    async def limit(self, limits: Limits) -> None:
        """Apply other limits from now on, and drop at once what exceeds them.

        Raises:
            OSError, IndexUnavailableError: the disk or a database cannot be used now.
        """
        for records in self.records:
            await records.limit(limits.bounds)
        await self.objects.limit(limits)  # after the databases, whose size counts


@dataclass(frozen=True, slots=True)
class _Disk:
    """The open databases of a cache directory, and the images in it."""

    layout: Layout
    objects: Objects
    records: tuple[KeyValueStore, ...]  # as Layout.records
    sections: tuple[Section, Section]
    catalogue: Catalogue
    browsable: Catalogue
    keep_list: KeepList


@asynccontextmanager
async def opened_store(config: Config, observer: Observer) -> AsyncIterator[Store]:
    """Open the store; it opens even if the disk has errors.

    Raises:
        UserError: the directory can never be used.
    """
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(Threads(_FILE_THREADS, "files"))
        reading = stack.enter_context(Threads(_READING_THREADS, "catalogue"))
        try:
            limits = cache_limits(config)
            opening = _opened_disk(config, limits, observer, threads, reading)
            disk = await stack.enter_async_context(opening)
        except OSError as error:
            raise _directory_error(config, error, "choose") from error
        await _warn_of_databases(config, disk.objects)
        questions = Shares("question", question_limits(config))
        yield _store(disk, threads, Rooms(questions, Shares("answer", answer_limits(config))))


@asynccontextmanager
async def opened_cache(config: Config) -> AsyncIterator[Cache]:
    """Open the cache for a command; other processes may use it at the same time.

    Raises:
        UserError: the directory cannot be used, now or inside the context.
    """
    async with opened_records(config) as (cache, _):
        yield cache


@asynccontextmanager
async def opened_records(config: Config) -> AsyncIterator[tuple[Cache, Decisions]]:
    """As :func:`opened_cache`, with the records of rules.

    Raises:
        UserError: the directory cannot be used, now or inside the context.
    """
    try:
        os.stat(config.cache.directory)  # a misspelt directory is not created
        with Threads(max(2, os.cpu_count() or 1), "files") as threads:
            opening = _opened_disk(config, cache_limits(config), _NoObserver(), threads, threads)
            async with opening as disk:
                records = Decisions(disk.records[0])
                kept = disk.keep_list.known
                yield Cache.of(config, disk.objects, disk.catalogue, kept), records
    except (OSError, IndexUnavailableError) as error:
        raise _directory_error(config, error, "name") from error


class _NoObserver:
    def evicted(self, size: int) -> None:
        """Do nothing: commands do not evict."""


@asynccontextmanager
async def _opened_disk(
    config: Config, limits: Limits, observer: Observer, threads: Executor, reading: Executor
) -> AsyncIterator[_Disk]:
    """Open the databases of the cache directory.

    Raises:
        OSError: the directory can never be used.
    """
    layout = Layout(config.cache.directory.absolute())
    objects = Objects(layout, limits, observer, threads)
    await objects.open()
    records = tuple(KeyValueStore(place, limits.bounds) for place in layout.records())
    for each in records:
        await each.heal()
    tags, _, private = records
    sections = Section.public(Tags(tags)), Section.private(Tags(private))
    catalogue = Catalogue(objects, sections, reading)
    browsable = Catalogue(objects, sections[:1], reading)
    keep_list = KeepList(layout.keep_list)
    keep_list.reread()
    try:
        yield _Disk(layout, objects, records, sections, catalogue, browsable, keep_list)
    finally:
        await objects.close()
        for each in records:
            await each.close()


async def _warn_of_databases(config: Config, objects: Objects) -> None:
    """Log one warning if the cache is so small that its databases leave no room."""
    with contextlib.suppress(OSError, IndexUnavailableError):  # Objects.health has logged it
        usage = await objects.usage()
        if usage.overhead_bytes > usage.max_bytes // 2:
            _log.warning(
                "max_size %s leaves little or no room: the databases of the cache take %d bytes; "
                "raise max_size",
                config.cache.max_size.text,
                usage.overhead_bytes,
            )


def _store(disk: _Disk, threads: Executor, rooms: Rooms) -> Store:
    parts = (disk.layout, disk.objects, threads)
    _, listings, private = disk.records
    public, hidden = disk.sections
    own = Private(
        Blobs(*parts, private=True),
        Manifests(*parts, private=True, answers=rooms.answers),
        hidden.tags,
        Listings(private),
        Links(private),
    )
    manifests = Manifests(*parts, answers=rooms.answers)
    keeping = KeptImages(disk.objects, disk.catalogue)
    keeping.watch(public, manifests)
    keeping.watch(hidden, own.manifests)
    return Store(
        rooms,
        disk.layout,
        disk.objects,
        Blobs(*parts),
        manifests,
        public.tags,
        Listings(listings),
        Decisions(disk.records[0]),
        own,
        disk.records,
        disk.catalogue,
        disk.browsable,
        keeping,
        disk.keep_list,
    )


def cache_limits(config: Config) -> Limits:
    """How much may be stored, given the disk of the cache directory."""
    there = _existing(config.cache.directory.absolute())
    disk_bytes = shutil.disk_usage(there).total
    min_free = config.cache.min_free.of(disk_bytes)
    inodes = min_free * total_inodes(there) // max(disk_bytes, 1)  # the same share of them
    return Limits(config.cache.max_size.of(disk_bytes), min_free, inodes)


async def shortage(config: Config, store: Store) -> str:
    """Return why the cache cannot reach its maximum size on this disk, empty if it can."""
    limits = cache_limits(config)
    try:
        usage = await store.objects.usage()
        free = free_on(store.layout.root).bytes
    except (OSError, IndexUnavailableError):  # Objects.health has logged it
        return ""
    if usage.used_bytes + usage.overhead_bytes + free - limits.min_free_bytes >= limits.max_bytes:
        return ""
    kept = (
        f", and min_free keeps {plain_size(limits.min_free_bytes)}" if limits.min_free_bytes else ""
    )
    return f", but the disk has {plain_size(free)} free{kept}"


def _existing(directory: Path) -> Path:
    """The directory, or its nearest existing parent."""
    return next(path for path in (directory, *directory.parents) if path.exists())


def _directory_error(config: Config, error: Exception, verb: str) -> UserError:
    reason = error.strerror if isinstance(error, OSError) else error
    return UserError(
        f"the cache directory {config.cache.directory} cannot be used: {reason}; "
        f"{verb} another with --cache-dir or [cache] directory"
    )
