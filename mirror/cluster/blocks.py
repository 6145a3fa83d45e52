"""The blocks that operators set by command, on all replicas.

A change is posted to the replicas that answer.  For the others, all records are also in one place
that all replicas use: the object store, or Redis without one.  That place is a hint: each replica
keeps its list in its cache directory, adds the signed records that it finds, and writes what is
missing there.  Of two records of one target the later one holds, on all replicas.
"""

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final, Protocol

from mirror.api.v1 import REPLICA_BLOCKS
from mirror.cluster.objects import Bucket
from mirror.cluster.peers import PeerError, Peers
from mirror.cluster.secret import Secret
from mirror.cluster.state import State, StateDownError
from mirror.cluster.tier import TierError, TierMissError
from mirror.oci.digest import Digest
from mirror.oci.errors import ErrorCode, OciError
from mirror.oci.image_glob import ImageGlob, Naming
from mirror.policy.blocks import Block, parse_target
from mirror.store.interface import IndexUnavailableError
from mirror.store.metadata.operator_files import BlockFile

_NAME: Final = "blocks"  # in the place
_LOOK_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 5.0
_KEPT_SECONDS: Final = 90 * 86_400  # in Redis; a replica writes them again
_MOST_BYTES: Final = 16 * 1024 * 1024
#: Digests, and layers, of one record that are shared: each replica adds those that it has cached.
_MOST_PARTS: Final = 1_000
_FAILURES: Final = (TierError, OSError)  # a TimeoutError is an OSError

_log = logging.getLogger(__name__)

#: Returns the manifests and configurations of a target in the local cache, and its layers.
Parts = Callable[[Digest | ImageGlob], Awaitable[tuple[frozenset[Digest], frozenset[Digest]]]]


class Place(Protocol):
    """Holds the records for replicas that are down; both methods raise TierError."""

    name: str

    async def read(self) -> str | None: ...

    async def write(self, text: str) -> None: ...


class BucketPlace:
    """The object store."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.name = bucket.name

    async def read(self) -> str | None:
        with contextlib.suppress(TierMissError):
            return (await self._bucket.read(_NAME, _MOST_BYTES)).decode(errors="replace")
        return None

    async def write(self, text: str) -> None:
        await self._bucket.write(_NAME, text.encode())


class StatePlace:
    """Redis."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.name = "redis"

    async def read(self) -> str | None:
        script = """
        if redis.call('STRLEN', KEYS[1]) > tonumber(ARGV[1]) then return '' end
        return redis.call('GET', KEYS[1])
        """
        found = await self._run("get", script, _MOST_BYTES)
        return found.decode(errors="replace") if isinstance(found, bytes) else None

    async def write(self, text: str) -> None:
        script = "return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])"
        await self._run("put", script, text, _KEPT_SECONDS)

    async def _run(self, operation: str, script: str, *arguments: str | int) -> Any:
        try:
            return await self._state.run(operation, script, _NAME, *arguments)
        except StateDownError as error:
            raise TierError("redis does not answer") from error


class SharedBlocks:
    """The blocks of this replica, and what the others are told of them."""

    def __init__(
        self,
        file: BlockFile,
        parts: Parts,
        secret: Secret,
        place: Place | None,
        peers: Peers | None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._file = file
        self._parts = parts
        self._secret = secret
        self._place = place
        self._peers = peers
        self._sleep = sleep

    async def share(self, targets: Sequence[str]) -> Mapping[str, Any]:
        """Tell the other replicas of the records of some targets.

        Returns JSON: ``here`` is this replica, ``replicas`` are the others, each with the ``error``
        that it met (None: it has the records).  ``place`` is where replicas that are down find them
        (None: nowhere), ``place_error`` why they are not there yet.
        """
        records = [each for each in await self._records() if each.target in targets]
        peers = self._peers
        others = [] if peers is None else peers.others()
        error, *errors = await asyncio.gather(
            self._placed(), *(self._tell(address, records) for address in others)
        )
        return {
            "here": "" if peers is None else peers.own,
            "replicas": [
                {"replica": address, "error": said}
                for address, said in zip(others, errors, strict=True)
            ],
            "place": None if self._place is None else self._place.name,
            "place_error": error,
        }

    async def receive(self, members: Mapping[str, Any]) -> Any:
        """Add the records that another replica has posted.

        Raises:
            OciError: they are none (400), or the list cannot be written (503).
        """
        try:
            await self._add(_records_of(members))
        except (ValueError, LookupError, TypeError) as error:
            text = f"no records of blocks: {error}; have all replicas the same version?"
            raise OciError(ErrorCode.UNKNOWN, text, status=400) from error
        except OSError as error:
            text = f"the list of blocks cannot be written: {error.strerror}"
            raise OciError(ErrorCode.UNAVAILABLE, text, status=503) from error
        return {}

    async def run(self) -> None:
        """Compare the list with the place regularly; run it in the background."""
        while self._place is not None:
            await self._sleep(_LOOK_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311
            await self._placed()

    async def refresh(self) -> None:
        """Add the records of the place, as well as possible."""
        with contextlib.suppress(*_FAILURES):
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._found()

    async def _placed(self) -> str | None:
        """Add the records of the place, and write what is missing there; return what failed."""
        if self._place is None:
            return None
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                said = await self._found()
                records = await self._records()
                text = _encoded(records)
                text = f"{self._secret.sign('blocks', text)}\n{text}"
                if len(text) > _MOST_BYTES:
                    raise TierError(f"{len(records)} blocks are too many for {self._place.name}")
                if records and text != said:
                    await self._place.write(text)
        except _FAILURES as error:
            _log.debug("blocks are not shared now: %s", error)
            return str(error) or f"{self._place.name} does not answer"
        return None

    async def _found(self) -> str | None:
        """Add the records of the place; return what the place holds."""
        said = None if self._place is None else await self._place.read()
        if said is None:
            return None
        signature, _, text = said.partition("\n")
        if not self._secret.knows(signature, "blocks", text):
            return said  # written again, signed
        with contextlib.suppress(ValueError, LookupError, TypeError):  # of another version
            await self._add(_records_of(json.loads(text)))
        return said

    async def _tell(self, address: str, records: Iterable[Block]) -> str | None:
        """Post records to a replica, one by one since each may be large; return what failed."""
        assert self._peers is not None, "there are addresses"
        try:
            for each in records:
                await self._peers.ask(
                    address, REPLICA_BLOCKS, _ANSWER_SECONDS, _encoded([each]).encode()
                )
        except PeerError as error:
            return str(error)
        return None

    async def _records(self) -> tuple[Block, ...]:
        return await asyncio.to_thread(self._file.records)

    async def _add(self, records: Iterable[Block]) -> None:
        """Add the records that tell this replica something new.

        Raises:
            OSError: the list cannot be read or written.
        """
        known = {each.target: each for each in await self._records()}
        news = []
        for each in records:
            former = known.get(each.target)
            now = each if former is None else former.merged(each)
            if now == former:
                continue
            if former is None or former.since != now.since:
                now = await self._completed(now)
                said = "unblocked" if now.lifted else "blocked"
                fields = {"target": now.target, "by": now.by, "reason": now.reason}
                _log.warning("%s on another replica", said, extra=fields)
            news.append(now)
        if news:
            await asyncio.to_thread(self._file.merge, news)

    async def _completed(self, block: Block) -> Block:
        """Return a block that covers what it means in the local cache, too."""
        with contextlib.suppress(IndexUnavailableError, OSError):
            if not block.lifted:
                digests, layers = await self._parts(parse_target(block.target, Naming("")))
                return replace(block, digests=block.digests | digests, layers=block.layers | layers)
        return block


def _encoded(records: Iterable[Block]) -> str:
    """Return records as one line of JSON, the same for equal records."""
    documents = [each.document() for each in sorted(records, key=lambda each: each.target)]
    for each in documents:
        for parts in ("digests", "layers"):
            each[parts] = each[parts][:_MOST_PARTS]
    return json.dumps({"records": documents}, sort_keys=True)


def _records_of(members: Mapping[str, Any]) -> list[Block]:
    """Return the records of a JSON object.

    Raises:
        ValueError, LookupError, TypeError: it is of another form.
    """
    return list(map(Block.of_document, members["records"]))


def opened_place(bucket: Bucket | None, state: State | None) -> Place | None:
    """Return the place for replicas that are down: the object store before Redis."""
    if bucket is not None:
        return BucketPlace(bucket)
    return None if state is None else StatePlace(state)


@asynccontextmanager
async def opened_blocks(
    file: BlockFile,
    parts: Parts,
    secret: Secret,
    place: Place | None,
    peers: Peers | None,
    *,
    first: bool,
) -> AsyncIterator[SharedBlocks]:
    """Share blocks while the context is open; the list has those of the place from the start.

    Of several processes, only the ``first`` compares the list with the place.
    """
    blocks = SharedBlocks(file, parts, secret, place, peers)
    await blocks.refresh()
    tasks = [asyncio.create_task(blocks.run(), name="blocks of replicas")] if first else []
    try:
        yield blocks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
