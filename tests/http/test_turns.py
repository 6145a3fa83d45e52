"""Clients that take turns."""

import asyncio
import contextlib

import pytest

from mirror.http.turns import LineFullError, Turns
from tests.waiting import limit


async def worked(turns: Turns, client: str, order: list[str], go_on: asyncio.Event) -> None:
    async with turns.turn(client):
        order.append(client)
        await go_on.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_comes_last_alone_is_served_before_those_behind_in_a_long_line():
    turns, order, go_on = Turns(1, 1, 100), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(worked(turns, "a", order, go_on)) for _ in range(50)]
    tasks += [asyncio.create_task(worked(turns, name, order, go_on)) for name in "bc"]
    await settle()
    go_on.set()
    await asyncio.gather(*tasks)
    assert order[:4] == ["a", "a", "b", "c"]
    assert len(order) == 52


async def test_one_client_never_has_all_turns_and_others_wait_for_none():
    turns, order, go_on = Turns(4, 2, 100), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(worked(turns, "a", order, go_on)) for _ in range(9)]
    await settle()
    assert order == ["a", "a"]
    tasks += [asyncio.create_task(worked(turns, name, order, go_on)) for name in "bcd"]
    await settle()
    assert order == ["a", "a", "b", "c"], "four at once"
    go_on.set()
    await asyncio.gather(*tasks)
    assert sorted(order) == ["a"] * 9 + ["b", "c", "d"]


async def test_a_full_line_is_full_for_its_client_alone():
    turns, order, go_on = Turns(1, 1, 3), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(worked(turns, "a", order, go_on)) for _ in range(4)]
    await settle()
    with pytest.raises(LineFullError):
        await worked(turns, "a", order, go_on)
    tasks.append(asyncio.create_task(worked(turns, "b", order, go_on)))
    go_on.set()
    await asyncio.gather(*tasks)
    assert sorted(order) == ["a"] * 4 + ["b"]


@pytest.mark.parametrize("moment", ["waiting", "served", "at once"])
async def test_a_client_that_leaves_takes_no_turn_along(moment):
    turns, order, go_on = Turns(1, 1, 3), list[str](), asyncio.Event()
    first = asyncio.create_task(worked(turns, "a", order, go_on))
    await settle()
    leaving = asyncio.create_task(worked(turns, "b", order, go_on))
    await settle()
    last = asyncio.create_task(worked(turns, "c", order, go_on))
    await settle()
    if moment == "waiting":
        leaving.cancel()
        await settle()
    first.cancel()
    if moment == "served":
        await settle()
        assert order == ["a", "b"]
    if moment == "at once":
        await asyncio.sleep(0)
    leaving.cancel()
    go_on.set()
    with contextlib.suppress(asyncio.CancelledError):
        await leaving
    async with limit():
        await last
        await worked(turns, "b", order, go_on)
    assert order[-2:] == ["c", "b"]
