"""Fill a database of another checkout: `PYTHONPATH=CHECKOUT python -P seed.py URL PENDING ALL`.

The other checkout's code writes the rows, because its columns may differ. Every checkout therefore
has `pending`, `ended` and `insert` in benchmarks/databases.py.
"""

import sys
import time
from itertools import chain

from benchmarks.databases import ended, insert, pending


def main(url: str, pending_tasks: int, all_tasks: int) -> None:
    """Insert tasks: the newest are pending, the others have ended."""
    now = time.time()
    rows = chain(pending(range(pending_tasks), now), ended(range(pending_tasks, all_tasks), now))
    insert(url, rows)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
