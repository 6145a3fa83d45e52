"""Whether all of an image is in the store, so that a name for it leads somewhere."""

from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, NotAManifest, identify, index_entries
from mirror.operate.taking import store_blob, whole
from mirror.store.blobs import Blobs
from mirror.store.manifests import Manifests
from mirror.warm.plan import blobs_of, is_index

_MAX_DEPTH: Final = 3


class LackingError(Exception):
    """Something that an image needs is not there."""


async def completed(
    root: Descriptor, blobs: Blobs, manifests: Manifests, depth: int = _MAX_DEPTH
) -> tuple[Descriptor, int]:
    """Look an image through, and put right what was taken for something else while it was read.

    Of an index one image has to be there: layouts are often made for one platform.

    Returns:
        what its name means, and how many bytes its blobs have.

    Raises:
        LackingError: it is not whole.
        OSError, NoRoomError, IndexUnavailableError: the store cannot be used.
    """
    manifest = await manifests.lookup(root.digest)
    if manifest is None:
        raise LackingError(f"lacks its manifest {root.digest}")
    try:
        media_type = identify(manifest.body, root.media_type)
        if not is_index(media_type):
            size = await _blobs_there(manifest.body, blobs, manifests)
        elif depth:
            size = await _images_there(manifest.body, blobs, manifests, depth - 1)
        else:
            raise LackingError("is an index of indexes without end")
    except NotAManifest as error:
        raise LackingError(f"{root.digest}: {error}") from error
    return Descriptor(media_type, root.digest, len(manifest.body)), size


async def _images_there(index: bytes, blobs: Blobs, manifests: Manifests, depth: int) -> int:
    size, lacking = 0, LackingError("is an index of nothing")
    found = False
    for entry in index_entries(index):
        try:
            size += (await completed(entry.descriptor, blobs, manifests, depth))[1]
            found = True
        except LackingError as error:
            lacking = error
    if not found:
        raise lacking
    return size


async def _blobs_there(image: bytes, blobs: Blobs, manifests: Manifests) -> int:
    needed = blobs_of(image)
    for digest in needed:
        if not await _is_there(digest, blobs, manifests):
            raise LackingError(f"lacks {digest}; where a mirror downloads it, import it once more")
    return sum(blob.size for blob in needed.values())


async def _is_there(digest: Digest, blobs: Blobs, manifests: Manifests) -> bool:
    stored = await blobs.lookup(digest)
    if stored is not None:
        stored.close()
        return True
    manifest = await manifests.lookup(digest)  # it was taken for one, and is a blob here
    if manifest is None:
        return False
    await store_blob(blobs, digest, len(manifest.body), whole(manifest.body))
    return True
