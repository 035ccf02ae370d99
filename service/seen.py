"""Anomalies that are logged once. They are remembered in memory only."""

from collections import OrderedDict
from typing import TypeVar

import structlog

from storage.task import Task

REMEMBERED_MAX = 10_000  # tasks
STATES_MAX = 100

V = TypeVar("V")
log = structlog.get_logger()


class Seen:
    """Logs each anomaly once."""

    def __init__(self) -> None:
        self._states: set[str] = set()
        self._tasks_by_provider_id: OrderedDict[str, str] = OrderedDict()
        self._hosts: OrderedDict[str, frozenset[str]] = OrderedDict()

    def state(self, state: str) -> None:
        """Log an unknown state, once for each."""
        if state not in self._states and len(self._states) < STATES_MAX:
            self._states.add(state)
            log.warning("a record has a state that this version does not know", state=state)

    def accepted(self, task: Task, provider_task_id: str) -> None:
        """Log if two of our tasks have the same id at the provider: they get the same result."""
        other = self._tasks_by_provider_id.get(provider_task_id, task.id)
        if other != task.id:
            log.warning(
                "two tasks have the same id at the provider",
                provider_task_id=provider_task_id,
                other_task_id=other,
            )
        _keep(self._tasks_by_provider_id, provider_task_id, task.id)

    def called_back(self, task_id: str, hosts: frozenset[str]) -> None:
        """Remember the hosts of the result URLs that a callback named."""
        if hosts:
            _keep(self._hosts, task_id, hosts)

    def ended(self, task: Task) -> None:
        """Log if a task ended without results although a callback named some."""
        hosts = self._hosts.pop(task.id, None)
        if hosts and not task.artifacts:
            log.warning(
                "a callback named results that the record does not have",
                hosts=sorted(hosts),
                task_id=task.id,
            )


def _keep(memory: OrderedDict[str, V], key: str, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > REMEMBERED_MAX:
        memory.popitem(last=False)
