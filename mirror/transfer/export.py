"""Exports images from the cache, for places without access to a registry."""

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import Protocol

from mirror.admin.client import reached
from mirror.config.model import Config
from mirror.oci.image_layout import written_archive
from mirror.oci.image_name import ImageName
from mirror.oci.manifest import Descriptor
from mirror.oci.platform import Platform
from mirror.registry_client.client import MirrorClient, Place, PullError
from mirror.registry_client.pull import Plan, Pulled, Puller, Watcher
from mirror.server.warming import located_all
from mirror.store.local.layout import left_in
from mirror.transfer.layout_store import whole
from mirror.transfer.layout_writer import LayoutWriter, opened_layout, verified
from mirror.user_error import UserError


class Pulling(Watcher, AbstractContextManager[object], Protocol):
    """Shows the progress of the pull."""


class Writing(AbstractContextManager[object], Protocol):
    """Shows the progress of writing, in bytes."""

    def expect(self, total: int) -> None: ...

    def advance(self, size: int) -> None: ...


async def export(
    config: Config,
    images: Iterable[ImageName],
    platforms: Sequence[Platform],
    parallel: int,
    target: str,
    pulling: Pulling,
    writing: Writing,
) -> list[Plan]:
    """Write images as an OCI image layout; images that are not cached are pulled first.

    ``platforms`` select from an index; none select all.  ``parallel`` is the number of downloads
    at once, ``target`` a file for a tar, a directory, or ``-`` for stdout.

    Raises:
        UserError: an image cannot be pulled or written; no incomplete file is left.
    """
    wanted, failed = located_all(config, images)
    _check(failed)
    async with reached(config) as mirror:
        client = MirrorClient(mirror.sessions)
        left_of = left_in(config.cache.directory.absolute())
        with pulling:
            pulled = await Puller(client, left_of, pulling, parallel, attached=False).pull(
                wanted, platforms
            )
        _check(pulled)
        plans = [image.plan for image in pulled if image.plan is not None]
        with opened_layout(target) as layout, writing:
            await _write(client, plans, layout, writing)
    return plans


def _check(pulled: Iterable[Pulled]) -> None:
    failed = [f"{image.wanted.typed}: {image.reason}" for image in pulled if image.reason]
    if failed:
        raise UserError("\n".join([*failed, "nothing was written"]))


async def _write(
    client: MirrorClient, plans: Sequence[Plan], layout: LayoutWriter, writing: Writing
) -> None:
    manifests = {digest: pulled for plan in plans for digest, pulled in plan.manifests.items()}
    blobs = {
        digest: (plan.wanted.place, blob) for plan in plans for digest, blob in plan.blobs.items()
    }
    writing.expect(sum(blob.size for _, blob in blobs.values()))
    named = [(plan, plan.wanted.full_name) for plan in plans]
    images = [(body, name) for plan, name in named if (body := plan.runnable()) is not None]
    await layout.begin([(plan.root, name) for plan, name in named], written_archive(images))
    for digest, pulled in manifests.items():
        await layout.add(digest, len(pulled.body), whole(pulled.body))
    for digest, (place, blob) in blobs.items():
        if digest in manifests:  # one file serves both
            continue
        async with aclosing(_pieces(client, place, blob, writing.advance)) as pieces:
            await layout.add(digest, blob.size, pieces)
    await layout.finish()


async def _pieces(
    client: MirrorClient, place: Place, blob: Descriptor, advanced: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(client.blob(place, blob.digest)) as pieces:
            async for piece in verified(pieces, blob):
                yield piece
                advanced(len(piece))
    except PullError as error:
        raise UserError(f"{place}: {error}") from error
