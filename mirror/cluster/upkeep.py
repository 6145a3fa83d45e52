"""Operations on the object store for commands: names and removal of images, verification."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Final

from mirror.cluster.eviction import LINKS, MARKS
from mirror.cluster.objects import Bucket, Listed, opened_bucket
from mirror.cluster.shared import link_path
from mirror.cluster.tier import TierError, TierMissError
from mirror.cluster.uploads import path_of
from mirror.config.cluster import ClusterConfig
from mirror.oci.digest import Digest, InvalidDigest
from mirror.oci.image_glob import FullName, ImageGlob, is_glob
from mirror.oci.reference import InvalidName, InvalidReference, parse_reference, parse_repository
from mirror.store.local.entry import Verification
from mirror.store.local.layout import BLOBS, MANIFESTS, ObjectKey
from mirror.user_error import UserError

_AT_ONCE: Final = 4
_MOST_NAMES: Final = 100_000
_LIST_SECONDS: Final = 60.0  # a thousand names take a tenth of a second
_REGISTRY: Final = re.compile(r"[a-z0-9.-]+(?::[0-9]+)?", re.ASCII)


class NoEvents:
    """Counts nothing: a command has no metrics."""

    def tier_answered(self, tier: str, operation: str, result: str, seconds: float) -> None: ...

    def tier_bytes(self, tier: str, direction: str, count: int) -> None: ...

    def tier_up(self, tier: str, up: bool) -> None: ...

    def tier_holds(self, tier: str, size: int) -> None: ...

    def tier_evicted(self, tier: str, objects: int, size: int) -> None: ...

    def uploads_waiting(self, change: int) -> None: ...

    def upload_ended(self, result: str) -> None: ...


async def remove(config: ClusterConfig, keys: Iterable[ObjectKey], links: Iterable[str]) -> None:
    """Remove public objects and links from the object store.

    Raises:
        UserError: not all of them could be removed.
    """
    paths = [path_of(key) for key in keys]
    bucket = opened_bucket(config, NoEvents())
    try:
        for path in (*map(link_path, links), *paths, *(f"{MARKS}{path}" for path in paths)):
            await bucket.delete(path)
    except TierError as error:
        raise UserError(f"not dropped from the object store, nor here: {error}") from error
    finally:
        await bucket.close()


@dataclass(slots=True)
class SharedNames:
    """Names of images in the object store, with the times of writing (Unix seconds).

    Unlike the link itself, the name of a link is not signed.  ``whole``: all names were read.
    """

    written: dict[FullName, float] = field(default_factory=dict)
    whole: bool = True


async def names(config: ClusterConfig, globs: Sequence[ImageGlob]) -> SharedNames:
    """Return the names of the images that match a glob; without globs, of all.

    Raises:
        UserError: the object store does not answer.
    """
    found = SharedNames()
    bucket = opened_bucket(config, NoEvents())
    try:
        async with asyncio.timeout(_LIST_SECONDS):
            for prefix in {_prefix(each) for each in globs} if globs else {LINKS}:
                async for each in bucket.list(prefix):
                    name = _named(each.path)
                    if name is None or (globs and not any(glob.matches(name) for glob in globs)):
                        continue
                    if len(found.written) >= _MOST_NAMES:
                        found.whole = False
                        return found
                    found.written[name] = max(each.modified, found.written.get(name, 0.0))
    except TimeoutError:
        found.whole = False
    except TierError as error:
        raise UserError(f"the object store cannot be listed: {error}") from error
    finally:
        await bucket.close()
    return found


def _prefix(glob: ImageGlob) -> str:
    """Return the path below which all links of a glob are."""
    parts = [glob.registry, *glob.repository.split("/")[:-1]]
    return (
        f"{LINKS}{''.join(f'{part}/' for part in takewhile(lambda part: not is_glob(part), parts))}"
    )


def _named(path: str) -> FullName | None:
    """Return the image of a link's path, None if it is none."""
    registry, _, rest = path.removeprefix(LINKS).partition("/")
    repository, _, reference = rest.partition("@")[0].partition(":")
    try:
        parse_repository(repository)
        parse_reference(reference)
    except (InvalidName, InvalidReference):
        return None
    return FullName(registry, repository, reference) if _REGISTRY.fullmatch(registry) else None


async def verify(
    config: ClusterConfig, expected: Callable[[int], None], advanced: Callable[[int], None]
) -> Verification:
    """Hash all blobs and manifests of the object store, and remove damaged ones.

    Args:
        config: the object store.
        expected: called once with the total number of bytes.
        advanced: called with the bytes of each finished object.

    Raises:
        UserError: not all of them could be read.
    """
    result = Verification()
    bucket = opened_bucket(config, NoEvents())
    try:
        expected(sum([each.size async for _, each in _objects(bucket)]))
        listing, turn = _objects(bucket), asyncio.Lock()

        async def work() -> None:
            while True:
                async with turn:
                    found = await anext(listing, None)
                if found is None:
                    return
                key, each = found
                await _verify(bucket, key, each.size, result)
                advanced(each.size)

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(work())
    except* TierError as errors:
        raise UserError(f"not all objects were verified: {errors.exceptions[0]}") from errors
    finally:
        await bucket.close()
    return result


async def _objects(bucket: Bucket) -> AsyncIterator[tuple[ObjectKey, Listed]]:
    """Yield all blobs and manifests; not what no mirror has written."""
    for kind in (BLOBS, MANIFESTS):
        async for each in bucket.list(f"{kind}/"):
            algorithm, _, number = each.path.removeprefix(f"{kind}/").partition("/")
            with contextlib.suppress(InvalidDigest):
                digest = Digest.parse(f"{algorithm}:{number.rpartition('/')[2]}")
                key = ObjectKey(kind, digest)
                if path_of(key) == each.path:
                    yield key, each


async def _verify(bucket: Bucket, key: ObjectKey, size: int, result: Verification) -> None:
    hasher = key.digest.hasher()
    try:
        async with bucket.open(path_of(key)) as stream:
            while piece := await stream.read():
                hasher.update(piece)
    except TierMissError:  # evicted in the meantime
        return
    result.objects += 1
    result.bytes += size
    if not key.digest.matches(hasher):
        result.damaged.append(key)
        await bucket.delete(path_of(key))
