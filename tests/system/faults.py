# SPDX-License-Identifier: Apache-2.0
"""The fault matrix: every stage of a hand-over, on both sides, times everything that can go wrong there.

The points are found, not written down. The stages come from the table in src/update/stages.c (build/tests/faults/stages), the
system calls of each from a hand-over that is recorded at the start: tests/faults/inject.c, preloaded into the program as it is
shipped, keeps a log of those that it wraps (tests/wrapped-calls compares them with the program's), and later makes one of them
fail, or holds the process there for a signal. What concerns messages and descriptors is done by proxy.py, which stands between the
two sides.

What can go wrong at a point is written down here: how each call fails, what can happen to a message, to a batch of descriptors and
to state, and what is said of it then; what there may be too little of; which calls an update may do without.

test_faults.py runs a part of the matrix, test_every_fault.py all of it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import mmap
import os
import re
import resource
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from baton_lab import (BATON, SANITIZED, USER, Edu, FioLoad, Guest, Update, bind, is_alive, nvme_guest, open_files, run, through_proxy,
                       vfio_options, wait_for)

TOOLS = Path(BATON).parent / "tests/faults"
# The interrupts that are counted: messages, hundreds a second, and a line, each of whose interrupts is a dozen exits of the guest.
EDUS = [("0000:00:03.0", "msi", Edu.REST), ("0000:00:04.0", "intx", 5 * Edu.REST)]
PAUSED = ("pause", "switch", "go", "run")  # stages in which the guest stands still
SLACK = 5.0  # seconds on top of a limit of the table: until that is noticed, and for undoing, in an emulated machine
COMMITTED = {"outgoing": ("run", "finish"), "incoming": ("go", "finish")}  # where the guest is, or may be, the new process's


@dataclass(frozen=True)
class Stage:
    """A row of the table."""

    name: str
    limit: float  # seconds
    sides: tuple[str, ...]

    @classmethod
    @functools.cache
    def table(cls) -> list[Stage]:
        rows = (line.split() for line in run(TOOLS / "stages").stdout.splitlines())
        return [cls(name, int(limit) / 1000, tuple(sides)) for name, limit, *sides in rows]


@dataclass(frozen=True)
class Call:
    """A system call that a side makes in a stage: struct fault_call of inject.h."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("16s16s16sQII")

    side: str
    stage: str
    name: str
    request: int = 0
    number: int = 1

    @classmethod
    def unpack(cls, data: bytes) -> Call:
        side, stage, name, request, number, _ = cls.LAYOUT.unpack(data)
        return cls(*(text.split(b"\0")[0].decode() for text in (side, stage, name)), request, number)

    def pack(self) -> bytes:
        return self.LAYOUT.pack(self.side.encode(), self.stage.encode(), self.name.encode(), self.request, self.number, 0)

    def __str__(self) -> str:
        request = f"-{self.request:#x}" if self.request else ""
        return f"{self.side}-{self.stage}-{self.name}{request}-{self.number}"


class Injection:
    """The page that processes under test share with us: struct fault_page of inject.h."""

    NONE, ERROR, HOLD = range(3)
    PLAN, REACHED = 8, 8 + Call.LAYOUT.size
    LOGGED, LOG, LOG_SIZE = REACHED + 4, REACHED + 8, 8192

    def __init__(self, path: Path) -> None:
        size = self.LOG + self.LOG_SIZE * Call.LAYOUT.size
        path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), size)

    def _number(self, offset: int) -> int:
        return struct.unpack_from("<I", self.page, offset)[0]

    def plan(self, action: int, call: Call, error: int = 0) -> None:
        """Forgets what was logged; from the next time on that the call is made, the action is done once."""
        self.clear()
        self.page[self.PLAN:self.REACHED] = call.pack()
        struct.pack_into("<i", self.page, 4, error)
        struct.pack_into("<I", self.page, 0, action)

    def hold_next(self, call: Call) -> None:
        """Whoever is held goes on, up to another call."""
        self.page[self.PLAN:self.REACHED] = call.pack()
        struct.pack_into("<I", self.page, self.REACHED, 0)

    def end_hold(self, error: int) -> None:
        """Whoever is held goes on: the call is made, or returns an error instead."""
        struct.pack_into("<i", self.page, 4, error)
        self.page[0] = self.ERROR if error else self.NONE  # at once: pack_into() makes it NONE first

    def clear(self) -> None:
        """Whoever is held goes on. What was logged must not be taken for what is being logged: both processes do that at once."""
        struct.pack_into("<I", self.page, 0, self.NONE)
        used = min(self._number(self.LOGGED), self.LOG_SIZE) * Call.LAYOUT.size
        self.page[self.LOG:self.LOG + used] = bytes(used)
        struct.pack_into("<II", self.page, self.REACHED, 0, 0)

    @property
    def reached(self) -> bool:
        return self._number(self.REACHED) > 0

    def calls(self) -> list[Call]:
        count = self._number(self.LOGGED)
        assert count < self.LOG_SIZE, "the log is full: raise FAULT_LOG_SIZE"
        size = Call.LAYOUT.size
        return [Call.unpack(self.page[self.LOG + i * size:self.LOG + (i + 1) * size]) for i in range(count)]


def preload(guest: Guest) -> Injection:
    """Before the guest is started, whose processes must trace update_*."""
    path = guest.directory / "faults"
    guest.environment |= {"LD_PRELOAD": str(TOOLS / "libinject.so"), "BATON_FAULTS": str(path)}
    injection = Injection(path)
    os.chown(path, USER, USER)
    return injection


@contextlib.contextmanager
def held_update(guest: Guest, injection: Injection, call: Call, *trace: str, error: int = 0) -> Iterator[subprocess.Popen[str]]:
    """An update that waits just before a call, for as long as the block takes; then it goes on, and succeeds.
    @param trace what the new process traces besides
    @param error what the call returns then: the update fails, and is undone"""
    injection.plan(Injection.HOLD, call)
    words = guest.update_words(*(word for pattern in ("update_*", *trace) for word in ("--trace", pattern)))
    with subprocess.Popen(words, env=guest.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as update:
        try:
            wait_for(str(call), lambda: injection.reached)
            yield update
        finally:
            injection.end_hold(error)
            output, errors = update.communicate(timeout=60)
    injection.clear()
    guest.updates.append(Update(update.returncode, output, errors))
    assert home_after(guest.updates[-1]) == ("before" if error else "after"), guest.updates[-1]
    guest.drop_clients()


# What a call returns that fails: what the kernel is likeliest to say.
ERRORS = {"open64": errno.EMFILE, "socket": errno.EMFILE, "eventfd": errno.EMFILE, "memfd_create": errno.EMFILE,
          "pidfd_open": errno.EMFILE, "pipe2": errno.EMFILE, "epoll_create1": errno.EMFILE, "signalfd": errno.EMFILE,
          "timerfd_create": errno.EMFILE, "accept4": errno.EMFILE, "fopen64": errno.EMFILE,
          "pthread_create": errno.EAGAIN, "write": errno.EAGAIN, "bind": errno.ENOSPC, "rename": errno.ENOSPC,
          "mkdir": errno.ENOSPC, "sendmsg": errno.EPIPE, "read": errno.EIO, "close": errno.EIO,
          "pread64": errno.EIO, "pwrite64": errno.EIO, "connect": errno.EACCES, "access": errno.EACCES}
OTHER_ERROR = errno.ENOMEM
SYS_KCMP = 312  # <asm/unistd_64.h>; the C library has no function for it


class Subject:
    """A guest under fio and interrupts, to which all the harm of one module is done; it is started anew when it was lost,
    which only the death of the process that runs it may bring about."""

    def __init__(self, iommufd: str) -> None:
        bind("all")
        self.iommufd = iommufd
        self.guest: Guest | None = None
        self.edus: list[Edu] = []
        self.fio: FioLoad | None = None
        self.seen = 0  # bytes of the log that are older than the present hand-over

    def start(self) -> None:
        words = [*vfio_options("02:00.0", ident="blk1", iommufd=self.iommufd, declare=False),
                 *vfio_options("03:00.0", ident="edu0", iommufd=self.iommufd, declare=False),
                 *vfio_options("04:00.0", ident="edu1", iommufd=self.iommufd, declare=False), "-trace", "update_*"]
        # Some of what is done here kills the guest, and the root file system is not what is tested.
        self.guest = nvme_guest(*words, iommufd=self.iommufd, append="ro")
        self.guest.runtime.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"mode=700,uid={USER},gid={USER},nr_inodes=64,size=64k", "tmpfs", self.guest.runtime)
        self.guest.options += ["-pidfile", str(self.pidfile)]
        self.injection = preload(self.guest)
        self.guest.boot()

    @property
    def pidfile(self) -> Path:
        """All that is made in the runtime directory when a new process has the guest already."""
        return self.guest.runtime / self.guest.name / "pid"

    def start_interrupts(self) -> None:
        self.edus = [Edu(self.guest, address, mode, f"/tmp/{mode}", rest) for address, mode, rest in EDUS]

    def load(self) -> None:
        if not self.guest:
            self.start()
        if not self.edus:
            self.start_interrupts()
            self.fio = FioLoad(self.guest, "/dev/vda")

    def suffer(self, fault: Fault) -> None:
        """After a failure the next test has a guest of its own."""
        try:
            if fault.is_loss():
                self.account()  # while there is somebody to ask
            self.load()
            self.look_from_here()
            fault.strike(self)
        except BaseException:
            if self.guest:
                print(self.guest.report())
            self.end()
            raise

    def account(self) -> None:
        """Everything that was raised was handled, and what fio wrote was there."""
        for edu in self.edus:
            edu.stop().check()
        if self.fio:
            assert self.fio.stop() > 0
            self.guest.check_alive()
            self.guest.check_kernel_log()
        self.edus, self.fio = [], None

    def lose(self) -> None:
        """The process that ran the guest was killed."""
        self.end()
        self.start()

    def end(self) -> None:
        if self.guest:
            self.guest.destroy()
            run("umount", self.guest.runtime)
        self.guest = self.fio = None
        self.edus = []

    def update(self) -> Update:
        """An update that may fail, but not take longer than the table allows."""
        self.look_from_here()
        update = self.guest.update("--trace", "update_*", check=False)
        self.check_limits()
        return update

    def look_from_here(self) -> None:
        self.seen = self.guest.log_path.stat().st_size

    def said(self) -> str:
        """What the outgoing side has said in the present hand-over, and the incoming side since it has the guest."""
        return self.guest.log_path.read_bytes()[self.seen:].decode(errors="replace")

    def has_concluded(self) -> bool:
        """The outgoing side knows where the guest is."""
        return "update_conclude side=outgoing" in self.said()

    def check_limits(self) -> None:
        """No stage took longer than the table allows, and the guest did not stand still for longer than the stages may in which it
        is paused. Times are the outgoing side's; the last stage ends with the conclusion, when all has been undone."""
        begun: dict[str, float] = {}
        ended: dict[str, float] = {}
        lines = re.findall(r"@([\d.]+):update_(stage_begin|stage_end|conclude) side=outgoing \w+=(\w+)", self.said())
        for seconds, event, what in lines:
            if event == "stage_begin":
                begun[what] = float(seconds)
            else:
                ended[what if event == "stage_end" else list(begun)[-1]] = float(seconds)
        stages = [stage for stage in Stage.table() if stage.name in begun]
        assert stages, "the outgoing side has traced nothing"
        paused = [stage for stage in stages if stage.name in PAUSED]
        for span in filter(None, [*([stage] for stage in stages), paused]):
            took = ended[span[-1].name] - begun[span[0].name]
            assert took < sum(stage.limit for stage in span) + SLACK, f"{span[0].name} to {span[-1].name}: {took:.1f} s"

    def other_process(self, outgoing: int, client: int) -> int:
        """The incoming process of an update that is under way."""
        others = [pid for pid in self.guest.processes() if pid not in (outgoing, client)]
        assert len(others) == 1, others
        return others[0]

    def outlive_stop(self, fault: Signal, victim: int, incoming: int) -> None:
        """A process stands still until the other one knows where the guest is, for which the table leaves it so much time. Then it
        goes on, unless it has been given up: such a one is killed as it stands."""
        table = Stage.table()
        remaining = table[[stage.name for stage in table].index(fault.stage):]

        def other_has_concluded() -> bool:
            if fault.side == "incoming":
                return self.has_concluded()
            return self.guest.pid == incoming if fault.is_committed() else not is_alive(incoming)

        wait_for("the other side's conclusion", other_has_concluded, sum(stage.limit for stage in remaining) + SLACK)
        if fault.side == "outgoing" or fault.is_committed():
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)

    def record(self) -> list[Call]:
        """Every call of an update that goes well, in order."""
        self.injection.clear()
        update = self.update()
        assert update.status == 0, update
        return self.injection.calls()

    def check_home(self, before: int, home: str) -> None:
        """The guest is whole, in one process, and where it should be."""
        self.guest.drop_clients()
        wait_for("one process only", lambda: len(self.guest.processes()) == 1)
        assert (self.guest.pid == before) == (home == "before"), self.guest.updates[-1]
        for edu in self.edus:
            edu.wait_for_more()
        assert self.guest.run_status() == "running"

    def check_next_update(self) -> None:
        self.injection.clear()
        update = self.update()
        assert update.status == 0, update
        self.guest.drop_clients()
        pid = re.findall(r"runs in process (\d+)", update.output)[-1]
        wait_for("its pid file", lambda: self.pidfile.read_text().strip() == pid)


def home_after(update: Update) -> str:
    """A failed update names the stage, and leaves the guest where it was."""
    if update.status == 0:
        return "after"
    assert "the guest is where it was" in update.errors, update
    return "before"


# ---- faults ----

@dataclass(frozen=True)
class Fault:
    """One kind of harm at one point of a hand-over."""

    side: str
    stage: str

    def strike(self, subject: Subject) -> None:
        """Does it, and checks that nothing was lost."""
        raise NotImplementedError

    def is_loss(self) -> bool:
        """Whoever runs the guest is killed, and takes it along."""
        return False


@dataclass(frozen=True)
class FailingCall(Fault):
    """A system call returns an error. The update fails, or can do without; never is it half done."""

    call: Call

    def __str__(self) -> str:
        return f"error-{self.call}"

    def strike(self, subject: Subject) -> None:
        before = subject.guest.pid
        subject.injection.plan(Injection.ERROR, self.call, ERRORS.get(self.call.name, OTHER_ERROR))
        update = subject.update()
        assert subject.injection.reached, f"{self.call} was not made this time: {update}"
        subject.check_home(before, home_after(update))
        subject.check_next_update()
        assert update.status != 0 or self.is_harmless(), f"nobody noticed that {self.call} failed: {update}"

    def is_harmless(self) -> bool:
        call = self.call
        return (call.stage in COMMITTED[call.side] or call.name in HARMLESS
                or (call.stage == "rehearse" and call.request in HARMLESS_IN_REHEARSAL)
                or ((call.stage, call.name, call.request) == ("rehearse", "ioctl", UNMAP_DMA) and call.number > 1))


# What an update does not depend on, so that it may succeed: letting go of things; advice, a larger buffer; lines of the log, and
# wake-ups through an eventfd, which fail only when it has been signalled already.
HARMLESS = {"close", "munmap", "madvise", "write", "setsockopt"}
# And what is done for the guest's first steps, KVM_PRE_FAULT_MEMORY, after the question whether the kernel has it.
PRE_FAULT_MEMORY, CHECK_EXTENSION = 0xc040aed5, 0xae03
HARMLESS_IN_REHEARSAL = {PRE_FAULT_MEMORY, CHECK_EXTENSION}
# And: taking a mapping from the other process where it may not have it, before it is taken back, which is what tells.
UNMAP_DMA = 0x3b72  # VFIO_IOMMU_UNMAP_DMA


@dataclass(frozen=True)
class Signal(Fault):
    """A process is killed, or stopped, in the middle of a stage: held before a system call, until the signal has come."""

    call: Call
    signal: signal.Signals

    def __str__(self) -> str:
        return f"{'kill' if self.signal == signal.SIGKILL else 'stop'}-{self.call}"

    def strike(self, subject: Subject) -> None:
        guest = subject.guest
        before = guest.pid
        subject.injection.plan(Injection.HOLD, self.call)
        words = guest.update_words("--timeout", str(self.patience()), "--trace", "update_*")
        with subprocess.Popen(words, env=guest.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as update:
            wait_for(str(self.call), lambda: subject.injection.reached)
            incoming = subject.other_process(before, update.pid)
            victim = before if self.side == "outgoing" else incoming
            os.kill(victim, self.signal)
            subject.injection.clear()
            if self.signal == signal.SIGSTOP:
                subject.outlive_stop(self, victim, incoming)
            output, errors = update.communicate(timeout=200)
        guest.updates.append(Update(update.returncode, output, errors))
        self.check(subject, before)

    def check(self, subject: Subject, before: int) -> None:
        if self.is_loss():
            wait_for("the end of all processes", lambda: subject.guest.processes() == [])
            subject.lose()
            return
        subject.check_home(before, "after" if self.is_committed() else "before")
        if self.side == "incoming":
            subject.check_limits()
        subject.check_next_update()

    def is_committed(self) -> bool:
        """The new process has the guest, or will have it."""
        return self.stage in COMMITTED[self.side] and not self.gives_back()

    def gives_back(self) -> bool:
        """The go has come, the guest has not been claimed yet; or it has, but has not run, which only a death makes certain."""
        return self.call == GO_LINE or (self.call == CLAIM_LINE and self.signal == signal.SIGKILL)

    def patience(self) -> int:
        """How long "baton update" waits for all of it, in seconds. A new process that nobody connects to has no other limit."""
        return 20 if self.stage == "hello" else 120

    def is_loss(self) -> bool:
        return self.signal == signal.SIGKILL and self.is_committed() == (self.side == "incoming")


@dataclass(frozen=True)
class Message(Fault):
    """Something happens to a message on its way: see proxy.py."""

    action: str

    def __str__(self) -> str:
        return f"{self.action}-{self.stage}"

    def strike(self, subject: Subject) -> None:
        guest = subject.guest
        before = guest.pid
        reason = through_proxy(guest, self.action, self.stage, None)
        if self.is_loss():
            guest.drop_clients()
            wait_for("the end of all processes", lambda: guest.processes() == [])
            subject.lose()
            return
        subject.check_home(before, "before" if reason else "after")
        subject.check_limits()
        said = subject.said() + guest.incoming.log
        subject.check_next_update()
        assert self.is_race() or bool(reason) != self.is_late(), reason or "nobody noticed in time"
        assert self.is_unread() or re.search(self.complaint(), said), said
        if reason and self.is_death():
            assert ("run" if self.stage == "go" else self.stage) in reason, reason

    def is_loss(self) -> bool:
        return (self.stage, self.action) in (("go", "kill-after"), ("finish", "kill-before"), ("finish", "kill-after"))

    def is_death(self) -> bool:
        """The reason says in which stage the other process was lost."""
        return self.action in ("kill-before", "kill-after", "hang")

    def is_answer(self) -> bool:
        return self.action.endswith(("-after", "-reply"))

    def is_late(self) -> bool:
        """The guest has moved when it is noticed."""
        return self.stage == "finish" or (self.stage == "go" and (self.is_answer() or self.action == "twice-request"))

    def is_race(self) -> bool:
        """The second answer is read when the go is out: the guest is whose that is faster."""
        return (self.stage, self.action) == ("switch", "twice-reply")

    def is_unread(self) -> bool:
        """Nothing more was expected."""
        return self.is_race() or (self.stage == "finish" and self.action in ("twice-request", "twice-reply"))

    def complaint(self) -> str:
        """What one of the two sides says of it, at least: a pattern."""
        if self.stage == "go" and self.action in ("short-reply", "garbage-reply"):
            return ACTIONS["twice-reply"]  # it does not matter any more what an answer says; but the next one is out of turn then
        return (ACTIONS | BATCH_ACTIONS | STATE_ACTIONS)[self.action]


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """No file can be made in a file system; and where one is deleted, none can be made that is not empty."""
    fillers = [directory / "filler"]
    with contextlib.suppress(OSError):
        fillers[0].write_bytes(bytes(1 << 20))
    with contextlib.suppress(OSError):
        for number in itertools.count():
            filler = directory / f"filler{number}"
            filler.touch()
            fillers.append(filler)
    yield
    for filler in fillers:
        filler.unlink()


@dataclass(frozen=True)
class Shortage(Fault):
    """The new process, or its host, has too little of something."""

    what: str

    def __str__(self) -> str:
        return f"no-{self.what}"

    def strike(self, subject: Subject) -> None:
        guest = subject.guest
        before = guest.pid
        with getattr(self, self.what)(guest) as binary:
            update = guest.update(binary=binary, check=False)
        assert update.status != 0 and SHORTAGES[self.what] in update.errors, update
        subject.check_home(before, home_after(update))
        subject.check_next_update()

    @staticmethod
    @contextlib.contextmanager
    def limited(guest: Guest, limit: str) -> Iterator[Path]:
        """A baton with a limit of its own."""
        path = guest.directory / "limited"
        path.write_text(f"#!/bin/sh\nulimit {limit}\nexec {guest.binary} \"$@\"\n")
        path.chmod(0o755)
        yield path

    def descriptors(self, guest: Guest) -> contextlib.AbstractContextManager[Path]:
        return self.limited(guest, "-n 24")

    def memory(self, guest: Guest) -> contextlib.AbstractContextManager[Path]:
        return self.limited(guest, "-v 120000")

    def disk(self, guest: Guest) -> contextlib.AbstractContextManager[None]:
        """Where sockets are."""
        return full(guest.runtime)

    @contextlib.contextmanager
    def outgoing_descriptors(self, guest: Guest) -> Iterator[None]:
        """The running process has as many descriptors as it may have, but for a few."""
        former = resource.prlimit(guest.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(guest.pid, resource.RLIMIT_NOFILE, (len(open_files(guest.pid)) + 4, former[1]))
        yield
        resource.prlimit(guest.pid, resource.RLIMIT_NOFILE, former)


@dataclass(frozen=True)
class LateShortage(Fault):
    """No file can be made any more where the sockets are, from the middle of a stage on. What is made then is the pid file, which
    is nothing to give a guest up for."""

    call: Call

    def __str__(self) -> str:
        return f"no-disk-{self.call}"

    def strike(self, subject: Subject) -> None:
        guest = subject.guest
        before = guest.pid
        with contextlib.ExitStack() as afterwards:
            with held_update(guest, subject.injection, self.call):
                afterwards.enter_context(full(guest.runtime))
        errors = guest.updates[-1].errors
        assert "-pidfile: cannot write" in errors and SHORTAGES["disk"] in errors, errors
        assert int(subject.pidfile.read_text()) == before
        subject.check_home(before, "after")
        subject.check_next_update()


# ---- the matrix ----

# What can happen to a request or its answer, to a batch of descriptors, to state (see proxy.py); and what is said of it: a pattern.
ACTIONS = {
    "kill-before": "has ended",
    "kill-after": "has ended",
    "hang": "sent nothing within",
    "close-before": "has closed the channel",
    "close-after": "has closed the channel",
    "short-request": "bytes of payload and has|is no message",
    "short-reply": "bytes of payload and has",
    "twice-request": "arrived where",
    "twice-reply": "arrived where",
    "garbage-request": "is no message",
    "garbage-reply": "is no message",
}
BATCH_ACTIONS = {
    "late-request": "arrived where",
    "drop-descriptor": "descriptors and has",
    "more-descriptor": "descriptors and has",
    "other-descriptor": "is not an eventfd",
    "rename=ram/0=ram/1": "'ram/0' is missing",
}
STATE_ACTIONS = {
    "state-cut": "an unsigned integer at byte [0-9]+ where",
    "state=dtypedvcpugversion=dtypedvcpugversjon": "key 'version' is missing",
    "state=dtypeepower=dtypeefower": "fower.*required",
    "state-future": "use a newer baton",
}
# What there can be too little of, and what is said of that.
SHORTAGES = {
    "descriptors": "open files",
    "memory": os.strerror(errno.ENOMEM),
    "disk": os.strerror(errno.ENOSPC),
    "outgoing_descriptors": "open files",
}
if SANITIZED:
    del SHORTAGES["memory"]  # a sanitizer's runtime reserves terabytes, and ends the program in its own words


def message_faults(stages: list[Stage]) -> Iterator[Message]:
    for stage in stages:
        if "incoming" in stage.sides:
            yield from (Message("incoming", stage.name, action) for action in ACTIONS)
    yield from (Message("incoming", "describe", action) for action in BATCH_ACTIONS)
    yield from (Message("incoming", stage, action) for stage in ("rehearse", "switch") for action in STATE_ACTIONS)
    yield from (Message("incoming", "go", action) for action in ACTIONS)


def first_middle_last(calls: list[Call]) -> list[Call]:
    return list(dict.fromkeys((calls[0], calls[len(calls) // 2], calls[-1])))


def certain(calls: list[Call]) -> list[Call]:
    """Those that are made each time. Descriptors are sorted with hundreds of comparisons, and memory is mapped piece by piece for a
    limited time: of these the first two."""
    return [call for call in calls if call.request not in (SYS_KCMP, PRE_FAULT_MEMORY) or call.number <= 2]


def call_faults(calls: list[Call]) -> Iterator[FailingCall]:
    """Each call of each side's part of a stage."""
    yield from (FailingCall(call.side, call.stage, call) for call in dict.fromkeys(calls))


# The incoming side's lines of update_go and update_claim: inject.c makes calls of them.
GO_LINE, CLAIM_LINE = (Call("incoming", "go", "write", number=number) for number in (1, 2))


def signal_faults(calls: list[Call]) -> Iterator[Signal]:
    """Before the first, middle and last call of each side's part of a stage, and between the guest's being claimed and its running."""
    for side, stage in dict.fromkeys((call.side, call.stage) for call in calls):
        mine = [call for call in calls if (call.side, call.stage) == (side, stage)]
        for call in dict.fromkeys([*first_middle_last(mine), *(call for call in mine if call == CLAIM_LINE)]):
            yield from (Signal(side, stage, call, number) for number in (signal.SIGKILL, signal.SIGSTOP))


def matrix(stages: list[Stage], calls: list[Call]) -> list[Fault]:
    """All faults, in the order of stages, so that those of one stage and side are together."""
    for stage in stages:
        assert all(any((call.side, call.stage) == (side, stage.name) for call in calls) for side in stage.sides), stage
    preparing = next(call for call in calls if (call.side, call.stage) == ("incoming", "prepare"))
    faults: list[Fault] = [*call_faults(calls), *signal_faults(calls), *message_faults(stages),
                           *(Shortage("incoming", "prepare", what) for what in SHORTAGES),
                           LateShortage("incoming", "prepare", preparing)]
    order = [stage.name for stage in stages]
    return sorted(faults, key=lambda fault: (order.index(fault.stage), fault.side))


def part_of(faults: list[Fault], back_end: str) -> list[Fault]:
    """What ./check has the time for: of each side's part of a stage an error and a kill, three processes that stand still, the
    other's death before every message, and after those from quiesce on (earlier, that is the same as before the next one), each
    other thing that can happen to one once, at stages in turn or at the go, one of what can happen to the answer to the go, all
    shortages, and one loss of the guest, after which the new process must not wait for ever. In a container only what is different
    there: errors and deaths in the stage in which ownership moves, and at the ends of those after it, with everything to be taken
    back."""
    early = ("hello", "describe", "prepare", "rehearse")
    faults = [fault for fault in faults if not (isinstance(fault, Message) and fault.action == "kill-after" and fault.stage in early)]
    if back_end == "container":
        faults = [fault for fault in faults if fault.stage in ("quiesce", "switch", "go")
                  and (not isinstance(fault, Message) or fault.is_death())]
    turns = {"describe": 0, "quiesce": 1, "switch": 2}
    stops = (("outgoing", "switch"), ("incoming", "switch"), ("incoming", "finish"))
    alike: dict[str, list[Fault]] = {}
    for fault in faults:
        if fault.is_loss():
            if isinstance(fault, Signal) and fault.stage == "hello":
                alike.setdefault("loss", [fault])
        elif isinstance(fault, FailingCall):
            alike.setdefault(f"error {fault.side} {fault.stage}", []).append(fault)
        elif isinstance(fault, Signal) and (fault.signal == signal.SIGKILL or (fault.side, fault.stage) in stops):
            alike.setdefault(f"{fault.signal} {fault.side} {fault.stage}", []).append(fault)
        elif isinstance(fault, Message) and fault.action.startswith("kill"):
            alike[str(fault)] = [fault]
        elif isinstance(fault, Message) and fault.stage == "go" and fault.is_answer():
            alike.setdefault("answer to the go", []).append(fault)
        elif isinstance(fault, Message) and (fault.stage == "go" or fault.action in BATCH_ACTIONS | STATE_ACTIONS):
            alike.setdefault(fault.action, []).append(fault)
        elif isinstance(fault, Message) and fault.action != "hang" and turns.get(fault.stage) == list(ACTIONS).index(fault.action) % 3:
            alike[fault.action] = [fault]
        elif isinstance(fault, (Shortage, LateShortage)):
            alike[str(fault)] = [fault]
    chosen = {some[len(some) // 2] for some in alike.values()}
    return [fault for fault in faults if fault in chosen]


SUBJECTS: dict[str, Subject] = {}


def generate(metafunc: pytest.Metafunc, choose: Callable[[list[Fault], str], list[Fault]], accounts: tuple[str, ...]) -> None:
    """For pytest_generate_tests: the tests of both back ends.
    @param accounts stages before which the load so far is asked for its last account, and a new one begins"""
    order = [row.name for row in Stage.table()]

    def phase(stage: str) -> str:
        return max((first for first in accounts if order.index(first) <= order.index(stage)), key=order.index)

    rows = []
    for name, iommufd in (("container", ""), ("iommufd", "iommufd0")):  # the last one's guest goes on to the first tests
        for other in SUBJECTS.values():
            other.end()
        subject = SUBJECTS[name] = Subject(iommufd)
        subject.start()
        subject.start_interrupts()  # they make calls, too
        faults = choose(matrix(Stage.table(), certain(subject.record())), name)
        subject.account()
        rows[:0] = [pytest.param((name, phase(fault.stage)), fault, id=f"{name}-{fault}") for fault in faults]
    metafunc.parametrize(("subject", "fault"), rows, indirect=["subject"], scope="module")


def account(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """The fixture "subject"."""
    subject = SUBJECTS[request.param[0]]
    for other in SUBJECTS.values():
        if other is not subject:
            other.end()
    yield subject
    subject.account()
