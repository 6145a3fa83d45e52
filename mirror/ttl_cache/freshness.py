"""Which tags upstream was asked about so recently that it need not be asked again."""

import time

from mirror.oci.manifest import Descriptor, decode_descriptor, encode_descriptor
from mirror.ttl_cache.backend import Backend


class Freshness:
    """Descriptors by name, while they are fresh (RFC 9111, 4.2)."""

    def __init__(self, backend: Backend, max_age: float) -> None:
        """Hold what is put for ``max_age`` seconds."""
        self._backend = backend
        self._max_age = max_age

    async def lookup(self, name: str) -> tuple[Descriptor, float] | None:
        """What the name means, if that is still fresh, and until when (monotonic seconds) it is."""
        record = await self._backend.get(f"fresh {name}")
        if record is None:
            return None
        until, _, descriptor = record.partition(b" ")
        return decode_descriptor(descriptor), float(until)

    async def put(self, name: str, descriptor: Descriptor) -> None:
        """Upstream has just said so."""
        until = f"{time.monotonic() + self._max_age} ".encode()
        await self._backend.set(
            f"fresh {name}", until + encode_descriptor(descriptor), self._max_age
        )

    async def forget(self, name: str) -> None:
        """Ask upstream next time."""
        await self._backend.delete(f"fresh {name}")
