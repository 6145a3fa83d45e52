"""Images pulled into the cache by command."""

from collections.abc import Iterable, Sequence

from rich.filesize import decimal

from mirror.admin.connect import reached
from mirror.config.model import Config
from mirror.oci.image_name import ImageName
from mirror.oci.platform import Platform
from mirror.registry_client.client import MirrorClient
from mirror.registry_client.pull import Pulled, Puller, Watcher
from mirror.server.images import located_all
from mirror.server.store import cache_limits
from mirror.store.local.layout import left_in


async def warm(
    config: Config,
    images: Iterable[ImageName],
    platforms: Sequence[Platform],
    parallel: int,
    watcher: Watcher,
) -> list[Pulled]:
    """Pull images into the cache, each once.

    Args:
        config: the mirror's.
        images: their names.
        platforms: which of an index's images; all that it names where none is given.
        parallel: how many blobs at once.
        watcher: is told how far it has come.

    Returns:
        how it went with each, those that could not be asked for last.

    Raises:
        OperateError: there is no mirror to ask.
    """
    wanted, failed = located_all(config, images)
    if not wanted:
        return failed
    async with reached(config) as mirror:
        client = MirrorClient(mirror.sessions)
        puller = Puller(client, left_in(config.cache.directory.absolute()), watcher, parallel)
        return [*await puller.pull(wanted, platforms), *failed]


def excess(config: Config, result: Iterable[Pulled]) -> str:
    """What to say where images have more bytes together than the cache may hold; else empty."""
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
        f"the images have {decimal(size)} together and the cache holds {decimal(limit)}: "
        "what was used longest ago is gone again; raise [cache] max_size"
    )
