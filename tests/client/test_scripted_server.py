"""The server of the other tests plays its script."""

from tests.support.scripted_server import ScriptedService, connected, pending


async def test_the_script_is_played_in_its_order() -> None:
    service = ScriptedService()
    service.answers.extend([pending(1), pending(2)])
    async with connected(service) as client:
        assert [(await client.get("t-1")).revision for _ in range(2)] == [1, 2]
    assert [request.task_id for request in service.requests] == ["t-1", "t-1"]
