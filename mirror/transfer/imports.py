"""Imports images from a layout into the cache, for places without access to a registry.

Every byte is verified while it is read.  Names are recorded last, once all that they need is in the
cache: a damaged layout leaves no name that could be pulled.  An import may run beside a mirror,
which sees the objects at once, since they share the index.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from mirror import __version__
from mirror.admin.client import check_owner, lookup_running
from mirror.config.model import Config
from mirror.metrics.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.image_layout import NamedRoot, NotALayout
from mirror.oci.image_name import ImageName
from mirror.pull.refusals import IMPORTED, Question
from mirror.registry_client.client import Place, PullError, attached_tag
from mirror.server.maintenance import keeping_rule
from mirror.server.store import Store, opened_store
from mirror.server.warming import located
from mirror.store.interface import (
    IndexUnavailableError,
    Link,
    NoRoomError,
    Page,
    PartialBusyError,
    link_name,
)
from mirror.store.local.layout import MANIFESTS, ObjectKey
from mirror.transfer.layout_reader import opened_files
from mirror.transfer.layout_store import Completeness, LackingError, Taking
from mirror.transfer.tar import DamagedTar
from mirror.upstream.routing import Target
from mirror.user_error import UserError

#: Manifests of an image for which it is recorded that nothing is attached.
_MOST_NOTED: Final = 1_000


class Reading(Protocol):
    """Shows the progress of reading, in bytes."""

    def expect(self, total: int) -> None: ...

    def advance(self, size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Imported:
    """The result for one image; ``size`` in bytes, ``reason`` is empty if it succeeded."""

    name: str
    digest: Digest
    size: int = 0
    reason: str = ""

    def document(self) -> dict[str, str | int | None]:
        return {
            "name": self.name,
            "digest": str(self.digest),
            "bytes": self.size,
            "error": self.reason or None,
        }


@dataclass(slots=True)
class _Moved:
    """Names that were recorded (``store.tags``), and the manifests they referred to before."""

    links: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)


async def import_layout(
    config: Config,
    source: str,
    called: ImageName | None,
    reading: Reading,
    clock: Callable[[], float] = time.time,
) -> list[Imported]:
    """Import images into the cache.

    ``source`` is a tar, compressed or not, a directory, or ``-`` for stdin; ``called`` a name for
    the only image, which replaces the name in the layout.

    Raises:
        UserError: ``source`` is not a layout, or is damaged, or the cache cannot store it.
    """
    check_owner(config.cache.directory.absolute())
    try:
        async with opened_store(config, Metrics(__version__)) as store:
            keeping = store.keeping
            keeping.rule = keeping_rule(config, store.keep_list.known, keeping.meant)
            roots = await _taken(store, source, reading)
            if called is not None and len(roots) != 1:
                raise UserError(f"{source}: --as is for one image, and it has {len(roots)}")
            moved, complete = _Moved(), Completeness(store.blobs, store.manifests)
            for root in roots:  # all images before the first name
                with contextlib.suppress(LackingError):
                    await complete.completed(root.descriptor)
            found = [
                await _named(config, store, complete, root, called, clock(), moved)
                for root in roots
            ]
        await _tell(config, moved)
        return found
    except (NotALayout, DamagedTar) as error:
        raise UserError(f"{source}: {error}") from error
    except (NoRoomError, IndexUnavailableError, PartialBusyError) as error:
        raise UserError(f"the cache {config.cache.directory} cannot store it: {error}") from error
    except OSError as error:
        text = f"the cache {config.cache.directory} cannot store it: {error.strerror}"
        raise UserError(text) from error


async def _taken(store: Store, source: str, reading: Reading) -> Sequence[NamedRoot]:
    taking = Taking(store.blobs, store.manifests)
    with opened_files(source, reading.advance) as (files, total):
        if total is not None:
            reading.expect(total)
        while (file := await asyncio.to_thread(next, files, None)) is not None:
            await taking.take(file)
    return taking.roots()


async def _named(
    config: Config,
    store: Store,
    complete: Completeness,
    root: NamedRoot,
    called: ImageName | None,
    now: float,
    moved: _Moved,
) -> Imported:
    """Record the name of an image, if the image is complete."""
    digest, image = root.descriptor.digest, called or root.image
    name = str(digest) if image is None else str(image)
    try:
        descriptor, size = await complete.completed(root.descriptor)
        wanted = None if image is None else located(config, image)
    except (LackingError, PullError) as error:
        return Imported(name, digest, reason=str(error))
    if wanted is None:
        return Imported(name, digest, size, "has no name; set one with --as")
    if isinstance(wanted.reference, Digest) and wanted.reference != digest:
        return Imported(name, digest, size, f"is not {wanted.reference}")
    place, link = wanted.place, Link(descriptor, now, imported=True)
    for reference in {str(digest), str(wanted.reference)}:  # as a pull records them
        written = link_name(FullName(place.upstream, place.repository, reference))
        former = await store.tags.lookup(written)
        if former is not None:
            moved.objects.append(str(ObjectKey(MANIFESTS, former.descriptor.digest)))
        await store.tags.put(written, link)
        moved.links.append(written)
    for each in (await complete.manifests(digest))[:_MOST_NOTED]:
        await _note_nothing_attached(store, place, each, now)
    return Imported(wanted.full_name, digest, size)


async def _note_nothing_attached(store: Store, place: Place, digest: Digest, now: float) -> None:
    """Record that no signatures are known, until upstream says otherwise.

    Clients such as Docker 29.1 ask for them at each pull, and fail without an answer.
    """
    target, tag = Target(place.upstream, place.repository), attached_tag(digest)
    for question in (
        Question(target, "referrers", f"{digest} ", f"{digest} "),
        Question(target, "manifest", tag, tag),
    ):
        if await store.listings.lookup(question.missing) is None:
            await store.listings.put(question.missing, Page(None, {IMPORTED: "yes"}, now))


async def _tell(config: Config, moved: _Moved) -> None:
    """Make a running mirror forget what it remembers of these names."""
    told = {"links": moved.links, "objects": moved.objects}
    with contextlib.suppress(UserError):  # it does so by itself after max_age
        async with lookup_running(config.cache.directory.absolute()) as running:
            if running is not None and moved.links:
                await running.tell("/control/forget", told)
