"""A caller whose calls are refused again and again waits for its refusals; others do not."""

import asyncio

from service.refusals import REFUSAL_LIMITS, RefusalLimits, RefusalPace

FREE_PER_WINDOW = REFUSAL_LIMITS.free_per_window


async def done_at_once(pace: RefusalPace, caller: str) -> bool:
    """Whether a refusal is not held."""
    held = asyncio.ensure_future(pace.hold(caller))
    await asyncio.sleep(0)
    done = held.done()
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    return done


async def test_a_caller_is_held_beyond_its_free_refusals_and_others_are_not() -> None:
    pace = RefusalPace()
    for _ in range(FREE_PER_WINDOW):
        assert await done_at_once(pace, "alice")
    assert not await done_at_once(pace, "alice")
    assert await done_at_once(pace, "bob")


async def test_the_free_refusals_come_back() -> None:
    pace = RefusalPace(RefusalLimits(window_seconds=0))
    for _ in range(3 * FREE_PER_WINDOW):
        assert await done_at_once(pace, "alice")


async def test_no_more_are_held_than_memory_allows() -> None:
    pace = RefusalPace(RefusalLimits(paused_max=2))
    for _ in range(FREE_PER_WINDOW):
        await pace.hold("alice")
    held = [asyncio.ensure_future(pace.hold("alice")) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(hold.done() for hold in held)
    assert await done_at_once(pace, "alice")
    await asyncio.gather(*held)
    assert not await done_at_once(pace, "alice"), "there is room again"
