#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The summary of ./demo: what was found by looking from outside the processes that were replaced. Exit status 0 when all of
it is as it should be.

usage: verdict.py RESULTS-DIRECTORY

How interrupts are counted. The emulated drive's trace has every MSI-X message that it sent (raised), and every time that the
guest told it how far it has read a completion queue (answered). The guest's kernel counts how often its handlers ran
(handled). A message that comes before the one before it has reached the guest merges with that one, as on any machine, and
it is only a handler that answers, at most once per run. Hence, per vector,
    answered <= handled <= raised
where fewer handled than answered would mean that the guest found completions without an interrupt. Also, every completion
must have been answered, and the longest wait is shown: fio has one request under way at a time, so that an interrupt that is
lost has no successor that makes up for it, and the guest would wait, at worst until its driver's time limit of 30 s, and say
"polled" or "timeout" in its log. All counts end at one point in time: the guest reads its counters, sends the drive a marker
(a Get Features command), reads them again and finds them unchanged. The vector of the admin queue is left out: the marker
itself uses it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "lab")]
import observe  # noqa: E402
from screen import Screen  # noqa: E402

NOTICEABLE_MS = 250.0  # a pause that a person at a terminal would notice
AFTERMATH_NS = 500_000_000
ANSWER_LIMIT_MS = 5000.0
ADMIN_VECTOR = 0
TRACE_LINE = re.compile(r"\d+@(?P<seconds>[0-9.]+):(?P<event>pci_nvme_\w+) ?(?P<text>.*)")


@dataclass
class Vector:
    raised: int = 0
    answered: int = 0


@dataclass
class Drive:
    """What the emulator's trace says of the drive, from the guest's start of it to the marker."""

    starts: int = 0
    resets: int = 0
    errors: int = 0
    completions: int = 0
    slowest_answer_ms: float = 0.0
    markers: int = 0
    vectors: dict[int, Vector] = field(default_factory=lambda: defaultdict(Vector))
    vector_of_queue: dict[int, int] = field(default_factory=lambda: {0: 0})
    waiting: dict[int, float] = field(default_factory=dict)  # queue: when the oldest unanswered completion was posted


def take(drive: Drive, time_ms: float, event: str, text: str) -> None:
    """One line of the trace."""
    if event == "pci_nvme_irq_msix":
        drive.vectors[int(text.split()[-1])].raised += 1
    elif event == "pci_nvme_enqueue_req_completion":
        queue = int(text.split()[3])
        if drive.vector_of_queue.get(queue, 0) != ADMIN_VECTOR:
            drive.completions += 1
            drive.waiting.setdefault(queue, time_ms)
    elif event == "pci_nvme_mmio_doorbell_cq":
        answer(drive, int(text.split()[1]), time_ms)
    elif event == "pci_nvme_create_cq":
        found = re.search(r"cqid=(\d+), vector=(\d+)", text)
        assert found
        drive.vector_of_queue[int(found[1])] = int(found[2])
    elif event in ("pci_nvme_pci_reset", "pci_nvme_mmio_stopped", "pci_nvme_mmio_shutdown_set"):
        drive.resets += 1
    elif event == "pci_nvme_err_req_status" and len(drive.vector_of_queue) == 1:
        pass  # no I/O queue yet: the driver finds out what the drive can do (Debian's asks for TCG Opal)
    elif event.startswith("pci_nvme_err_"):
        drive.errors += 1


def answer(drive: Drive, queue: int, time_ms: float) -> None:
    drive.vectors[drive.vector_of_queue.get(queue, 0)].answered += 1
    if queue in drive.waiting:
        drive.slowest_answer_ms = max(drive.slowest_answer_ms, time_ms - drive.waiting.pop(queue))


def read_trace(path: Path, markers: int) -> Drive:
    """The firmware and L1 had the drive before the guest: what counts begins with the last start before the first marker."""
    drive = Drive()
    for line in path.open(errors="replace"):
        found = TRACE_LINE.match(line)
        if not found:
            continue
        event, text = found["event"], found["text"]
        if event == "pci_nvme_mmio_start_success" and not any(v.raised for v in drive.vectors.values()):
            drive = Drive()  # nobody before the guest has interrupts
        if event == "pci_nvme_mmio_start_success":
            drive.starts += 1
        elif event == "pci_nvme_getfeat" and "fid 0x7" in text:
            drive.markers += 1
            if drive.markers == markers:
                break
        else:
            take(drive, float(found["seconds"]) * 1000, event, text)
    return drive


class Summary:
    def __init__(self, facts: dict[str, Any], drive: Drive, counted: dict[int, int]) -> None:
        self.screen = Screen()
        self.failed = 0
        self.facts, self.guest, self.drive, self.counted = facts, facts["guest"], drive, counted

    def line(self, good: bool, label: str, text: str) -> None:
        self.failed += not good
        self.screen.verdict(good, label, text)

    def processes(self) -> None:
        updates = self.facts["updates"]
        good = len(updates) == 3 and all(u["old_is_gone"] and u["executable"] == u["expected"] for u in updates)
        good = good and all(a["to_pid"] == b["from_pid"] for a, b in zip(updates, updates[1:]))
        chain = [f"{updates[0]['from_pid']} ({updates[0]['from_version']})"]
        chain += [f"{u['to_pid']} ({u['to_version']})" for u in updates]
        versions = [updates[0]["from_version"], *(u["to_version"] for u in updates)]
        good = good and versions == self.facts["versions"] and len(set(versions)) == 2
        self.line(good, "processes", " -> ".join(chain) + "; each ended when the next had taken over")

    def fio(self) -> None:
        result = json.loads(self.guest.get("result", ["{}"])[-1])
        status = self.guest.get("fio", ["?"])[-1]
        good = status == "0" and result.get("error") == 0 and result.get("reads", 0) > 0 and self.facts["fio_ran_throughout"]
        self.line(good, "data", f"fio, all along: {result.get('writes', 0):,} blocks written, {result.get('reads', 0):,} read, "
                                f"checksums {'' if good else 'not '}verified; exit status {status}")

    def kernel_log(self) -> None:
        complaints = self.guest.get("complaint", [])
        lines = int(self.guest.get("log", ["0"])[-1])
        text = f"{lines} lines, none about timeouts, resets, I/O errors or stalls"
        self.line(not complaints and lines > 50, "guest's log", complaints[0] if complaints else text)

    def resets(self) -> None:
        drive = self.drive
        good = drive.starts == 1 and drive.resets == 0 and drive.errors == 0
        self.line(good, "drive", f"its trace: started {drive.starts} time by the guest, reset {drive.resets} times, "
                                 f"{drive.errors} errors")

    def interrupts(self) -> None:
        numbers = {number for number in set(self.drive.vectors) | set(self.counted) if number != ADMIN_VECTOR}
        vectors = [(self.drive.vectors[number], self.counted.get(number, 0)) for number in numbers]
        good = bool(vectors) and all(0 < vector.answered <= handled <= vector.raised for vector, handled in vectors)
        raised, handled = sum(vector.raised for vector, _ in vectors), sum(handled for _, handled in vectors)
        self.line(good, "interrupts", f"{raised:,} raised by the drive, {handled:,} handled by the guest, "
                                      f"{raised - handled:,} merged with one still pending")

    def completions(self) -> None:
        drive = self.drive
        answers = sum(vector.answered for number, vector in drive.vectors.items() if number != ADMIN_VECTOR)
        self.line(not drive.waiting and drive.slowest_answer_ms < ANSWER_LIMIT_MS, "completions",
                  f"{drive.completions:,}, {'not ' if drive.waiting else ''}all taken by the guest, in {answers:,} answers, the slowest after "
                  f"{drive.slowest_answer_ms:.1f} ms")

    def silence(self) -> None:
        """What matters is the time of each update and a moment after it; silences in between are the lab's own."""
        observed, floor = self.facts["observed"], self.facts["floor"]["longest_ns"] / 1e6
        updates = self.facts["updates"]
        each = [observe.longest_ns(observed, u["begin_ns"], u["end_ns"] + AFTERMATH_NS) / 1e6 for u in updates]
        limit = max(NOTICEABLE_MS, 3 * floor)
        good = observed["beats"] > 0 and max(each) < limit and all(0 < u["blackout_ms"] < limit for u in updates)
        self.line(good, "silence", f"longest in each update {', '.join(f'{ms:.1f}' for ms in each)} ms; without an update "
                                   f"{floor:.1f} ms")

    def end(self) -> None:
        self.line(self.facts.get("ended", False), "power-off", "by the guest itself, and the last process ended")


def main() -> int:
    results = Path(sys.argv[1])
    facts = json.loads((results / "facts.json").read_text())
    tries, *counts = facts["guest"].get("interrupts", ["0"])[-1].split()
    counted = {int(name.rpartition("q")[2]): int(number) for name, _, number in (c.partition(":") for c in counts)}
    summary = Summary(facts, read_trace(results / "trace.log", int(tries)), counted)
    for check in (summary.processes, summary.fio, summary.kernel_log, summary.resets, summary.interrupts,
                  summary.completions, summary.silence, summary.end):
        check()
    print(f"{summary.failed} of these are not as they should be." if summary.failed else "All as it should be.")
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
