"""`python -m tests.support.crashing POINT [NTH]`: the service, which kills itself at a point.

A point is `Class.method:before` or `Class.method:after`: just before the await of that method
starts, or just after it has returned, in its NTH call (default 1). Each await of the create and the
poll flow is one.
"""

import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from providers.kie.client import KieProvider
from service.__main__ import main
from storage.store import Store

OWNERS: dict[str, type] = {"Store": Store, "KieProvider": KieProvider}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash_at(point: str, nth: int) -> None:
    """Arm a point."""
    path, _, when = point.partition(":")
    owner, _, name = path.partition(".")
    setattr(OWNERS[owner], name, _deadly(getattr(OWNERS[owner], name), when, nth))


def _deadly(method: Callable[..., Any], when: str, nth: int) -> Callable[..., Any]:
    calls = itertools.count(1)

    @functools.wraps(method)
    async def deadly(*args: Any, **kwargs: Any) -> Any:
        due = next(calls) == nth
        if due and when == "before":
            die()
        result = await method(*args, **kwargs)
        if due and when == "after":
            die()
        return result

    return deadly


if __name__ == "__main__":
    crash_at(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    sys.exit(main())
