"""One call for all who ask, as long as any of them waits."""

import asyncio

import pytest

from mirror.pull.policy import UNWANTED_QUESTIONS
from mirror.pull.singleflight import SingleFlight


class Calls:
    """Calls that end when told; counts how they went."""

    def __init__(self) -> None:
        self.flights: SingleFlight[str, int] = SingleFlight("thing")
        self.begun = self.cancelled = 0
        self.answer = asyncio.Event()

    async def _call(self) -> int:
        self.begun += 1
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.begun

    async def _join(self, key: str) -> tuple[int, bool]:
        return await self.flights.join(key, self._call)

    def come(self, key: str) -> asyncio.Task[tuple[int, bool]]:
        return asyncio.create_task(self._join(key))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_comes_back_soon_gets_the_answer_to_the_first_question():
    calls = Calls()
    first = calls.come("a")
    await settled()
    first.cancel()
    await settled()
    again = calls.come("a")
    await settled()
    calls.answer.set()
    assert await again == (1, False)


async def test_of_many_that_are_left_only_some_go_on_and_others_can_be_asked_again():
    calls = Calls()
    keys = [str(number) for number in range(3 * UNWANTED_QUESTIONS)]
    asked = [calls.come(key) for key in keys]
    await settled()
    for task in asked:
        task.cancel()
    await settled()
    assert calls.cancelled == 2 * UNWANTED_QUESTIONS
    again = calls.come(keys[-1])
    await settled()
    calls.answer.set()
    assert (await again)[1], "it leads a call of its own"


async def test_one_of_two_that_leaves_ends_nothing():
    calls = Calls()
    leaver, stayer = calls.come("a"), calls.come("a")
    await settled()
    leaver.cancel()
    await settled()
    calls.answer.set()
    assert await stayer == (1, False)
    assert (calls.begun, calls.cancelled) == (1, 0)


@pytest.mark.parametrize("leave", [False, True])
async def test_closing_cancels_what_is_under_way(leave: bool):
    calls = Calls()
    asked = calls.come("a")
    await settled()
    if leave:
        asked.cancel()
        await settled()
    await calls.flights.close()
    assert calls.cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await asked
