"""Names that lead from a public registry into a private network."""

import pytest

from mirror.upstream.resolver import GuardedResolver, PrivateAddressError, is_private


class Names:
    """A name service with these names in it."""

    def __init__(self, **addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host, port=0, family=0):
        found = self.addresses[host].split()
        return [{"hostname": host, "host": each, "port": port} for each in found]

    async def close(self):
        self.addresses.clear()


PUBLIC, PUBLIC_6, PRIVATE = "93.184.216.34", "2606:2800:220:1::1", "10.1.2.3"


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "0.0.0.0", "::1",
     "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "224.0.0.1"],
)  # fmt: skip
def test_private_addresses(address):
    assert is_private(address)


@pytest.mark.parametrize("address", [PUBLIC, PUBLIC_6, "registry.example.com", ""])
def test_what_is_no_private_address(address):
    assert not is_private(address)


async def hosts(guarded: GuardedResolver, name: str) -> list[str]:
    return [found["host"] for found in await guarded.resolve(name, 443)]


async def test_a_public_registry_reaches_public_addresses_only():
    names = Names(hub=PUBLIC, cdn=f"{PUBLIC_6} {PRIVATE}", inside=PRIVATE, proxy=PRIVATE)
    guarded = GuardedResolver("hub", ["proxy"], names)
    assert await hosts(guarded, "hub") == [PUBLIC]
    assert await hosts(guarded, "cdn") == [PUBLIC_6]
    assert await hosts(guarded, "proxy") == [PRIVATE]
    with pytest.raises(PrivateAddressError):
        await guarded.resolve("inside")
    with pytest.raises(PrivateAddressError):
        guarded.check(PRIVATE)
    guarded.check(PUBLIC)
    await guarded.close()
    assert names.addresses == {}


async def test_a_registry_in_the_office_reaches_its_storage_there():
    guarded = GuardedResolver("hub", [], Names(hub=PRIVATE, storage=PRIVATE))
    assert await hosts(guarded, "hub") == [PRIVATE]
    assert await hosts(guarded, "storage") == [PRIVATE]
    guarded.check(PRIVATE)


async def test_a_registry_without_a_name_is_known_by_its_address():
    GuardedResolver(PRIVATE).check("10.9.9.9")
