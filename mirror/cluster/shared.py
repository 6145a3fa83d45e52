"""The store that all mirrors of a cluster share, behind the local one.

Blobs are read by fills (:mod:`mirror.cluster.source`).  Manifests, and what a tag last meant, are
looked up in the object store if the local store does not have them: a new mirror can serve them
with upstream gone.  A manifest is verified before it is stored locally.  A link has no digest: with
a secret, only a link that a mirror has signed is believed.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.cluster.eviction import LINKS, Sweeper, Uses
from mirror.cluster.objects import Bucket, ObjectStream, opened_bucket, opened_clients
from mirror.cluster.redirect import Redirects
from mirror.cluster.secret import Secret
from mirror.cluster.tier import Observer, TierError
from mirror.cluster.uploads import Uploads, path_of
from mirror.config.cluster import ClusterConfig
from mirror.lru import Lru
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, NotAManifest, descriptor_fields, media_types, shown
from mirror.pull.singleflight import SingleFlight
from mirror.store.interface import (
    BlobStore,
    IndexUnavailableError,
    Link,
    Manifest,
    ManifestStore,
    NoRoomError,
    PartialBusyError,
    TagStore,
)
from mirror.store.local.layout import BLOBS, MANIFESTS, ObjectKey
from mirror.trouble import Problem

_log = logging.getLogger(__name__)

_MOST_MANIFEST_BYTES: Final = 4 * 1024 * 1024
_MOST_LINK_BYTES: Final = 64 * 1024
_MOST_SIZE: Final = 2**63  # of a manifest, in the database of the links
_MOST_WAITING: Final = 10_000  # links; further ones are not shared until they change
_FIRST_PAUSE_SECONDS: Final = 1.0
_MOST_PAUSE_SECONDS: Final = 300.0
#: A link that upstream confirms is written again after so many seconds.
_REWRITE_SECONDS: Final = 3_600.0
_TOLD: Final = 50_000
_CLOSE_SECONDS: Final = 2.0


class SharedBlobs:
    """The blobs in the object store, for fills.  Their bytes are not verified."""

    def __init__(self, bucket: Bucket, uploads: Uploads) -> None:
        self._bucket = bucket
        self._uploads = uploads

    @property
    def up(self) -> bool:
        """Whether the store may be asked: False for a while after failures."""
        return self._bucket.up

    def open_blob(self, digest: Digest, start: int) -> AbstractAsyncContextManager[ObjectStream]:
        """Open a blob from byte ``start`` on; the stream raises TierError too.

        Raises:
            TierMissError: the blob is not there.
            TierError: the store does not answer, or not in time.
        """
        return self._bucket.open(path_of(ObjectKey(BLOBS, digest)), start)

    async def discard(self, digest: Digest) -> None:
        await _discard(self._bucket, ObjectKey(BLOBS, digest))

    def upload(self, digest: Digest) -> None:
        """Upload a public blob, which the local store has adopted, in the background."""
        self._uploads.add(ObjectKey(BLOBS, digest))


class SharedManifests:
    """Public manifests: see :class:`mirror.store.interface.ManifestStore`."""

    def __init__(self, local: ManifestStore, bucket: Bucket, uploads: Uploads) -> None:
        self._local = local
        self._bucket = bucket
        self._uploads = uploads
        self._reads: SingleFlight[Digest, Manifest | None] = SingleFlight("shared manifest")

    def of(self, upstream: str) -> "SharedManifests":  # noqa: ARG002  # public ones are of all
        return self

    async def lookup(self, digest: Digest) -> Manifest | None:
        found = await self._local.lookup(digest)
        if found is not None or not self._bucket.up:
            return found
        manifest, _ = await self._reads.join(digest, lambda: self._fetched(digest))
        return manifest

    async def put(self, manifest: Manifest) -> None:
        await self._local.put(manifest)
        self._uploads.add(ObjectKey(MANIFESTS, manifest.digest))

    def touch(self, digest: Digest) -> None:
        self._local.touch(digest)

    async def close(self) -> None:
        await self._reads.close()

    async def _fetched(self, digest: Digest) -> Manifest | None:
        key = ObjectKey(MANIFESTS, digest)
        try:
            body = await self._bucket.read(path_of(key), _MOST_MANIFEST_BYTES)
        except TierError as error:
            _log.debug("%s", error)
            return None
        media_type = _lookup_type(body) if Digest.of(body, digest.algorithm) == digest else None
        if media_type is None:
            await _discard(self._bucket, key)
            return None
        manifest = Manifest(digest, media_type, body)
        with contextlib.suppress(NoRoomError, OSError, IndexUnavailableError, PartialBusyError):
            await self._local.put(manifest)
        return manifest


class SharedTags:
    """Public links: see :class:`mirror.store.interface.TagStore`."""

    def __init__(self, local: TagStore, bucket: Bucket, secret: Secret | None) -> None:
        """``secret`` signs the links; None: they are not signed."""
        self._local = local
        self._bucket = bucket
        self._secret = secret
        self._told: Lru[str, Link] = Lru(_TOLD)  # the links that were written, or wait
        self._waiting: dict[str, Link | None] = {}
        self._some, self._none = asyncio.Event(), asyncio.Event()
        self._none.set()

    async def lookup(self, name: str) -> Link | None:
        link = await self._local.lookup(name)
        if link is not None or not self._bucket.up:
            return link
        try:
            record = await self._bucket.read(link_path(name), _MOST_LINK_BYTES)
            link = self._decoded(name, record)
        except (TierError, ValueError, LookupError, TypeError, RecursionError) as error:
            _log.debug("no shared link %s: %s", name, error)
            return None
        with contextlib.suppress(IndexUnavailableError):
            await self._local.put(name, link)
        return link

    async def put(self, name: str, link: Link) -> None:
        await self._local.put(name, link)
        former = self._told.get(name)
        same = former is not None and former.descriptor == link.descriptor
        if not (same and former is not None and link.seen - former.seen < _REWRITE_SECONDS):
            self._told.put(name, link)
            self._enter(name, link)

    async def forget(self, name: str) -> None:
        await self._local.forget(name)
        self._told.pop(name)
        self._enter(name, None)

    async def run(self) -> None:
        """Write the links that wait, when the object store answers; run it in the background."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await self._some.wait()
            await self._bucket.availability.wait()
            name, link = next(iter(self._waiting.items()))
            try:
                await self._send(name, link)
            except TierError as error:
                _log.debug("%s is not written now: %s", name, error)
                self._waiting[name] = self._waiting.pop(name)  # behind the others
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MOST_PAUSE_SECONDS)
                continue
            pause = _FIRST_PAUSE_SECONDS
            if self._waiting.get(name) is link:  # else it has changed in the meantime
                del self._waiting[name]
            if not self._waiting:
                self._some.clear()
                self._none.set()

    async def settle(self) -> None:
        """Give the links that wait a moment to be written."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._none.wait()

    def _enter(self, name: str, link: Link | None) -> None:
        """Write a link, or remove it if it is None."""
        if name not in self._waiting and len(self._waiting) >= _MOST_WAITING:
            return
        self._waiting[name] = link
        self._some.set()
        self._none.clear()

    async def _send(self, name: str, link: Link | None) -> None:
        if link is None:
            await self._bucket.delete(link_path(name))
        else:
            await self._bucket.write(link_path(name), self._encoded(name, link))

    def _encoded(self, name: str, link: Link) -> bytes:
        fields = {"name": name, **descriptor_fields(link.descriptor), "seen": link.seen}
        record = json.dumps(fields)
        signature = "" if self._secret is None else self._secret.sign("link", record)
        return f"{record}\n{signature}".encode()

    def _decoded(self, name: str, record: bytes) -> Link:
        """Return the link of a record.

        Raises:
            ValueError, LookupError, TypeError: it is none, or not signed by a mirror.
        """
        text, _, signature = record.decode().partition("\n")
        if self._secret is not None and not self._secret.knows(signature, "link", text):
            raise ValueError("it is not signed with [cluster] secret_file")
        fields = json.loads(text)
        if fields["name"] != name:
            raise ValueError("it is another link")
        digest = Digest.parse(fields["digest"])
        size, media_type = fields["size"], shown(fields["mediaType"])
        # Without a secret everybody who can write to the object store writes these.
        if not (isinstance(size, int) and 0 <= size < _MOST_SIZE and media_type):
            raise ValueError("it has no size or no media type")
        seen = min(float(fields["seen"]), time.time())
        if not seen >= 0:  # nor NaN
            raise ValueError("it has no time")
        return Link(Descriptor(media_type, digest, size), seen)


@dataclass(frozen=True, slots=True)
class SharedStore:
    """The public store of a mirror, with the object store behind it."""

    blobs: SharedBlobs
    manifests: SharedManifests
    tags: SharedTags
    bucket: Bucket
    uploads: Uploads
    redirects: Redirects
    sweeper: Sweeper

    def problems(self) -> list[Problem]:
        troubles = [each.trouble for each in (self.uploads, self.redirects, self.sweeper)]
        lasting = (self.bucket.availability.problem, *(each.problem for each in troubles))
        return [each for each in lasting if each is not None]

    def prepared(self, config: ClusterConfig) -> Callable[[], None]:
        """Return the function that applies another configuration of the same store.

        Raises:
            UserError: the credentials cannot be used.
        """
        clients = opened_clients(config)

        def apply() -> None:
            if clients != self.bucket.clients:  # else their connections stay
                self.bucket.clients = clients
            self.bucket.patience = config.first_byte_timeout.seconds
            self.sweeper.max_bytes = config.max_size.bytes

        return apply


@asynccontextmanager
async def opened_objects(
    config: ClusterConfig,
    blobs: BlobStore,
    manifests: ManifestStore,
    tags: TagStore,
    directory: Path,
    uses: Uses,
    observer: Observer,
    secret: Secret | None = None,
) -> AsyncGenerator[SharedStore]:
    """Use the object store while the context is open.

    Args:
        blobs, manifests, tags: the public part of the local store.
        directory: the directory of the local store for the names of objects to upload.
        uses: what this mirror has used after a time, for eviction.
        observer: receives the events.
        secret: signs the links.

    Raises:
        UserError: the configuration or the credentials cannot be used.
    """
    bucket = opened_bucket(config, observer)
    redirects = Redirects(bucket)

    async def used(after: float) -> Collection[ObjectKey]:
        return {*await uses(after), *redirects.used_after(after)}

    waiting = Uploads(bucket, blobs, manifests, directory, observer)
    await waiting.start()
    shared = SharedStore(
        SharedBlobs(bucket, waiting),
        SharedManifests(manifests, bucket, waiting),
        SharedTags(tags, bucket, secret),
        bucket,
        waiting,
        redirects,
        Sweeper(bucket, config.max_size.bytes, used, observer),
    )
    tasks = [
        asyncio.create_task(shared.tags.run(), name="shared links"),
        asyncio.create_task(shared.sweeper.run(), name="sweep of objects"),
    ]
    try:
        yield shared
    finally:
        await shared.tags.settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await shared.manifests.close()
        await redirects.close()
        await waiting.close()
        await bucket.close()


def _lookup_type(body: bytes) -> str | None:
    """Return the media type that a manifest states, None if it is not a manifest."""
    try:
        return media_types(body)[0]
    except NotAManifest:
        return None


def link_path(name: str) -> str:
    """Return the path of a link; ``name`` is that of :func:`mirror.store.interface.link_name`."""
    registry, repository, reference, *accept = name.split(" ", 3)
    suffix = f"@{hashlib.sha256(accept[0].encode()).hexdigest()[:32]}" if accept else ""
    return f"{LINKS}{registry}/{repository}:{reference}{suffix}"


async def _discard(bucket: Bucket, key: ObjectKey) -> None:
    """Remove an object whose bytes are wrong, as well as possible."""
    _log.warning("%s has wrong bytes at %s, which is removed", bucket.name, path_of(key))
    with contextlib.suppress(TierError):
        await bucket.delete(path_of(key))
