#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The part of bench/bench that runs in the lab machine (L1): moves the same guest with the same drive from process to process,
under baton, under QEMU, and, in bench/floor, under nothing at all; in turns, so that what the machine does meanwhile is everybody's.
Writes /results/compare.json."""

from __future__ import annotations

import argparse
import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peers import ROOT, Baton, Qemu, QemuExec, Setup, observe, running

from baton_lab import BATON, bind  # noqa: E402 (peers has made it known)

FLOOR = Path(BATON).parent / "bench" / "floor"
VECTORS = 8  # of the floor: what a guest's NVMe drive and NIC have together
CELLS = {"reads": 1, "slowest_read": 2}  # of lab/heartbeat's page
FLOOR_MOVES = 20  # in each turn: single ones vary a lot
QUIET_SECONDS = 0.5  # before a hand-over, and twice that after it
SILENCE_SECONDS = 5
SLOTS_BEFORE, SLOTS_AFTER = 30, 70


class Cells:
    """What the guest's heartbeat keeps beside its count."""

    def __init__(self, pid: int, ram: str) -> None:
        file = os.open(f"/proc/{pid}/fd/{observe.ram_descriptor(pid, ram)}", os.O_RDWR)
        self.page = mmap.mmap(file, mmap.PAGESIZE, offset=observe.ADDRESS)
        os.close(file)

    def take(self, name: str) -> int:
        """The value; it begins anew."""
        place = slice(8 * CELLS[name], 8 * CELLS[name] + 8)
        value = int.from_bytes(self.page[place], "little")
        self.page[place] = bytes(8)
        return value


def slots_around(report: dict[str, Any], begin: int, end: int) -> list[int]:
    """Beats per slot of time, the longest silence of the hand-over beginning in the one with number SLOTS_BEFORE."""
    silences = [s for s in report["silences"] if s["end"] >= begin and s["start"] <= end]
    start = max(silences, key=lambda s: s["ns"])["start"] if silences else begin
    first = (start - report["first"]) // observe.SLOT_NS - SLOTS_BEFORE
    return [report["slots"][i] if 0 <= i < len(report["slots"]) else 0 for i in range(first, first + SLOTS_BEFORE + SLOTS_AFTER)]


def one_hand_over(monitor: Any) -> dict[str, Any]:
    cells = Cells(monitor.pid, monitor.ram)
    watcher = observe.Observer(monitor.pid, ram=monitor.ram)
    time.sleep(QUIET_SECONDS)
    usual = cells.take("slowest_read")
    done = monitor.hand_over()
    slowest = cells.take("slowest_read")
    time.sleep(2 * QUIET_SECONDS)
    report = watcher.report()
    own, predicted = (ns / 1e6 if ns is not None else None for ns in (done.own_ns, done.predicted_ns))
    return {"own_ms": own, "predicted_ms": predicted, "total_ms": (done.end - done.begin) / 1e6, "teardown_ms": (done.gone - done.end) / 1e6,
            "outside_ms": observe.longest_ns(report, done.begin, done.end) / 1e6, "slowest_read_ms": slowest / 1e6,
            "usual_slowest_read_ms": usual / 1e6, "stages_ms": done.stages,
            "slots": slots_around(report, done.begin, done.end)}


def one_turn(kind: type[Baton] | type[Qemu], setup: Setup, count: int) -> dict[str, Any]:
    with running(kind, setup) as (monitor, console):
        console.command("(setsid /lab/heartbeat --reads /dev/nvme0n1 </dev/null >/dev/null 2>&1 &)")
        time.sleep(1)
        silence = observe.Observer(monitor.pid, SILENCE_SECONDS, monitor.ram).report()["longest_ns"] / 1e6
        return {"silence_without_ms": silence, "hand_overs": [one_hand_over(monitor) for _ in range(count)]}


def run_floor(cpus: int, count: int, vectors: int = VECTORS) -> list[dict[str, float]]:
    words = [str(FLOOR), "--vcpus", str(cpus), "--vectors", str(vectors), "--count", str(count)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)["moves"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/bench")
    parser.add_argument("--turns", type=int, default=4, help="of each monitor on each back end (default 4)")
    parser.add_argument("--hand-overs", type=int, default=5, help="in each turn (default 5)")
    parser.add_argument("--cpus", type=int, default=1, help="of the guest (default 1)")
    parser.add_argument("--memory", type=int, default=256, help="MiB of the guest (default 256)")
    parser.add_argument("--only", default="", help="monitors whose name has this in it")
    return parser.parse_args()


def main() -> int:
    options = parse()
    bind("01:00.0")
    result: dict[str, Any] = {"options": vars(options), "slots": {"ms": observe.SLOT_NS / 1e6, "before": SLOTS_BEFORE},
                              "floor": [], "monitors": {}}
    for turn in range(options.turns):
        result["floor"] += run_floor(options.cpus, FLOOR_MOVES)
        for kind in (Baton, Qemu):
            for back_end in ("container", "iommufd"):
                if options.only not in kind.name:
                    continue
                done = one_turn(kind, Setup(back_end, options.cpus, options.memory), options.hand_overs)
                result["monitors"].setdefault(f"{kind.name}, {back_end}", []).append(done)
                print(f"turn {turn + 1}: {kind.name}, {back_end}: "
                      + ", ".join(f"{h['outside_ms']:.1f}" for h in done["hand_overs"]) + " ms", flush=True)
    if options.only in QemuExec.name:
        done = one_turn(QemuExec, Setup("container", options.cpus, options.memory), 1)
        result["monitors"][f"{QemuExec.name}, container"] = [done]
    Path("/results/compare.json").write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
