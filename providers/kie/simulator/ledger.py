"""The account's money: what was bought, what it cost, and what a failure gives back."""

from collections import Counter

from providers.kie.simulated.tasks import FAIL, Task


class Ledger:
    """The balance. A create is charged at once; a task that fails is refunded when it ends.

    Tasks end without anybody doing anything, so what is due is settled before each look.
    """

    def __init__(self, credits_: float) -> None:
        self.purchases: Counter[str] = Counter()
        self._balance = credits_
        self._spent = 0.0
        self._will_fail: dict[str, Task] = {}

    def balance(self, now_ms: int) -> float:
        """The credits that are left."""
        self._settle(now_ms)
        return self._balance

    def spent(self, now_ms: int) -> float:
        """The credits that were charged and not refunded."""
        self._settle(now_ms)
        return self._spent

    def set_balance(self, credits_: float, now_ms: int) -> None:
        """Go on with another balance."""
        self._settle(now_ms)
        self._balance = credits_

    def buy(self, task: Task) -> None:
        """Charge for a new task."""
        self.purchases[task.model] += 1
        self._charge(task.credits)
        self._expect_end(task)

    def replace(self, task: Task, ended: Task, now_ms: int) -> None:
        """Take note that a task was ended by hand, perhaps the other way than before."""
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
