"""Fair shares, whatever is shared and however much is wanted at once."""

import asyncio

import pytest

from mirror.shares import FullError, Limits, Shares, asking, client_name


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Line:
    """Clients that take, and give back when told."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self.got: list[str] = []

    def come(self, client: str, amount: int = 1, upstream: str = "hub"):
        ending = asyncio.Event()
        return asyncio.create_task(self._run(client, amount, upstream, ending)), ending

    async def _run(self, client: str, amount: int, upstream: str, ending: asyncio.Event) -> None:
        with asking(client):
            hold = await self._shares.hold(upstream, amount)
        self.got.append(client)
        await ending.wait()
        hold.release()


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:ffff::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "operator"),
        ("unknown", "unknown"),
        ("no:address", "no:address"),
    ],
)
def test_who_is_one_client(address: str, name: str):
    assert client_name(address) == name


async def test_who_waits_is_served_in_turns():
    line = Line(Shares("thing", Limits(1, 100, 10.0)))
    came = [line.come(client) for client in "aaaabbc"]
    await settled()
    for _, ending in came:
        ending.set()
    await asyncio.gather(*(task for task, _ in came))
    assert line.got == ["a", "a", "b", "c", "a", "b", "a"]


async def test_a_large_amount_is_not_passed_by_small_ones_for_ever():
    line = Line(Shares("thing", Limits(10, 100, 10.0)))
    first, large = line.come("a", 5), line.come("b", 8)
    await settled()
    small = line.come("c", 1)
    await settled()
    assert line.got == ["a"]
    first[1].set()
    await settled()
    assert line.got == ["a", "b", "c"]
    for task, ending in (large, small):
        ending.set()
        await task


async def test_more_than_a_share_can_be_had_alone_and_no_more_than_once():
    limits = Limits(10, 100, 0.01, client_share=0.5)
    shares = Shares("thing", limits)
    with asking("a"):
        hold = await shares.hold("hub", 12)
        with pytest.raises(FullError, match="a holds 12 of its share of 5"):
            await shares.hold("hub", 1)
    hold.release()


async def test_what_nothing_refers_to_is_given_back_from_a_thread_too():
    shares = Shares("thing", Limits(10, 100, 10.0))
    holds = [await shares.hold("hub", 10)]
    waiting = asyncio.create_task(shares.hold("hub", 10))
    await settled()
    await asyncio.to_thread(holds.clear)
    (await waiting).release()
    assert shares.taken == 0


async def test_growing_never_waits():
    shares = Shares("thing", Limits(10, 100, 10.0))
    hold, other = await shares.hold("hub", 4), await shares.hold("hub", 4)
    with pytest.raises(FullError, match="no room for a larger thing"):
        hold.grow(3)
    other.shrink(1)
    hold.grow(3)
    assert shares.taken == 8
    for each in (hold, other):
        each.release()
    assert shares.taken == 0
