"""Fresh tags: upstream was asked so recently that it need not be asked again."""

import time

from mirror.oci.manifest import Descriptor, decode_descriptor, encode_descriptor
from mirror.ttl_cache.backend import Backend


class Freshness:
    """Descriptors of tags by name, while they are fresh (RFC 9111, 4.2)."""

    def __init__(self, backend: Backend, max_age: float) -> None:
        """Tags are fresh for ``max_age`` seconds."""
        self._backend = backend
        self._max_age = max_age

    async def lookup(self, name: str) -> tuple[Descriptor, float] | None:
        """The descriptor of a fresh tag and the end of its freshness (monotonic seconds)."""
        record = await self._backend.get(f"fresh {name}")
        if record is None:
            return None
        until, _, descriptor = record.partition(b" ")
        return decode_descriptor(descriptor), float(until)

    async def put(self, name: str, descriptor: Descriptor) -> None:
        """Make a tag fresh: upstream has just sent ``descriptor``."""
        until = f"{time.monotonic() + self._max_age} ".encode()
        await self._backend.set(
            f"fresh {name}", until + encode_descriptor(descriptor), self._max_age
        )

    async def forget(self, name: str) -> None:
        """Make a tag not fresh, so that the next request asks upstream."""
        await self._backend.delete(f"fresh {name}")
