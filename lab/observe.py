# SPDX-License-Identifier: Apache-2.0
"""A handle to lab/observer, for scripts that run in the lab machine (L1): how long a guest is silent for, as seen from
outside the processes that run it. The guest runs lab/heartbeat and was started with APPEND on its kernel's command line.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ADDRESS = 0x8000000  # guest-physical
APPEND = f"memmap=64K${ADDRESS:#x}"
SLOT_NS = 10_000_000  # of what a report calls "slots": how far the guest came in each
PATIENCE = 120


def ram_descriptor(pid: int, name: str = "baton.ram") -> str:
    """The number of a process's memfd that holds the guest's memory. @param name of the memfd, which is the monitor's"""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(path).startswith(f"/memfd:{name}"):
            return path.name
    raise RuntimeError(f"process {pid} has no memfd with the guest's memory")


class Observer:
    """Watches from the start to report(), whatever process runs the guest meanwhile: its memory stays the same."""

    def __init__(self, pid: int, seconds: int = 0, ram: str = "baton.ram") -> None:
        words = ["/lab/observer", "--threshold-ns", "500000", "--rest-ns", "50000", "--slot-ns", str(SLOT_NS)]
        if seconds:
            words += ["--seconds", str(seconds)]
        self.process = subprocess.Popen([*words, str(pid), ram_descriptor(pid, ram), hex(ADDRESS)], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stderr
        if "observing" not in self.process.stderr.readline():
            raise RuntimeError("lab/observer did not start")

    def report(self) -> dict[str, Any]:
        """Ends it, unless it was given a time, and returns what it saw."""
        if "--seconds" not in self.process.args:  # type: ignore[operator]
            self.process.terminate()
        output, _ = self.process.communicate(timeout=PATIENCE)
        return json.loads(output)


def longest_ns(report: dict[str, Any], begin: int, end: int) -> int:
    """The longest silence that touches a time (CLOCK_MONOTONIC)."""
    return max((s["ns"] for s in report["silences"] if s["end"] >= begin and s["start"] <= end), default=0)
