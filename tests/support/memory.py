"""The memory of processes."""

import re
from pathlib import Path


def resident_mib(pid: int, field: str = "VmRSS") -> float:
    """Return the memory of a process as Linux counts it: VmRSS now, VmHWM at its peak."""
    [kib] = re.findall(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) / 1_024
