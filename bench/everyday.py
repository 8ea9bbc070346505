#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The part of bench/everyday that runs in the lab machine (L1): what a monitor costs when nobody updates it. Writes
/results/everyday.json and everyday.md."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers import Baton, Console, Qemu, Setup, now_ns

from baton_lab import BATON, bind, status_field  # noqa: E402 (peers has made it known)
from report import markdown

FIO = ("fio --name=bench --filename=/dev/nvme0n1 --rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth={depth} --time_based "
       "--runtime={seconds} --ramp_time=1 --output-format=json --output=/tmp/fio.json >/dev/null")
READ = ("python3 -c \"import json; r = json.load(open('/tmp/fio.json'))['jobs'][0]['read']; "
        "print(r['iops'], r['clat_ns']['mean'] / 1000, r['clat_ns']['percentile']['99.000000'] / 1000)\"")
SECONDS = 8  # of fio, at each depth
DEPTHS = (1, 32)
# What the kernel's log says, in its own time, of the moment at which we are and of the one that counts.
MARK = "echo everyday: mark > /dev/kmsg; dmesg | grep -e 'as init process' -e 'everyday: mark'"
TIMES = re.compile(r"\[ *(\d+\.\d+)\]")
PT_LOAD = 1


def first_process_ms(console: Console, begin: int) -> float:
    """From the start of the monitor to that of the guest's first process."""
    now = now_ns()
    init, mark = (float(text) for text in TIMES.findall(console.command(MARK)))
    return (now - begin) / 1e6 - (mark - init) * 1e3


def read_speed(console: Console, depth: int) -> dict[str, float]:
    console.command(FIO.format(depth=depth, seconds=SECONDS), patience=60 + 10 * SECONDS)
    iops, mean, worst = map(float, console.command(READ).split())
    return {f"iops_{depth}": iops, f"latency_us_{depth}": mean, f"latency_99_us_{depth}": worst}


def one_turn(kind: type[Baton] | type[Qemu], setup: Setup) -> dict[str, float]:
    monitor = kind(setup)
    try:
        begin = now_ns()
        console = monitor.start()
        figures = {"first_process_ms": first_process_ms(console, begin),
                   "resident_kib": float(status_field(monitor.pid, "RssAnon") + status_field(monitor.pid, "RssFile"))}
        for depth in DEPTHS:
            figures |= read_speed(console, depth)
        return figures
    finally:
        monitor.end()


def loaded_bytes(path: Path) -> int:
    """What of an ELF file goes into memory: symbols and debugging information do not."""
    data = path.read_bytes()
    offset, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    return sum(header[5] for header in headers if header[0] == PT_LOAD)


def sizes(program: str) -> dict[str, float]:
    output = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    libraries = {Path(path).resolve() for path in re.findall(r"(/\S+) \(0x", output)}
    own = loaded_bytes(Path(program))
    return {"program_kib": own / 1024, "libraries": float(len(libraries)),
            "with_libraries_kib": (own + sum(map(loaded_bytes, libraries))) / 1024}


ROWS = [("first_process_ms", "start to the guest's first process, ms"), ("resident_kib", "resident memory besides the guest's, KiB"),
        ("program_kib", "program, KiB"), ("with_libraries_kib", "program with its shared libraries, KiB"),
        ("libraries", "shared libraries"), ("iops_1", "reads of 4 KiB a second, one at a time"),
        ("latency_us_1", "mean time of one, us"), ("latency_99_us_1", "99th percentile, us"),
        ("iops_32", "reads of 4 KiB a second, 32 at a time"), ("latency_us_32", "mean time of one, us"),
        ("latency_99_us_32", "99th percentile, us")]


def table(result: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    lines = [["median (lowest to highest)", *result]]
    for key, title in ROWS:
        cells = []
        for turns in result.values():
            values = [turn[key] for turn in turns]
            middle, low, high = statistics.median(values), min(values), max(values)
            cells.append(f"{middle:,.0f}" if low == high else f"{middle:,.0f} ({low:,.0f} to {high:,.0f})")
        lines.append([title, *cells])
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/everyday")
    parser.add_argument("--turns", type=int, default=5, help="of each monitor (default 5)")
    options = parser.parse_args()
    bind("01:00.0")
    programs = {Baton: BATON, Qemu: shutil.which(Qemu.program) or Qemu.program}
    result: dict[str, Any] = {}
    for turn in range(options.turns):
        for kind in (Baton, Qemu) if turn % 2 == 0 else (Qemu, Baton):
            done = one_turn(kind, Setup("container")) | sizes(programs[kind])
            result.setdefault(kind.name.split()[0], []).append(done)
            print(f"turn {turn + 1}: {kind.name.split()[0]}: {done['first_process_ms']:.0f} ms to the first process, "
                  f"{done['iops_1']:.0f} and {done['iops_32']:.0f} reads a second", flush=True)
    text = markdown(table(result))
    print(text)
    Path("/results/everyday.md").write_text(text + "\n")
    Path("/results/everyday.json").write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
