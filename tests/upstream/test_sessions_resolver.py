"""Names that lead from a public registry into a private network."""

import pytest
from aiohttp.abc import AbstractResolver

from mirror.upstream.addresses import PrivateAddressError
from mirror.upstream.sessions import GuardedResolver


class Names(AbstractResolver):
    """A name service with these names in it."""

    def __init__(self, **addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host, port=0, family=0):
        found = self.addresses[host].split()
        return [{"hostname": host, "host": each, "port": port} for each in found]

    async def close(self):
        self.addresses.clear()


PUBLIC, PUBLIC_6, PRIVATE = "93.184.216.34", "2606:2800:220:1::1", "10.1.2.3"


async def hosts(guarded: GuardedResolver, name: str) -> list[str]:
    return [found["host"] for found in await guarded.resolve(name, 443)]


async def test_a_public_registry_reaches_public_addresses_only():
    names = Names(hub=PUBLIC, cdn=f"{PUBLIC_6} {PRIVATE}", inside=PRIVATE)
    guarded = GuardedResolver("hub", names)
    assert await hosts(guarded, "hub") == [PUBLIC]
    assert await hosts(guarded, "cdn") == [PUBLIC_6]
    with pytest.raises(PrivateAddressError):
        await guarded.resolve("inside")
    with pytest.raises(PrivateAddressError):
        guarded.check(PRIVATE)
    for numeric in ("2130706433", "0x7f.1", "10.0.0.1.", "localhost"):
        with pytest.raises(PrivateAddressError):
            guarded.check(numeric)
    guarded.check(PUBLIC)
    await guarded.close()
    assert names.addresses == {}


async def test_a_registry_in_the_office_reaches_its_storage_there():
    guarded = GuardedResolver("hub", Names(hub=PRIVATE, storage=PRIVATE))
    assert await hosts(guarded, "hub") == [PRIVATE]
    assert await hosts(guarded, "storage") == [PRIVATE]
    guarded.check(PRIVATE)


async def test_a_registry_without_a_name_is_known_by_its_address():
    GuardedResolver(PRIVATE).check("10.9.9.9")
