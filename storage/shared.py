"""What all processes on a database share apart from tasks and slots: secrets and holds.

All of this runs in the writer's thread, inside its transaction.
"""

from collections.abc import Sequence

from storage.engine import Engine
from storage.statements import ACCOUNT, CALLBACKS, IMPORTED_CALLBACKS


class Shared:
    """The secrets of callback URLs, and the hold of the account."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def callback_secrets_each(self, proposals: Sequence[bytes]) -> list[list[bytes]]:
        """Return the secrets for each proposal, as `Store.callback_secrets` describes them."""
        return [self._callback_secrets(proposed) for proposed in proposals]

    def _callback_secrets(self, proposed: bytes) -> list[bytes]:
        execute, sql = self._engine.execute, self._engine.sql
        execute(sql.secrets.add, CALLBACKS, proposed)
        found = (
            execute(sql.secrets.get, name).fetchone() for name in (CALLBACKS, IMPORTED_CALLBACKS)
        )
        return [bytes(row[0]) for row in found if row]

    def hold_account_each(self, requests: Sequence[tuple[float, float]]) -> list[float]:
        """Record refusals as `Store.hold_account` describes them: (now, refused_after)."""
        return [self._hold_account(*request) for request in requests]

    def _hold_account(self, now: float, refused_after: float) -> float:
        cursor = self._engine.execute(self._engine.sql.holds.hold, ACCOUNT, now, now, refused_after)
        ((since,),) = cursor.fetchall()
        return float(since)
