#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The part of ./demo that runs in the lab machine (L1): boots the guest, shows its console, updates the process under it
three times, and writes what was measured to /results/facts.json, for verdict.py.

usage: session.py iommufd|legacy THIS-BATON OTHER-BATON
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "lab")]
import observe  # noqa: E402
from screen import Screen  # noqa: E402

NAME = "demo"
DRIVE = "01:00.0"
# How the drive is passed through.
DEVICE = {"iommufd": ["-object", "iommufd,id=iommufd0", "-device", f"vfio-pci,host={DRIVE},iommufd=iommufd0,id=nvme0"],
          "legacy": ["-device", f"vfio-pci,host={DRIVE},id=nvme0"]}
FIO_SECONDS = 26
FLOOR_SECONDS = 5
BETWEEN_UPDATES = 2.0
PATIENCE = 300
PREPARATION = ("hello", "describe", "prepare", "rehearse", "quiesce")
STOPPED = ("pause", "switch", "go", "run")

# The guest's first process runs this: it takes the real script from the console, unharmed by the line editor.
BOOTSTRAP = 'stty -echo; echo @ready; while read -r l && [ "$l" != @end ]; do echo "$l"; done >/tmp/demo; . /tmp/demo'

screen = Screen()


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class Console:
    """The guest's console: shown line by line, except for lines that begin with "@", which are answers for this script."""

    def __init__(self, source: TextIO, sink: TextIO) -> None:
        self.sink = sink
        self.answers: dict[str, list[str]] = {}
        self.changed = threading.Condition()
        self.closed = False
        self.reader = threading.Thread(target=self._read, args=[source], daemon=True)
        self.reader.start()

    def _read(self, source: TextIO) -> None:
        log = open("/results/console.log", "w", buffering=1)
        for line in source:
            log.write(line)
            line = line.rstrip("\r\n").rsplit("\r", 1)[-1]
            if line.startswith("@"):
                key, _, value = line[1:].partition(" ")
                self._note(key, value)
            elif line:
                screen.guest(line)
                if line.startswith("Jobs: "):
                    self._note("fio-works", line)
        with self.changed:
            self.closed = True
            self.changed.notify()

    def _note(self, key: str, value: str) -> None:
        with self.changed:
            self.answers.setdefault(key, []).append(value)
            self.changed.notify()

    def send(self, text: str) -> None:
        self.sink.write(text)
        self.sink.flush()

    def wait(self, key: str, patience: float = PATIENCE) -> str:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.answers or self.closed, patience):
                raise RuntimeError(f"the guest did not say '{key}' within {patience} s")
        if key not in self.answers:
            raise RuntimeError(f"the guest's console was closed before it said '{key}'")
        return self.answers[key][-1]


def show_command(label: str, words: list[str]) -> None:
    line = ""
    for word in words:
        if word.startswith("-") and len(line) > 70:
            screen.item(label, line + "\\")
            label, line = "", "    "
        line += word + " "
    screen.item(label, line)


def start_guest(binary: str, backend: str) -> tuple[subprocess.Popen[str], Console]:
    run = base64.b64encode(BOOTSTRAP.encode()).decode()
    append = (f"console=ttyS0 quiet pci=lastbus=0 baton.quiet root=/dev/nvme0n1 rw init=/lab/guest-init "
              f"{observe.APPEND} baton.run={run}")
    initrd = os.environ["ROOT_INITRD"]  # where the guest's drivers are modules
    words = [binary, "run", "-name", NAME, "-m", "512M", "-smp", "2", "-nographic", *DEVICE[backend],
             "-kernel", os.environ["KERNEL"], *(["-initrd", initrd] if initrd else []), "-append", append]
    show_command("guest", ["baton", *words[1:-1], "'console=ttyS0 root=/dev/nvme0n1 rw ...'"])
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, errors="replace",
                               stderr=open("/results/baton.log", "a"))
    assert process.stdin and process.stdout
    return process, Console(process.stdout, process.stdin)


def executable(pid: int) -> str:
    """What the kernel says a process runs; nothing when there is no such process (any more)."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return ""


def version_of(binary: str) -> str:
    return subprocess.run([binary, "version"], text=True, capture_output=True, check=True).stdout.split()[1]


def listed(binary: str) -> tuple[int, str]:
    """Process and version that serve the guest's control socket now."""
    output = subprocess.run([binary, "list"], text=True, capture_output=True, check=True).stdout
    found = re.search(rf"^{NAME} +(\d+) +\S+ +(\S+)", output, re.M)
    if not found:
        raise RuntimeError(f"baton list does not show the guest:\n{output}")
    return int(found[1]), found[2]


def wait_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while executable(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not executable(pid)


def show_stages(label: str, names: tuple[str, ...], stages: dict[str, float]) -> None:
    screen.detail(label, "  ".join(f"{name} {stages[name]:.1f}" for name in names if name in stages) + " ms")


def follow_update(output: TextIO) -> tuple[dict[str, float], float]:
    """Shows the stages as `baton update` prints them."""
    stages: dict[str, float] = {}
    blackout = 0.0
    for line in output:
        if found := re.match(r"  (\w+) +([\d.]+) ms", line):
            stages[found[1]] = float(found[2])
            for label, names in (("guest runs", PREPARATION), ("guest stopped", STOPPED), ("guest runs", ("finish",))):
                if found[1] == names[-1]:
                    show_stages(label, names, stages)
        elif found := re.match(r"blackout ([\d.]+) ms", line):
            blackout = float(found[1])
    return stages, blackout


def update(number: int, old_binary: str, new_binary: str) -> dict[str, Any]:
    pid, version = listed(old_binary)
    screen.item(f"update {number}", f"baton {version} (process {pid}) -> baton {version_of(new_binary)}")
    begin = now_ns()
    with subprocess.Popen([new_binary, "update", NAME, "--binary", new_binary], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout and process.stderr
        stages, blackout = follow_update(process.stdout)
        complaint = process.stderr.read().strip()
    if process.returncode != 0:
        raise RuntimeError(f"baton update: exit status {process.returncode}: {complaint}")
    new_pid, new_version = listed(new_binary)
    fact = {"from_pid": pid, "from_version": version, "to_pid": new_pid, "to_version": new_version,
            "executable": executable(new_pid), "expected": str(Path(new_binary).resolve()), "stages_ms": stages,
            "blackout_ms": blackout, "begin_ns": begin, "end_ns": now_ns(), "old_is_gone": wait_gone(pid)}
    screen.detail("blackout", screen.strong(f"{blackout:.1f} ms") + f"; the guest runs in process {new_pid} now")
    return fact


def measure(binaries: list[str], console: Console, pid: int, facts: dict[str, Any]) -> None:
    screen.item("observe", f"how long the guest is silent for without an update: {FLOOR_SECONDS} s")
    facts["floor"] = observe.Observer(pid, FLOOR_SECONDS).report()
    observer = observe.Observer(pid)
    for number, (old, new) in enumerate(zip(binaries, binaries[1:]), 1):
        facts["updates"].append(update(number, old, new))
        time.sleep(BETWEEN_UPDATES)
    facts["observed"] = observer.report()
    facts["fio_ran_throughout"] = "fio" not in console.answers
    console.wait("done", FIO_SECONDS + PATIENCE)


def session(backend: str, this: str, other: str) -> dict[str, Any]:
    binaries = [this, other, this, other]
    facts: dict[str, Any] = {"updates": [], "versions": [version_of(binary) for binary in binaries]}
    subprocess.run(["/lab/bind", DRIVE], check=True, stdout=subprocess.DEVNULL)
    process, console = start_guest(this, backend)
    console.wait("ready")
    console.send((HERE / "guest.sh").read_text().replace("FIO_SECONDS", str(FIO_SECONDS)) + "\n@end\n")
    console.wait("fio-works")
    try:
        measure(binaries, console, process.pid, facts)
        last = facts["updates"][-1]["to_pid"]
        facts["ended"] = wait_gone(last)
    finally:
        process.poll()
        with console.changed:
            facts["guest"] = dict(console.answers)
    return facts


def main() -> int:
    try:
        facts = session(*sys.argv[1:4])
    except (RuntimeError, OSError, subprocess.SubprocessError) as problem:
        screen.item("failed", str(problem))
        for line in Path("/results/baton.log").read_text().splitlines()[-15:]:
            screen.detail("log", line)
        return 1
    Path("/results/facts.json").write_text(json.dumps(facts, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
