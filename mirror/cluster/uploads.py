"""Uploads of blobs and manifests from the local store to the object store, in the background.

An object to upload has an empty file in a directory of the cache, so that it is not forgotten if
the process ends.  Uploads never delay a client: they read what the store has adopted, two at a
time.  Only public objects are uploaded, since the public part of the store finds no others.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from mirror.cluster.objects import PART_BYTES, Bucket
from mirror.cluster.tier import Observer, TierError
from mirror.descriptor import Descriptor, FileRange
from mirror.oci.digest import Digest
from mirror.store.interface import BlobStore, ManifestStore
from mirror.store.local.layout import ObjectKey
from mirror.threads import Threads, run_in
from mirror.trouble import Problem, Trouble

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 2
_MOST_WAITING: Final = 10_000
_FIRST_PAUSE_SECONDS: Final = 1.0
_MOST_PAUSE_SECONDS: Final = 300.0
#: After this long an object is given up, which costs another mirror a download from upstream.
_MOST_AGE_SECONDS: Final = 86_400.0
#: How long the end of the process waits for what is left to upload; without it, the others would
#: download that from upstream while this mirror restarts.
_REST_SECONDS: Final = 3.0
#: How long it waits for the object store to forget the parts of an upload.
_ABANDON_SECONDS: Final = 5.0
_READ_BYTES: Final = 1024 * 1024
_GONE: Final = "it is no longer in the cache"
_REMEDY: Final = (
    "check [cluster] objects, the rights of its credentials and its space; the mirror tries again"
)


class _UnusableError(Exception):
    """The local object cannot be uploaded: it was evicted, or its file is damaged."""


class _StoppedError(Exception):
    """The process ends."""


def path_of(key: ObjectKey) -> str:
    """Return the path of a blob or manifest in the object store."""
    digest = key.digest
    return f"{key.kind}/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


class Uploads:
    """The blobs and manifests to upload, oldest first."""

    def __init__(
        self,
        bucket: Bucket,
        blobs: BlobStore,
        manifests: ManifestStore,
        directory: Path,
        observer: Observer,
    ) -> None:
        """Upload what ``blobs`` and ``manifests`` have; ``directory`` holds the waiting names."""
        self._bucket = bucket
        self._blobs = blobs
        self._manifests = manifests
        self._directory = directory
        self._observer = observer
        self._waiting: dict[ObjectKey, float] = {}  # with the Unix time at which each was added
        self._line: asyncio.Queue[ObjectKey] = asyncio.Queue()
        # One thread: the file of an object is made before it is removed.
        self._files = Threads(1, "uploads")
        self._loops: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[str]] = set()
        self._stopped = False
        self.trouble = Trouble()

    async def start(self) -> None:
        """Begin with what an earlier process has left."""
        try:
            left = await run_in(self._files, lambda: list(_left(self._directory)))
        except OSError as error:
            _log.warning("%s cannot be used: %s", self._directory, error.strerror)
            left = []
        for key, added in sorted(left, key=lambda each: each[1]):
            self._enter(key, added)
        self._loops = [asyncio.create_task(self._work(), name="uploads") for _ in range(_AT_ONCE)]

    def add(self, key: ObjectKey) -> None:
        """Upload what the public store has; too many objects are dropped."""
        known = self._stopped or key in self._waiting
        if not known and self._enter(key, time.time()):
            self._files.submit(_mark, self._directory / str(key))

    async def close(self) -> None:
        """Upload what can be uploaded within seconds; the next start begins with the rest."""
        if self._bucket.up and self.trouble.problem is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REST_SECONDS):
                    await self._line.join()
        self._stopped = True
        for each in self._loops:
            each.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self._sending:
            _, hanging = await asyncio.wait(self._sending, timeout=_ABANDON_SECONDS)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)
        self._files.shutdown()

    def _enter(self, key: ObjectKey, added: float) -> bool:
        if len(self._waiting) >= _MOST_WAITING:
            self._observer.upload_ended("dropped")
            return False
        self._waiting[key] = added
        self._observer.uploads_waiting(+1)
        self._line.put_nowait(key)
        return True

    async def _work(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            key = await self._line.get()
            await self._bucket.availability.wait()
            sending = asyncio.create_task(self._upload(key), name=f"upload {key}")
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
            # A cancelled upload would leave its parts in the object store.
            result = await asyncio.shield(sending)
            self._observer.upload_ended(result)
            if result == "failed" and time.time() - self._waiting[key] < _MOST_AGE_SECONDS:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MOST_PAUSE_SECONDS)
                self._line.put_nowait(key)
            else:
                pause = _FIRST_PAUSE_SECONDS
                del self._waiting[key]
                self._observer.uploads_waiting(-1)
            self._line.task_done()

    async def _upload(self, key: ObjectKey) -> str:
        """Upload an object unless another process of this mirror does; return the result."""
        file = self._directory / str(key)
        try:
            claim = await run_in(self._files, lambda: _claimed(file))
            if claim is None:
                return "present"
            try:
                result = await self._sent(key)
                await run_in(self._files, lambda: file.unlink(missing_ok=True))
            finally:
                claim.close()
        except _StoppedError:
            return "failed"
        except _UnusableError as error:
            _log.debug("%s is not uploaded: %s", key, error)
            with contextlib.suppress(OSError):
                await run_in(self._files, lambda: file.unlink(missing_ok=True))
            return "lost"
        except (TierError, OSError) as error:
            cause = str(error).removeprefix(f"{self._bucket.name}: ")
            problem = Problem(f"{self._bucket.name} takes no uploads", cause, _REMEDY)
            if self.trouble.met(problem):
                _log.warning("%s takes no uploads: %s; %s", self._bucket.name, cause, _REMEDY)
            return "failed"
        if (seconds := self.trouble.over()) is not None:
            _log.warning("%s takes uploads again, after %.0f s", self._bucket.name, seconds)
        return result

    async def _sent(self, key: ObjectKey) -> str:
        path = path_of(key)
        if key.is_manifest:
            manifest = await self._manifests.lookup(key.digest)
            if manifest is None:
                raise _UnusableError(_GONE)
            return await self._written(path, manifest.body)
        stored = await self._blobs.lookup(key.digest)
        if stored is None:
            raise _UnusableError(_GONE)
        try:
            pieces = self._pieces(stored, key.digest)
            if stored.length <= PART_BYTES:
                return await self._written(path, b"".join([piece async for piece in pieces]))
            there = await self._bucket.lookup(path)
            if there is not None and there.size == stored.length:
                return "present"
            await self._bucket.upload(path, pieces, stored.length)
            return "stored"
        finally:
            stored.close()

    async def _written(self, path: str, body: bytes) -> str:
        return "stored" if await self._bucket.write(path, body, replace=False) else "present"

    async def _pieces(self, stored: FileRange, digest: Digest) -> AsyncIterator[bytes]:
        """Yield a blob; its last piece only if all of them hash to the digest."""
        hasher = digest.hasher()

        def read(position: int) -> bytes:
            piece = stored.part(position, min(position + _READ_BYTES, stored.length)).read()
            hasher.update(piece)
            return piece

        for position in range(0, max(stored.length, 1), _READ_BYTES):
            if self._stopped:
                raise _StoppedError
            piece = await asyncio.to_thread(read, position)
            if position + _READ_BYTES >= stored.length and not digest.matches(hasher):
                raise _UnusableError("its file is damaged")
            yield piece


def _mark(file: Path) -> None:
    with contextlib.suppress(OSError):  # it is uploaded all the same, unless the process ends first
        file.touch(mode=0o600)


def _left(directory: Path) -> list[tuple[ObjectKey, float]]:
    directory.mkdir(mode=0o700, exist_ok=True)
    found: list[tuple[ObjectKey, float]] = []
    for entry in os.scandir(directory):
        with contextlib.suppress(ValueError, FileNotFoundError):
            key = ObjectKey.parse(entry.name)
            found.append((key, entry.stat().st_mtime))
    return found


def _claimed(file: Path) -> Descriptor | None:
    """Lock the file of an object; None if another process uploads it, or has uploaded it."""
    claim = Descriptor(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    try:
        fcntl.flock(claim.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        claim.close()
        return None
    except OSError:
        claim.close()
        raise
    if os.fstat(claim.fileno()).st_nlink:
        return claim
    claim.close()
    return None
