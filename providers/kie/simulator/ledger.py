"""The account's balance: charges for tasks, and refunds for failed ones."""

from collections import Counter

from providers.kie.simulator.tasks import FAIL, Task


class Ledger:
    """The balance. A create is charged at once; a task that fails is refunded when it ends.

    Tasks end by the clock alone, so refunds that are due are booked before each reading.
    """

    def __init__(self, credits_: float) -> None:
        self.purchases: Counter[str] = Counter()
        self._balance = credits_
        self._spent = 0.0
        self._will_fail: dict[str, Task] = {}

    def balance(self, now_ms: int) -> float:
        """Return the remaining credits."""
        self._settle(now_ms)
        return self._balance

    def spent(self, now_ms: int) -> float:
        """Return the credits that were charged and not refunded."""
        self._settle(now_ms)
        return self._spent

    def set_balance(self, credits_: float, now_ms: int) -> None:
        """Set the balance."""
        self._settle(now_ms)
        self._balance = credits_

    def buy(self, task: Task) -> None:
        """Charge for a new task."""
        self.purchases[task.model] += 1
        self._charge(task.credits)
        self._expect_end(task)

    def replace(self, task: Task, ended: Task, now_ms: int) -> None:
        """Book the change when a task is ended on request, perhaps with the opposite outcome."""
        self._settle(now_ms)
        self._will_fail.pop(task.id, None)
        if task.state_at(now_ms) == FAIL:
            self._charge(task.credits)
        self._expect_end(ended)

    def _expect_end(self, task: Task) -> None:
        if not task.succeeds:
            self._will_fail[task.id] = task

    def _charge(self, credits_: float) -> None:
        self._balance -= credits_
        self._spent += credits_

    def _settle(self, now_ms: int) -> None:
        for task in list(self._will_fail.values()):
            if task.state_at(now_ms) == FAIL:
                del self._will_fail[task.id]
                self._charge(-task.credits)
