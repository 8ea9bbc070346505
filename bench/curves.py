#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The part of bench/curves that runs in the lab machine (L1): how baton's blackout depends on what a guest has. One thing is varied
at a time, and what it is compared with is measured in the same run. Writes /results/curves.json and curves.md."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers import APPEND, ROOT
from report import markdown

sys.path.insert(0, str(ROOT / "tests" / "system"))
from baton_lab import Guest, bind, vfio_options  # noqa: E402

COUNT = 11  # updates at each point
DRIVER = """
import fcntl, os, struct, sys, time
from edu_driver import SET_IRQS, open_device
device, count = open_device(sys.argv[1]), int(sys.argv[2])
events = [os.eventfd(0) for _ in range(count)]
fcntl.ioctl(device, SET_IRQS, struct.pack(f"<IIIII{count}i", 20 + 4 * count, 1 << 2 | 1 << 5, 2, 0, count, *events))
open("/tmp/ready", "w").close()
time.sleep(3600)
"""


@contextmanager
def guest_with(cpus: int = 1, memory: int = 256, devices: int = 1) -> Iterator[Guest]:
    words = []
    for number in range(devices):
        words += vfio_options(f"{number + 1:02x}:00.0", ident=f"device{number}", declare=number == 0)
    with Guest(*words, memory=f"{memory}M", cpus=cpus, initrd=None, append=APPEND) as guest:
        yield guest.boot()


def point(guest: Guest) -> dict[str, float]:
    """Updates in a row; the first one, after which every page that matters is where it will be, does not count."""
    guest.update()
    updates = [guest.update() for _ in range(COUNT)]
    blackouts = [update.blackout_ms for update in updates if update.blackout_ms is not None]
    assert len(blackouts) == COUNT
    return {"median": statistics.median(blackouts), "worst": max(blackouts),
            "total": statistics.median(update.total_ms or 0 for update in updates)}


def by_memory(size: int) -> dict[str, float]:
    with guest_with(memory=size) as guest:
        guest.command(f"mount -t tmpfs -o size=100% tmpfs /mnt; head -c {size * 3 // 4}M /dev/zero > /mnt/touched", patience=300)
        return point(guest)


def by_processors(count: int) -> dict[str, float]:
    with guest_with(cpus=count) as guest:
        return point(guest)


def by_devices(count: int) -> dict[str, float]:
    with guest_with(devices=count) as guest:
        return point(guest)


def by_vectors(count: int) -> dict[str, float]:
    """In use by a driver in the guest, of a drive (virtio-blk) that has 64; besides those of the drive with the root file system."""
    with guest_with(devices=2) as guest:
        guest.put("/tmp/edu_driver.py", (ROOT / "tests/system/edu_driver.py").read_text())
        guest.put("/tmp/vectors.py", DRIVER)
        guest.command(f"(setsid python3 /tmp/vectors.py 0000:00:02.0 {count} </dev/null >/tmp/log 2>&1 &); "
                      "until [ -e /tmp/ready ]; do sleep 0.2; done; cat /tmp/log", patience=60)
        return point(guest)


CURVES: dict[str, tuple[Callable[[int], dict[str, float]], tuple[int, ...]]] = {
    "memory, MiB (three quarters touched)": (by_memory, (256, 1024, 4096, 8192)),
    "vCPUs": (by_processors, (1, 2, 4, 8)),
    "devices": (by_devices, (1, 2, 3, 4)),
    "vectors in use": (by_vectors, (2, 8, 32, 64)),
}


def table(curves: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    lines = [["", "", "blackout, median / worst, ms", "whole update, median, ms"]]
    for name, points in curves.items():
        lines += [[name, f"{at['value']}", f"{at['median']:.2f} / {at['worst']:.2f}", f"{at['total']:.0f}"] for at in points]
    return lines


def main() -> int:
    bind("all")
    result: dict[str, Any] = {"count": COUNT, "curves": {}}
    for name, (measure, values) in CURVES.items():
        if len(sys.argv) > 1 and sys.argv[1] not in name:
            continue
        for value in values:
            done = measure(value)
            result["curves"].setdefault(name, []).append({"value": value, **done})
            print(f"{name} {value}: blackout {done['median']:.2f} / {done['worst']:.2f} ms, whole update {done['total']:.0f} ms", flush=True)
    Path("/results/curves.md").write_text(f"{COUNT} updates at each point.\n\n{markdown(table(result['curves']))}\n")
    Path("/results/curves.json").write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
