"""How many downloads at once, also while somebody changes how many that are."""

import asyncio
from contextlib import AsyncExitStack, ExitStack

import pytest

from mirror.pull.outcome import OverloadedError
from mirror.pull.policy import Splitting
from mirror.pull.slots import SlotLimits, Slots

WHOLE = Splitting(1, 1, 1)


class Line:
    """Downloads that begin when they may, and end when told."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.running: list[str] = []

    def come(self, name: str, upstream: str = "hub") -> tuple[asyncio.Task[None], asyncio.Event]:
        ending = asyncio.Event()
        return asyncio.create_task(self._run(name, upstream, ending)), ending

    async def _run(self, name: str, upstream: str, ending: asyncio.Event) -> None:
        async with self._slots.taken(upstream):
            self.running.append(name)
            await ending.wait()
            self.running.remove(name)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_with_fewer_nobody_comes_in_until_there_are_fewer():
    slots = Slots(SlotLimits(3, 10, 10.0), WHOLE)
    line = Line(slots)
    came = {name: line.come(name) for name in "abcde"}
    await settled()
    assert line.running == ["a", "b", "c"]
    slots.change(SlotLimits(1, 10, 10.0), WHOLE)
    for leaving, running in [("a", ["b", "c"]), ("b", ["c"]), ("c", ["d"]), ("d", ["e"])]:
        came[leaving][1].set()
        await settled()
        assert line.running == running
    came["e"][1].set()
    await asyncio.gather(*(task for task, _ in came.values()))


async def test_with_more_who_waits_comes_in_at_once_in_order():
    slots = Slots(SlotLimits(1, 10, 10.0, {"hub": 1}), WHOLE)
    line = Line(slots)
    came = {name: line.come(name) for name in "abcd"}
    await settled()
    slots.change(SlotLimits(3, 10, 10.0, {"hub": 3}), WHOLE)
    await settled()
    assert line.running == ["a", "b", "c"]
    for task, ending in came.values():
        ending.set()
        await task


@pytest.mark.parametrize("leaver", ["b", "c"])
async def test_who_gives_up_waiting_takes_no_place(leaver):
    line = Line(Slots(SlotLimits(1, 10, 10.0), WHOLE))
    came = {name: line.come(name) for name in "abc"}
    await settled()
    came["a"][1].set()
    came[leaver][0].cancel()  # b: in the very moment in which its turn comes
    await settled()
    (stayed,) = {"b", "c"} - {leaver}
    assert line.running == [stayed]
    came[stayed][1].set()
    await came[stayed][0]
    async with AsyncExitStack() as stack:
        late = line.come("d")
        stack.callback(late[1].set)
        await settled()
        assert line.running == ["d"]


async def test_further_connections_are_bounded_by_what_their_segments_take():
    for segment_bytes, most in [(16 << 20, 8), (128 << 20, 1), (1 << 30, 1), (1 << 20, 25)]:
        slots = Slots(SlotLimits(100, 10, 10.0), Splitting(4, segment_bytes, 1))
        with ExitStack() as stack:
            taken = 0
            while (slot := slots.try_taken("hub")) is not None:
                stack.enter_context(slot)
                taken += 1
            assert taken == most


async def test_a_line_that_is_too_long_or_too_slow_is_refused():
    slots = Slots(SlotLimits(1, 1, 0.02), WHOLE)
    line = Line(slots)
    first = line.come("a")
    waiting, _ = line.come("b")
    await settled()
    with pytest.raises(OverloadedError, match="too many"):
        async with slots.taken("hub"):
            pass
    with pytest.raises(OverloadedError, match="in time"):
        await waiting
    first[1].set()
    await first[0]
    async with slots.taken("hub"):
        pass
