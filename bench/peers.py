# SPDX-License-Identifier: Apache-2.0
"""The monitors that bench/ compares, in the lab machine (L1): each runs the same guest with the same devices, and moves it to
a new process of its own kind. Whoever watches from outside (lab/observe.py) does not need to know which it is."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "lab"), str(ROOT / "tests" / "system")]
import observe  # noqa: E402
from baton_lab import (NVME_ROOT, ROOT_INITRD, VMLINUX, Console, Guest, LabTimeout, Qmp, cpr_channel, end_process, is_alive,  # noqa: E402
                       vfio_options, wait_for)

APPEND = f"{NVME_ROOT} {observe.APPEND}"  # besides QUIET, which a Guest of baton_lab has by itself
QUIET = "console=ttyS0 quiet baton.quiet pty.legacy_count=0 initcall_blacklist=svm_init"
REST_SECONDS = 0.3  # after a dry run, which costs the guest something, too
BACK_ENDS = {"iommufd": "iommufd0", "container": ""}


@dataclass(frozen=True)
class Setup:
    """What the guest has, whichever monitor runs it."""

    back_end: str = "container"
    cpus: int = 1
    memory: int = 256  # MiB
    devices: tuple[str, ...] = ("01:00.0",)  # the first one holds the root file system
    append: str = ""

    @property
    def iommufd(self) -> str:
        return BACK_ENDS[self.back_end]


@dataclass
class HandOver:
    """One change of process, in nanoseconds of CLOCK_MONOTONIC."""

    begin: int
    end: int = 0
    gone: int = 0  # the former process has ended
    predicted_ns: int | None = None  # by a dry run before
    own_ns: int | None = None  # blackout by the processes' own clocks
    stages: dict[str, float] = field(default_factory=dict)  # milliseconds


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class Baton:
    """Updated by `baton update`, as operators do it."""

    name = "baton"

    def __init__(self, setup: Setup) -> None:
        words = []
        for number, address in enumerate(setup.devices):
            words += vfio_options(address, ident=f"device{number}", iommufd=setup.iommufd, declare=number == 0)
        self.guest = Guest(*words, memory=f"{setup.memory}M", cpus=setup.cpus, initrd=None, append=f"{APPEND} {setup.append}")
        self.ram = "baton.ram"

    def start(self) -> Console:
        self.guest.boot()
        return self.guest.console

    @property
    def pid(self) -> int:
        return self.guest.pid

    def hand_over(self) -> HandOver:
        predicted = self.guest.update("--dry-run").predicted_ms
        assert predicted is not None
        time.sleep(REST_SECONDS)
        former = self.guest.pid
        result = HandOver(now_ns(), predicted_ns=int(predicted * 1e6))
        update = self.guest.update()
        result.end = now_ns()
        wait_for("the former process's end", lambda: not is_alive(former))
        result.gone = now_ns()
        assert update.blackout_ms is not None
        result.own_ns, result.stages = int(update.blackout_ms * 1e6), update.stages
        return result

    def end(self) -> None:
        self.guest.destroy()


def event_ns(event: dict[str, Any]) -> int:
    """QMP's time of an event, which is that of the wall clock."""
    return event["timestamp"]["seconds"] * 1_000_000_000 + event["timestamp"]["microseconds"] * 1000


class Qemu:
    """Debian's QEMU, updated through cpr-transfer as its documentation says."""

    name = "qemu cpr-transfer"
    program = "qemu-system-x86_64"

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.ram = "memory-backend-memfd"
        self.directory = Path(tempfile.mkdtemp(prefix="qemu."))
        self.generation = 0
        self.processes: list[subprocess.Popen[bytes]] = []

    def path(self, name: str) -> Path:
        return self.directory / f"{name}{self.generation}"

    def words(self, *more: str) -> list[str]:
        setup = self.setup
        devices = ["-object", "iommufd,id=iommufd0"] if setup.iommufd else []
        for number, address in enumerate(setup.devices):
            # With iommufd QEMU maps BARs in a way that its own live update refuses, unless it may not map them at all.
            devices += ["-device", f"vfio-pci,host={address},id=device{number}"
                        + (",iommufd=iommufd0,x-no-mmap=on" if setup.iommufd else "")]
        return [self.program, "-nodefaults", "-no-user-config", "-display", "none", "-cpu", "host", "-smp", str(setup.cpus),
                "-m", f"{setup.memory}M", "-machine", "q35,accel=kvm,memory-backend=ram0,aux-ram-share=on",
                "-object", f"memory-backend-memfd,id=ram0,size={setup.memory}M,share=on", *devices,
                "-serial", f"unix:{self.path('console')},server=on,wait=off", "-qmp", f"unix:{self.path('qmp')},server=on,wait=off",
                "-kernel", VMLINUX, "-append", f"{QUIET} {APPEND} {setup.append}", *(["-initrd", ROOT_INITRD] if ROOT_INITRD else []), *more]

    def run(self, *more: str) -> None:
        log = (self.directory / "log").open("ab")
        self.processes.append(subprocess.Popen(self.words(*more), stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def start(self) -> Console:
        self.run()
        console = Console.on_socket(self.path("console"))
        console.wait_prompt()
        return console

    @property
    def pid(self) -> int:
        return self.processes[-1].pid

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def hand_over(self) -> HandOver:
        old = Qmp(self.path("qmp"))
        result = HandOver(now_ns())
        self.generation += 1
        main = {"channel-type": "main", "addr": {"transport": "socket", "type": "unix", "path": str(self.path("main"))}}
        self.run("-incoming", f"unix:{self.path('main')}", "-incoming", json.dumps(cpr_channel(self.path("cpr"))))
        wait_for(f"QEMU's channel ({self.log})", self.path("cpr").exists)
        old.execute("migrate-set-parameters", mode="cpr-transfer")
        old.execute("migrate", channels=[main, cpr_channel(self.path("cpr"))])
        new = Qmp(self.path("qmp"))
        self.conclude(old, new, result)
        self.processes.pop(0)
        return result

    def conclude(self, old: Qmp, new: Qmp, result: HandOver) -> None:
        """Waits until the guest runs in the new process; the old one is left behind, stopped, and ends."""
        stop = old.event("STOP")
        wait_for("the guest in the new process", lambda: new.execute("query-status")["running"])
        result.end = now_ns()
        resumed = [event for event in new.events if event["event"] == "RESUME"]
        if resumed:
            result.own_ns = event_ns(resumed[0]) - event_ns(stop)
        new.close()
        try:
            old.execute("quit")
        except EOFError:
            pass
        old.close()
        self.processes[0].wait(60)
        result.gone = now_ns()

    def end(self) -> None:
        for process in self.processes:
            end_process(process.pid)
            process.wait(60)


class QemuExec(Qemu):
    """The same through cpr-exec: the process replaces itself."""

    name = "qemu cpr-exec"

    def hand_over(self) -> HandOver:
        old = Qmp(self.path("qmp"))
        result = HandOver(now_ns())
        state = self.directory / "state"
        state.unlink(missing_ok=True)
        self.generation += 1
        old.execute("migrate-set-parameters", mode="cpr-exec", cpr_exec_command=self.words("-incoming", f"file:{state}"))
        old.execute("migrate", uri=f"file:{state}")
        with suppress(EOFError, ConnectionResetError):  # until it has replaced itself: before, it serves new connections as well
            while True:
                old.read()
        old.close()
        new = wait_for("QMP after exec", self.try_qmp)
        wait_for("the guest after exec", lambda: new.execute("query-status")["running"])
        result.end = result.gone = now_ns()
        new.close()
        return result

    def try_qmp(self) -> Qmp | None:
        try:
            return Qmp(self.path("qmp"), patience=5)
        except (OSError, EOFError, LabTimeout):
            return None


@contextmanager
def running(kind: type[Baton] | type[Qemu], setup: Setup) -> Iterator[tuple[Any, Console]]:
    """A guest under that monitor; it ends with the block."""
    monitor = kind(setup)
    try:
        yield monitor, monitor.start()
    except BaseException:
        print(monitor.guest.report() if isinstance(monitor, Baton) else monitor.log, file=sys.stderr)
        raise
    finally:
        monitor.end()
