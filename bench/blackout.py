#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The part of bench/blackout that runs in the lab machine (L1). Prints a table, and writes /results/blackout.json."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "lab"), str(ROOT / "tests" / "system")]
import observe  # noqa: E402
from baton_lab import NVME_ROOT, Guest, bind, vfio_options  # noqa: E402

DRIVE = "01:00.0"
BETWEEN_SECONDS = 1.0
FIO = ("fio --name=load --filename=/root/load.dat --size=32M --rw=randrw --bs=4k --iodepth=8 --ioengine=libaio --direct=1 "
       "--verify=crc32c --verify_backlog=64 --verify_fatal=1 --time_based --runtime=3600")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/blackout")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--smp", type=int, default=2)
    parser.add_argument("--memory", type=int, default=512)
    return parser.parse_args()


def one_update(guest: Guest) -> dict[str, Any]:
    predicted = guest.update("--dry-run").predicted_ms
    watcher = observe.Observer(guest.pid)
    begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    update = guest.update()
    end = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    time.sleep(BETWEEN_SECONDS)
    report = watcher.report()
    return {"blackout_ms": update.blackout_ms, "predicted_ms": predicted, "total_ms": update.total_ms,
            "stages_ms": update.stages, "outside_ms": observe.longest_ns(report, begin, end) / 1e6}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    bind(DRIVE)
    with Guest(*vfio_options(DRIVE, ident="nvme0"), memory=f"{options.memory}M", cpus=options.smp, initrd=None,
               append=f"{NVME_ROOT} {observe.APPEND}") as guest:
        guest.boot()
        guest.command(f"taskset -c {options.smp - 1} /lab/heartbeat &")
        if options.load:
            guest.command(f"taskset -c 0 {FIO} >/tmp/fio 2>&1 & echo $! >/tmp/fio.pid; sleep 2")
        floor = observe.Observer(guest.pid, 5).report()
        updates = [one_update(guest) for _ in range(options.updates)]
        if options.load:
            guest.command("kill -INT $(cat /tmp/fio.pid); wait $(cat /tmp/fio.pid); grep -q 'err= 0' /tmp/fio")
        guest.check_kernel_log()
    return {"options": vars(options), "silence_without_updates_ms": floor["longest_ns"] / 1e6, "updates": updates}


def print_table(result: dict[str, Any]) -> None:
    updates = result["updates"]
    print(f"{len(updates)} updates, guest with {result['options']['smp']} vCPUs and {result['options']['memory']} MiB, "
          f"{'fio running' if result['options']['load'] else 'idle'}; milliseconds")
    print(f"{'':44}{'median':>10}{'worst':>10}")
    for title, key in (("blackout, by the processes' own clocks", "blackout_ms"),
                       ("blackout, predicted by a dry run before", "predicted_ms"),
                       ("longest silence, seen from outside", "outside_ms"), ("whole update", "total_ms")):
        values = [update[key] for update in updates]
        print(f"{title:44}{statistics.median(values):10.3f}{max(values):10.3f}")
    print(f"{'longest silence in 5 s without updates':44}{'':10}{result['silence_without_updates_ms']:10.3f}")
    for stage in updates[0]["stages_ms"]:
        values = [update["stages_ms"][stage] for update in updates]
        print(f"{'  stage ' + stage:44}{statistics.median(values):10.3f}{max(values):10.3f}")


def main() -> int:
    result = measure(parse())
    Path("/results/blackout.json").write_text(json.dumps(result, indent=1) + "\n")
    print_table(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
