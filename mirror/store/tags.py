"""What each tag meant when upstream was last asked: what the mirror knows with upstream gone."""

import json
from dataclasses import dataclass

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.store.notes import Notes


@dataclass(frozen=True, slots=True)
class Link:
    """A tag's manifest, and when upstream said so (Unix seconds)."""

    descriptor: Descriptor
    seen: float


class Tags:
    """Links by name; the caller chooses names that tell upstream, repository and tag apart."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    async def lookup(self, name: str) -> Link | None:
        """What the tag last meant, or None; an index that cannot be read knows nothing."""
        record = await self._notes.lookup(name)
        return None if record is None else _decoded(record)

    async def put(self, name: str, link: Link) -> None:
        """Remember what upstream just said.

        Raises:
            IndexUnavailableError: it could not be written.
        """
        await self._notes.put(name, _encoded(link))

    async def forget(self, name: str) -> None:
        """Upstream has no such tag any more.

        Raises:
            IndexUnavailableError: it could not be written.
        """
        await self._notes.remove(name)


def _encoded(link: Link) -> bytes:
    descriptor = link.descriptor
    return json.dumps(
        {
            "mediaType": descriptor.media_type,
            "digest": str(descriptor.digest),
            "size": descriptor.size,
            "seen": link.seen,
        }
    ).encode()


def _decoded(record: bytes) -> Link:
    fields = json.loads(record)
    digest = Digest.parse(fields["digest"])
    return Link(Descriptor(fields["mediaType"], digest, fields["size"]), fields["seen"])
