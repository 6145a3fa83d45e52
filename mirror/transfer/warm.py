"""Pulls images into the cache, for ``mirror warm``."""

from collections.abc import Iterable, Sequence

from mirror.admin.client import reached
from mirror.config.model import Config
from mirror.oci.image_name import ImageName
from mirror.oci.platform import Platform
from mirror.registry_client.client import MirrorClient
from mirror.registry_client.pull import Pulled, Puller, Watcher
from mirror.server.store import cache_limits
from mirror.server.warming import located_all
from mirror.store.local.layout import left_in
from mirror.ui.formatting import plain_size


async def warm(
    config: Config,
    images: Iterable[ImageName],
    platforms: Sequence[Platform],
    parallel: int,
    watcher: Watcher,
) -> list[Pulled]:
    """Pull images into the cache, each once, with ``parallel`` blobs at once.

    ``platforms`` select from an index; none select all.  In the result, images that could not be
    located come last.

    Raises:
        UserError: no mirror can be reached or started.
    """
    wanted, failed = located_all(config, images)
    if not wanted:
        return failed
    async with reached(config) as mirror:
        client = MirrorClient(mirror.sessions)
        left_of = left_in(config.cache.directory.absolute())
        puller = Puller(client, left_of, watcher, parallel, attached=True)
        return [*await puller.pull(wanted, platforms), *failed]


def excess(config: Config, result: Iterable[Pulled]) -> str:
    """A warning if the images together are larger than the cache, else an empty string."""
    blobs = {
        digest: blob.size
        for pulled in result
        if pulled.plan is not None
        for digest, blob in pulled.plan.blobs.items()
    }
    size, limit = sum(blobs.values()), cache_limits(config).max_bytes
    if size <= limit:
        return ""
    return (
        f"the images have {plain_size(size)} in total, and the cache holds {plain_size(limit)}: "
        "the least recently used are evicted; raise [cache] max_size"
    )
