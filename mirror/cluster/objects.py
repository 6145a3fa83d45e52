"""The object store, through ``obstore``: objects by path, each with its own time-outs.

A download that is slow or breaks off ends with an error: the caller gets the rest elsewhere.
"""

import asyncio
import configparser
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError

from mirror.cluster import connection
from mirror.cluster.object_errors import cause, lacks_bucket
from mirror.cluster.tier import Availability, Observer, TierError, TierMissError
from mirror.config.cluster import ClusterConfig
from mirror.store.interface import Chunk
from mirror.user_error import UserError

if TYPE_CHECKING:
    from obstore import Bytes, GetResult

#: Each chunk passes from a thread of obstore to the event loop.  With 1 MiB the first byte comes
#: 2.5 ms later, and the CPU is the same.
_CHUNK_BYTES: Final = 256 * 1024
PART_BYTES: Final = 8 * 1024 * 1024
_MOST_PARTS: Final = 9_000  # S3 allows 10,000
_PARTS_AT_ONCE: Final = 4
#: How long a chunk may take, and over how much waiting the speed is measured.
_CHUNK_SECONDS: Final = 2.0
_LEAST_RATE: Final = 2 * 1024 * 1024  # bytes per second
_PAGE: Final = 1_000  # objects of a listing
_ANSWER_SECONDS: Final = 10.0  # for requests that no client waits for
#: obstore's threads abort the process if it ends right after a request.
_END_SECONDS: Final = 0.2
_PROBED: Final = "probe"  # an object that does not exist
_REMEDY: Final = "check [cluster] objects and its credentials; each mirror goes on by itself"
_FAILURES: Final = (BaseError, OSError, ValueError)  # a TimeoutError is an OSError
_MISSES: Final = (NotFoundError, FileNotFoundError)
#: Other operations say nothing about downloads: a store that is full can still be read, and so can
#: one that has an object with an odd name in a listing, or credentials without a right.
_READING: Final = {"", "get", "head"}


TIER: Final = "objects"  # the label of metrics


@dataclass(frozen=True, slots=True)
class Listed:
    """An object: its ``size`` in bytes, and when it was written (Unix seconds)."""

    path: str
    size: int
    modified: float


class ObjectStream:
    """An object from ``offset`` on; ``total`` is its size in bytes."""

    ranged = False

    def __init__(self, bucket: "Bucket", result: "GetResult", offset: int) -> None:
        self.offset = offset
        self.total = result.meta["size"]
        self._bucket = bucket
        self._chunks = aiter(result.stream(min_chunk_size=_CHUNK_BYTES))
        self._next = self._ask()  # it arrives while the caller makes room for the blob
        self._waited = 0.0  # seconds, since the speed was looked at
        self._arrived = 0  # bytes in that time

    async def read(self) -> Chunk:
        """Return the next bytes, ``b""`` at the end.

        Raises:
            TierError: the store is slow, or broke off.
        """
        if self._waited >= _CHUNK_SECONDS:
            if self._arrived < _LEAST_RATE * self._waited:
                raise TierError(f"{self._bucket.name} is slow")
            self._waited, self._arrived = 0.0, 0
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with asyncio.timeout(_CHUNK_SECONDS):
                with self._bucket.watched(""):
                    chunk = memoryview(await self._next)
        except StopAsyncIteration:
            return b""
        except TimeoutError as error:  # a part of the chunk may have arrived
            raise TierError(f"{self._bucket.name} is slow") from error
        self._next = self._ask()
        self._waited += clock() - started
        self._arrived += len(chunk)
        self._bucket.observer.tier_bytes(TIER, "in", len(chunk))
        return chunk

    def close(self) -> None:
        """Give up what has not been read."""
        self._next.cancel()  # if it has failed, asyncio does not report it then

    def _ask(self) -> "asyncio.Future[Bytes]":
        # obstore begins at once, not when this is awaited.
        return cast("asyncio.Future[Bytes]", self._chunks.__anext__())


class Bucket:
    """One bucket, or the part of it below a prefix."""

    def __init__(
        self,
        name: str,
        clients: connection.Clients,
        patience: float,
        observer: Observer,
    ) -> None:
        """``patience``: seconds until the headers; ``name``: of the log and of messages."""
        self.name = name
        self.observer = observer
        self.patience = patience
        self.clients = clients
        told = partial(observer.tier_up, TIER)
        self.availability = Availability(name, _REMEDY, self._probe, told)

    @property
    def up(self) -> bool:
        """Whether the store may be asked."""
        return self.availability.up

    @asynccontextmanager
    async def open(self, path: str, start: int = 0) -> AsyncGenerator[ObjectStream]:
        """Open an object from byte ``start`` on.

        Raises:
            TierMissError: there is no such object.
            TierError: the store does not answer, or not in time.
        """
        # Without a range for all of it: an empty object has none.
        options: Any = {"range": {"offset": start}} if start else {}
        with self.watched("get"):
            async with asyncio.timeout(self.patience):
                result = await obstore.get_async(self.clients.reading, path, options=options)
        stream = ObjectStream(self, result, start)
        try:
            yield stream
        finally:
            stream.close()

    async def read(self, path: str, most: int) -> bytes:
        """Return a small object.

        Raises:
            TierMissError: there is no such object.
            TierError: the store does not answer, or not in time; or the object exceeds ``most``.
        """
        async with self.open(path) as stream:
            if stream.total > most:
                raise TierError(f"{self.name} has {stream.total} bytes at {path}")
            return b"".join([piece async for piece in _all(stream)])

    async def write(self, path: str, body: bytes, *, replace: bool = True) -> bool:
        """Write a small object, as a whole or not at all.

        Returns:
            whether it was written: False if it exists and ``replace`` is false.

        Raises:
            TierError: the store does not take it.
        """
        mode: Any = "overwrite" if replace else "create"
        writing = self.clients.writing
        with self.watched("put"):
            try:
                await obstore.put_async(writing, path, body, mode=mode, use_multipart=False)
            except AlreadyExistsError:
                return False
        self.observer.tier_bytes(TIER, "out", len(body))
        return True

    async def upload(self, path: str, pieces: AsyncIterator[bytes], size: int) -> None:
        """Write a large object in parts; it appears when ``pieces`` have ended.

        An exception of ``pieces`` abandons the upload and is raised again.  Do not cancel this:
        the parts would stay.

        Raises:
            TierError: the store does not take it.
        """
        with self.watched("put"):
            await obstore.put_async(
                self.clients.writing,
                path,
                pieces,
                use_multipart=True,
                chunk_size=max(PART_BYTES, -(-size // _MOST_PARTS)),
                max_concurrency=_PARTS_AT_ONCE,
            )
        self.observer.tier_bytes(TIER, "out", size)

    async def lookup(self, path: str, seconds: float = _ANSWER_SECONDS) -> "Listed | None":
        """Return the size and the age of an object, None if there is no such object.

        Raises:
            TierError: the store does not answer in so many seconds.
        """
        with contextlib.suppress(TierMissError), self.watched("head"):
            async with asyncio.timeout(seconds):
                return _listed(await obstore.head_async(self.clients.reading, path))
        return None

    async def address(self, path: str, seconds: float) -> str:
        """Return an address at which everybody can get an object for so many seconds.

        Raises:
            TierError: the credentials cannot sign it.
        """
        with self.watched("sign"):
            async with asyncio.timeout(self.patience):
                valid = timedelta(seconds=seconds)
                signing: Any = self.clients.signing
                return await obstore.sign_async(signing, "GET", path, valid)

    async def list(self, prefix: str) -> AsyncGenerator["Listed", None]:
        """Yield all objects whose path begins with ``prefix``, which ends with a slash.

        Raises:
            TierError: the store does not answer.
        """
        pages = aiter(obstore.list(self.clients.reading, prefix, chunk_size=_PAGE))
        while True:
            with self.watched("list"):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    page = await anext(pages, None)
            if page is None:
                return
            for each in page:
                yield _listed(each)

    async def delete(self, path: str) -> None:
        """Remove an object, if it exists.

        Raises:
            TierError: the store does not answer.
        """
        with contextlib.suppress(TierMissError), self.watched("delete"):
            async with asyncio.timeout(_ANSWER_SECONDS):
                await obstore.delete_async(self.clients.writing, path)

    async def close(self) -> None:
        """End the probe and the connections."""
        await self.availability.close()
        await asyncio.sleep(_END_SECONDS)

    @contextmanager
    def watched(self, operation: str) -> Iterator[None]:
        """Count a request to the store, or watch a part of one that is not counted ("").

        Raises:
            TierMissError, TierError: the request failed, or the store is not asked now.
        """
        if operation and not self.up:
            raise TierError(f"{self.name} does not answer (not asked again)")
        clock = asyncio.get_running_loop().time
        started, result = clock(), "error"
        try:
            yield
            result = "stored" if operation == "put" else "hit"
        except _MISSES as error:
            if operation == "put" or lacks_bucket(error):
                raise TierError(f"{self.name}: {cause(error)}") from error
            result = "miss"
            raise TierMissError(f"{self.name} does not have it") from error
        except _FAILURES as error:
            if operation in _READING:
                self.availability.failed()
            raise TierError(f"{self.name}: {cause(error)}") from error
        finally:
            if operation:
                self.observer.tier_answered(TIER, operation, result, clock() - started)

    async def _probe(self) -> str | None:
        """Return why the store cannot be asked, None if it can."""
        try:
            async with asyncio.timeout(self.patience):
                await obstore.head_async(self.clients.reading, _PROBED)
        except _MISSES:
            return None
        except _FAILURES as error:
            return cause(error)
        return None


def _listed(meta: Any) -> Listed:
    return Listed(meta["path"], meta["size"], meta["last_modified"].timestamp())


async def _all(stream: ObjectStream) -> AsyncIterator[Chunk]:
    while piece := await stream.read():
        yield piece


def opened_bucket(config: ClusterConfig, observer: Observer) -> Bucket:
    """Return the bucket of a configuration; it connects when it is first asked.

    Raises:
        UserError: the configuration or the credentials cannot be used.
    """
    return Bucket(
        config.objects, opened_clients(config), config.first_byte_timeout.seconds, observer
    )


def opened_clients(config: ClusterConfig) -> connection.Clients:
    """Return the clients of a configuration; they connect when they are first used.

    Raises:
        UserError: the configuration or the credentials cannot be used.
    """
    try:
        return connection.clients(config)
    except (*_FAILURES, configparser.Error) as error:
        raise UserError(f"[cluster] objects = {config.objects}: {cause(error)}") from error
