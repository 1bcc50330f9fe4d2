"""What the tests of work on Ray share: the death of a worker.

In: a process that started a Ray cluster. Out: its workers are gone, as by a machine that ran out of memory.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def kill_workers(root: int, title: bytes, most: int = 99) -> int:
    """SIGKILL to workers beneath a process that are at work under this title; how many there were."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    below = {root}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    killed = 0
    for pid in sorted(below):
        try:
            called = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if killed < most and called.startswith(title):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed
