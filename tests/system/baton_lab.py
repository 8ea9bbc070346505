# SPDX-License-Identifier: Apache-2.0
"""What the system tests share: guests that run under baton in the lab machine (L1), and handles to all sides of them.

A Guest starts `baton run` with a console on a unix socket and a QMP socket, follows its process across updates, and ends
everything that it started, by process id. Nothing here depends on how fast the machine is: every wait is for an event, and
its limit is only there so that a hang becomes a failure with logs.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

BATON = os.environ.get("BATON", "/baton/build/baton")
KERNEL = os.environ.get("KERNEL", "/lab-kernel/bzImage")
VMLINUX = os.environ.get("VMLINUX", "/lab-kernel/vmlinux")  # the same kernel: guests have it, since unpacking takes a second
INITRD = os.environ.get("INITRD", "/lab-cache/guest-initrd.cpio")
ROOT_INITRD = os.environ.get("ROOT_INITRD") or None  # what a guest with root= needs: nothing, unless its drivers are modules
# The builds of tests/skew: same sources, newer state versions; another protocol; and so on.
SKEW = Path(os.environ.get("BATON_SKEW", "/baton/build/skew"))
NEXT = SKEW / "next" / "baton"
MEMORY = 128  # MiB that a guest has, unless a test says otherwise: pinning a page costs the emulated host as much as a system call
SANITIZED = "ASAN_OPTIONS" in os.environ  # ./check --sanitize: the program has sanitizers, and no sandbox
# What a guest of the lab does without: 512 old pseudo-terminals and virtualisation, a third of its time to boot.
APPEND = "console=ttyS0 quiet baton.quiet pty.legacy_count=0 initcall_blacklist=svm_init"
NVME_ROOT = "root=/dev/nvme0n1 rw init=/lab/guest-init"
PROMPT = "guest# "
PATIENCE = 120.0  # seconds: what a slow, busy machine may take for anything at all
BOOT_PATIENCE = 300.0  # seconds; it takes five to fifteen, and several times that on a slow, busy machine
STAGES = ("hello", "describe", "prepare", "rehearse", "quiesce", "pause", "switch", "go", "run", "finish")


LIBC = ctypes.CDLL(None, use_errno=True)
SYS_PIDFD_GETFD = 438  # <asm/unistd_64.h>; Python has no function for it

# What a guest's kernel says first when something is badly wrong.
COMPLAINT = re.compile(r"BUG: |Oops|kernel BUG|general protection|unable to handle|stack guard|double fault|Kernel panic|Call Trace")


def copy_descriptor(pid: int, number: int) -> int:
    """A descriptor of this process's for what another one has open."""
    process = os.pidfd_open(pid)
    try:
        copy = LIBC.syscall(SYS_PIDFD_GETFD, process, number, 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return copy
    finally:
        os.close(process)


class LabError(AssertionError):
    """Something that a test waited for did not happen; the message says what there was instead."""


class LabTimeout(LabError):
    """It did not happen in time."""


def wait_for(what: str, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Polls until condition() is true, and returns its value. What takes long is asked for less often: asking costs the guest,
    too, and there are two processors for it all."""
    start = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - start
        if waited > patience:
            raise LabTimeout(f"{what}: not within {patience:.0f} s")
        time.sleep(min(max(0.02, waited / 10), 0.5))


def run(*words: str | Path, check: bool = True, patience: float = PATIENCE, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program of L1 and captures what it prints."""
    done = subprocess.run([str(word) for word in words], text=True, capture_output=True, timeout=patience,
                          stdin=subprocess.DEVNULL, check=False, **options)
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(done.args)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


# ---- devices of L1 ----

def bind(*addresses: str) -> None:
    """Hands PCI devices to vfio-pci; "all" stands for everything that can be passed through."""
    run("/baton/lab/bind", *addresses)


def unbind(*addresses: str) -> None:
    run("/baton/lab/bind", "--undo", *addresses)


def pci_driver(address: str) -> str:
    path = Path(f"/sys/bus/pci/devices/0000:{address}/driver")
    return path.readlink().name if path.exists() else ""


def nvme_guest(*options: str, **more: Any) -> Guest:
    """A guest whose root file system is on the passed-through NVMe drive at 01:00.0; iommufd="" puts that in a container."""
    append = f"{NVME_ROOT} {more.pop('append', '')}".strip()
    iommufd = more.pop("iommufd", "iommufd0")
    words = vfio_options("01:00.0", ident="nvme0", iommufd=iommufd) if more.pop("device", True) else []
    return Guest(*words, *options, initrd=None, append=append, **more)


def vfio_options(address: str, *, ident: str, iommufd: str = "iommufd0", declare: bool = True, more: str = "") -> list[str]:
    """Options for one passed-through device, with the iommufd object unless it was declared before; iommufd="" stands for
    a legacy container."""
    words = ["-object", f"iommufd,id={iommufd}"] if declare and iommufd else []
    space = f",iommufd={iommufd}" if iommufd else ""
    return words + ["-device", f"vfio-pci,host={address}{space},id={ident}{more}"]


# ---- processes ----

USER = 1000


def as_user(locked: int | None = None, user: int = USER) -> tuple[str, ...]:
    """Runs a program as a user without any capability.
    @param locked limit on locked memory, in bytes"""
    limit = "unlimited" if locked is None else str(locked)
    return ("prlimit", f"--memlock={limit}", "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all",
            "--bounding-set=-all")


def user_directory(name: str) -> Path:
    """A new one that belongs to the user as whom guests are run."""
    directory = Path(tempfile.mkdtemp(prefix=f"{name}."))
    os.chown(directory, USER, USER)
    return directory


def give_nodes() -> None:
    """To the user as whom guests are run: all that baton needs of root."""
    for node in (Path("/dev/kvm"), Path("/dev/iommu"), *Path("/dev/vfio").rglob("*")):
        if node.is_char_device():
            os.chown(node, USER, USER)


def status_field(pid: int, name: str) -> int:
    """A number of /proc/PID/status (sizes in KiB), 0 when it is not there."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


def open_files(pid: int) -> list[str]:
    names = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            names.append(os.readlink(path))
        except FileNotFoundError:
            pass
    return sorted(names)


def vfio_files(pid: int) -> dict[str, int]:
    """How many descriptors of each kind a process has for passing devices through."""
    names = open_files(pid)
    return {"containers": names.count("/dev/vfio/vfio"),
            "groups": len([name for name in names if re.fullmatch(r"/dev/vfio/\d+", name)]),
            "iommufds": names.count("/dev/iommu"),
            "cdevs": len([name for name in names if name.startswith("/dev/vfio/devices/")]),
            "kvm": names.count("anon_inode:kvm-vfio")}


def thread_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def is_alive(pid: int) -> bool:
    """Whether it exists and has not ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


PF_KTHREAD = 0x00200000  # <linux/sched.h>
KERNEL_THREADS: set[str] = set()  # known to be some; they live on


def environment_of(pid: str) -> bytes:
    """NAME=VALUE, each with a zero byte around it."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        environment = file.read()
    if not environment and int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[6]) & PF_KTHREAD:
        KERNEL_THREADS.add(pid)
    return b"\0" + environment + b"\0"


def processes_with(variable: str) -> list[int]:
    """Processes whose environment holds NAME=VALUE; how a Guest finds what descended from it."""
    wanted = b"\0" + variable.encode() + b"\0"
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid() and pid not in KERNEL_THREADS:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if wanted in environment_of(pid):
                    found.append(int(pid))
    return [pid for pid in sorted(found) if is_alive(pid)]


def has_ended(pid: int) -> bool:
    """Whether nothing of a process is left but its exit status. A process loses its environment, by which it is found, before
    it lets go of its devices."""
    try:
        return not is_alive(pid) and len(list(Path(f"/proc/{pid}/task").iterdir())) <= 1
    except (FileNotFoundError, ProcessLookupError):
        return True


def end_process(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


# ---- QMP ----

class QmpError(Exception):
    """The server's answer was an error."""

    def __init__(self, command: str, error: dict[str, Any]) -> None:
        super().__init__(f"{command}: {error}")
        self.error_class: str = error.get("class", "")
        self.desc: str = error.get("desc", "")


class Qmp:
    """A QMP client of our own, which hides nothing: raw() and read() are there for tests of the protocol itself."""

    def __init__(self, path: Path | str, *, negotiate: bool = True, patience: float = PATIENCE) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(patience)
        wait_for(f"connection to {path}", lambda: self._try_connect(path), patience)
        self.received = b""
        self.events: list[dict[str, Any]] = []
        self.greeting = self.read()
        if negotiate:
            self.execute("qmp_capabilities")

    def _try_connect(self, path: Path | str) -> bool:
        try:
            self.socket.connect(str(path))
            return True
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> dict[str, Any]:
        """The next message, whatever it is. EOFError when the server has closed."""
        while b"\n" not in self.received:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError("the QMP server has closed the connection")
            self.received += data
        line, self.received = self.received.split(b"\n", 1)
        return json.loads(line)

    def answer(self) -> dict[str, Any]:
        """The next message that is no event; events go to self.events."""
        while "event" in (message := self.read()):
            self.events.append(message)
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        """Executes a command; underscores in argument names stand for dashes."""
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.raw(json.dumps(message).encode() + b"\n")
        answer = self.answer()
        if "error" in answer:
            raise QmpError(command, answer["error"])
        return answer["return"]

    def event(self, name: str, **data: Any) -> dict[str, Any]:
        """Waits for an event with this data, drops those before it, and returns it."""
        while True:
            message = self.events.pop(0) if self.events else self.read()
            if message.get("event") == name and all(message.get("data", {}).get(k) == v for k, v in data.items()):
                return message

    def drain_events(self) -> list[str]:
        """Names of all events so far (a command in between makes sure that none is under way)."""
        self.execute("query-status")
        names = [event["event"] for event in self.events]
        self.events.clear()
        return names


# ---- console ----

class Console:
    """The guest's serial console: a client of a unix socket, or any pair of byte functions."""

    def __init__(self, receive: Callable[[], bytes], send: Callable[[bytes], Any], close: Callable[[], Any]) -> None:
        self._receive, self._send, self.close = receive, send, close
        self.log = bytearray()  # everything that ever came
        self.position = 0  # up to where tests have looked
        self.tokens = 0
        self.check: Callable[[], None] = lambda: None  # raises when there is nothing to wait for any more

    @classmethod
    def on_socket(cls, path: Path | str, patience: float = PATIENCE) -> Console:
        client = socket.socket(socket.AF_UNIX)

        def connect() -> bool:
            try:
                client.connect(str(path))
                return True
            except (FileNotFoundError, ConnectionRefusedError):
                return False

        wait_for(f"console at {path}", connect, patience)
        client.settimeout(0.2)

        def receive() -> bytes:
            try:
                data = client.recv(65536)
            except TimeoutError:
                return b""
            if not data:
                raise EOFError
            if len(data) < 64:
                time.sleep(0.01)  # the guest sends a byte at a time: taking each at once would only slow it down
            return data

        return cls(receive, client.sendall, client.close)

    @classmethod
    def on_descriptor(cls, readable: int, writable: int) -> Console:
        """A terminal or a pair of pipes."""
        os.set_blocking(readable, False)

        def receive() -> bytes:
            try:
                data = os.read(readable, 65536)
            except BlockingIOError:
                time.sleep(0.02)
                return b""
            except OSError:  # a pty whose other end has closed
                raise EOFError from None
            if not data:
                raise EOFError
            return data

        return cls(receive, lambda data: os.write(writable, data), lambda: None)

    @property
    def text(self) -> str:
        return self.log.decode(errors="replace").replace("\r", "")

    def send(self, text: str) -> None:
        self._send(text.encode())

    def wait(self, pattern: str, patience: float = PATIENCE) -> re.Match[bytearray]:
        """Waits for output that matches, from where the last wait ended. A match is a short thing: what was searched
        in vain is not searched again, but for its end."""
        expression = re.compile(pattern.encode())
        deadline = time.monotonic() + patience
        searched = self.position
        while True:
            found = expression.search(self.log, searched)
            searched = max(self.position, len(self.log) - 256)
            if found:
                self.position = found.end()
                return found
            if time.monotonic() > deadline:
                raise LabError(f"console: {pattern!r} did not come in {patience:.0f} s")
            try:
                received = self._receive()
            except EOFError:
                raise LabError(f"console: closed before {pattern!r} came") from None
            if not received:
                self.check()
            self.log += received

    def wait_for_end(self, patience: float = PATIENCE) -> None:
        """Reads until the other side closes."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            try:
                self.log += self._receive()
            except (EOFError, ConnectionResetError):
                return
        raise LabError("console: still open")

    def wait_prompt(self, patience: float = BOOT_PATIENCE) -> None:
        """Waits for the guest's shell and makes it quiet: no echo, so that what comes is output."""
        self.wait(re.escape(PROMPT), patience)
        self.send("stty -echo 2>/dev/null; PS2=\n")
        self.command("true")

    def start(self, command: str) -> str:
        """Types a command; finish() with the token that it returns waits for its end."""
        self.tokens += 1
        token = f"t{self.tokens}"
        self.send(f"{command}\nprintf '@%s:%d@\\n' {token} $?\n")
        return token

    def finish(self, token: str, patience: float = PATIENCE) -> tuple[int, str]:
        begin = self.position
        end = self.wait(rf"@{token}:(\d+)@\r?\n", patience)
        self.wait(re.escape(PROMPT))  # so that nobody takes this one for that of a guest that has just come up
        output = self.log[begin:end.start()].decode(errors="replace").replace("\r", "").replace(PROMPT, "")
        return int(end[1]), output.strip("\n")

    def status(self, command: str, patience: float = PATIENCE) -> tuple[int, str]:
        """Runs a command in the guest; its exit status and output."""
        return self.finish(self.start(command), patience)

    def command(self, command: str, patience: float = PATIENCE) -> str:
        """The same for a command that must succeed."""
        status, output = self.status(command, patience)
        if status != 0:
            raise LabError(f"guest: {command!r}: exit status {status}\n{output}")
        return output


# ---- guests ----

@dataclass
class Update:
    """What `baton update` did."""

    status: int
    output: str
    errors: str
    stages: dict[str, float] = field(default_factory=dict)  # milliseconds
    blackout_ms: float | None = None
    total_ms: float | None = None
    predicted_ms: float | None = None  # of a dry run

    @classmethod
    def parse(cls, done: subprocess.CompletedProcess[str]) -> Update:
        update = cls(done.returncode, done.stdout, done.stderr)
        for name, ms in re.findall(r"^  (\w+) +([\d.]+) ms", done.stdout, re.M):
            update.stages[name] = float(ms)
        summary = re.search(r"blackout ([\d.]+) ms, total ([\d.]+) ms", done.stdout)
        if summary:
            update.blackout_ms, update.total_ms = float(summary[1]), float(summary[2])
        prediction = re.search(r"predicted blackout ([\d.]+) ms", done.stdout)
        if prediction:
            update.predicted_ms = float(prediction[1])
        return update


def page_walk(memory: BinaryIO, cr3: int, address: int) -> str:
    """The entries that lead to an address, from the top down."""
    table, entries = cr3, []
    for shift in (39, 30, 21, 12):
        memory.seek((table & 0x000F_FFFF_FFFF_F000) + (address >> shift & 511) * 8)
        table = int.from_bytes(memory.read(8), "little")
        entries.append(f"{table:#x}")
        if not table & 1 or (table & 0x80 and shift != 12):  # not present, a large page
            break
    return f"{address:#x}: {' '.join(entries)}"


class Guest:
    """One guest and the processes that run it, from first to last. Use it as a context manager."""

    count = 0
    living: list[Guest] = []  # not destroyed yet: conftest.py reports them when a test fails

    def __init__(self, *options: str, memory: str = f"{MEMORY}M", cpus: int = 1, kernel: str = VMLINUX, initrd: str | None = INITRD,
                 append: str = "", serial: str | None = None, binary: str | Path = BATON, name: str | None = None,
                 wrapper: tuple[str, ...] = as_user()) -> None:
        Guest.count += 1
        Guest.living.append(self)
        self.cpus = cpus
        self.name = name or f"guest{Guest.count}"
        self.directory = user_directory(self.name)
        self.binary = str(binary)
        self.wrapper = wrapper  # a program that runs another one, as another user or with other limits
        self.qmp_path = self.directory / "qmp"
        self.console_path = self.directory / "console"
        self.log_path = self.directory / "log"
        self.runtime = self.directory / "run"
        self.environment = os.environ | {"BATON_RUNTIME_DIR": str(self.runtime)}
        self.serial = serial or f"unix:{self.console_path},server=on,wait=off"
        initrd = initrd or ROOT_INITRD
        append = f"{APPEND} {append}".strip()
        self.options = ["-name", self.name, "-m", memory, "-smp", str(cpus), "-nodefaults", "-display", "none",
                        "-serial", self.serial, "-qmp", f"unix:{self.qmp_path},server=on,wait=off", *options,
                        "-kernel", kernel, "-append", append, *(["-initrd", initrd] if initrd else [])]
        self.process: subprocess.Popen[bytes] | None = None
        self.consoles: list[Console] = []
        self.clients: list[Qmp] = []
        self.updates: list[Update] = []
        self.incoming: Incoming | None = None  # the one that start_incoming() has started last

    # -- life --

    def start(self, **options: Any) -> Guest:
        give_nodes()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen([*self.wrapper, self.binary, "run", *self.options], env=self.environment, stderr=log,
                                            **({"stdin": subprocess.DEVNULL, "stdout": log} | options))
        return self

    def boot(self) -> Guest:
        """Starts, and waits for the guest's shell."""
        self.start()
        self.console.wait_prompt()
        return self

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(self.report())
        self.destroy()

    def destroy(self) -> None:
        """Ends whatever is left, by process id, and waits until its devices are free."""
        if self not in Guest.living:
            return
        Guest.living.remove(self)
        for console in self.consoles:
            console.close()
        for client in self.clients:
            client.close()
        processes = self.processes()
        for pid in processes:
            end_process(pid)
        if self.process:
            self.process.wait(PATIENCE)
        wait_for(f"the end of {self.name}'s processes", lambda: all(map(has_ended, processes)) and not self.processes())
        refused = self.refused_calls()
        shutil.rmtree(self.directory, ignore_errors=True)
        if refused:
            raise LabError(f"{self.name}: baton made system calls that are on no list: {refused}")

    def refused_calls(self) -> list[str]:
        """What a process of this guest has called that its sandbox does not let through."""
        logs = [path.read_text(errors="replace") for path in self.directory.glob("*log")]
        return [line for text in [*logs, *(update.errors for update in self.updates)] for line in text.splitlines()
                if "was refused system call" in line]

    def report(self) -> str:
        """What a person needs who must find out why a test failed."""
        parts = [f"==== {self.name}: {' '.join(self.options)}", f"processes: {self.processes()}",
                 f"---- log\n{self.log[-8000:]}"]
        for console in self.consoles:
            try:
                console.log += console._receive()  # what it said last
            except (OSError, EOFError):
                pass
            # without what Console.finish() waited for, of which there may be thousands
            said = re.sub(rf"^(({re.escape(PROMPT)})*@t\d+:\d+@\n)+", "", console.text, flags=re.M)
            complaint = COMPLAINT.search(said)
            if complaint and complaint.start() < len(said) - 6000:
                parts.append(f"---- console, where its kernel began to complain\n{said[max(complaint.start() - 1000, 0):][:5000]}")
            parts.append(f"---- console\n{said[-6000:]}")
            parts += self.page_walks(said)
        for update in self.updates[-2:]:
            parts.append(f"---- baton update: exit status {update.status}\n{update.output}{update.errors}")
        return "\n".join(parts)

    @property
    def memory_file(self) -> Path:
        """The memfd that is its memory: up to 3 GiB, an offset in it is an address of the guest."""
        files = Path(f"/proc/{self.processes()[0]}/fd").iterdir()
        return next(file for file in files if str(file.readlink()).startswith("/memfd:baton.ram"))

    def page_walks(self, said: str) -> list[str]:
        """For kernel stacks in the registers of a guest's kernel that has died: whether it is its page tables that are wrong, or
        how they were read."""
        cr3 = re.findall(r"\bCR3: ([0-9a-f]+)", said)
        if not cr3 or not self.processes():
            return []
        addresses = dict.fromkeys(re.findall(r"\bffffc9[0-9a-f]{10}\b", said))
        with self.memory_file.open("rb") as memory:
            walks = [page_walk(memory, int(cr3[-1], 16), int(address, 16)) for address in list(addresses)[:20]]
        return ["---- page tables, as they are in its memory", *walks]

    @property
    def log(self) -> str:
        """Standard error of all processes of this guest."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def processes(self) -> list[int]:
        return processes_with(f"BATON_RUNTIME_DIR={self.runtime}")

    @property
    def pid(self) -> int:
        """The process that runs the guest now, as `baton list` says."""
        for line in self.list().splitlines()[1:]:
            words = line.split()
            if words[0] == self.name:
                return int(words[1])
        raise LabError(f"{self.name} is not in baton list:\n{self.list()}")

    def list(self) -> str:
        return run(*self.wrapper, self.binary, "list", env=self.environment).stdout

    def exit_status(self, patience: float = PATIENCE) -> int:
        """Waits for the end of the first process."""
        assert self.process
        return self.process.wait(patience)

    def wait_gone(self, patience: float = PATIENCE) -> None:
        """Waits until no process of the guest is left, wherever it ran last."""
        def gone() -> bool:
            if self.process:
                self.process.poll()
            return not self.processes()
        wait_for(f"the end of {self.name}", gone, patience)

    # -- handles --

    @property
    def console(self) -> Console:
        if not self.consoles:
            self.consoles.append(Console.on_socket(self.console_path))
            self.consoles[-1].check = self.check_not_failed
        return self.consoles[-1]

    @property
    def qmp(self) -> Qmp:
        """A client of the guest's present process."""
        if not self.clients:
            self.connect_qmp()
        return self.clients[-1]

    def connect_qmp(self, *, negotiate: bool = True) -> Qmp:
        client = Qmp(self.qmp_path, negotiate=negotiate)
        self.clients.append(client)
        return client

    def command(self, command: str, patience: float = PATIENCE) -> str:
        return self.console.command(command, patience)

    def first_line(self, path: str) -> str:
        """Of a file in the guest, empty if there is none: read by the shell itself, so that asking often costs little."""
        return self.command(f"line=; {{ read -r line <{path}; }} 2>/dev/null; echo \"$line\"")

    def kernel_log(self, pattern: str) -> list[str]:
        """Lines of the guest's kernel log that match. The guest selects them: its console is slow."""
        return self.command(f"dmesg | grep -iE '{pattern}' || true").splitlines()

    def check_kernel_log(self) -> None:
        """The guest's kernel has seen nothing unusual, least of all from its devices."""
        unusual = ("nvme.*(timeout|reset|abort|error)|I/O error|I/O.*timeout|BUG: |WARNING: |Call Trace|rcu.* stall|lockup|"
                   "nobody cared|unchecked MSR|EXT4-fs error")
        lines = [line for line in self.kernel_log(unusual) if "mounting unchecked fs" not in line]  # after a reset
        assert lines == []

    def run_status(self) -> str:
        with Qmp(self.qmp_path) as qmp:
            return qmp.execute("query-status")["status"]

    # -- in the guest --

    def put(self, path: str, content: str | bytes) -> None:
        """Writes a file in the guest, in pieces that a terminal line takes."""
        data = base64.b64encode(content.encode() if isinstance(content, str) else content).decode()
        self.command(f": > {path}.b64")
        for start in range(0, len(data), 3000):
            self.command(f"printf %s {data[start:start + 3000]} >> {path}.b64")
        self.command(f"base64 -d < {path}.b64 > {path}")

    def put_program(self, path: str, source: Path) -> None:
        """Copies a program of L1 into the guest; small ones only, the console is slow."""
        self.put(f"{path}.gz", gzip.compress(source.read_bytes()))
        self.command(f"gunzip < {path}.gz > {path} && chmod +x {path}")

    def interrupts(self, pattern: str) -> int:
        """How many interrupts the guest has handled, of lines of /proc/interrupts that match."""
        total = 0
        for line in self.command(f"grep -E '{pattern}' /proc/interrupts || true").splitlines():
            total += sum(int(word) for word in line.split(":", 1)[1].split()[:self.cpus] if word.isdigit())
        return total

    # -- updates --

    def update_words(self, *options: str) -> list[str]:
        """The command line of `baton update`, as the user whose guest it is."""
        return [*self.wrapper, self.binary, "update", self.name, *options]

    def update(self, *options: str, binary: str | Path | None = None, check: bool = True) -> Update:
        """`baton update`, as an operator types it. Handles to the former process are dropped."""
        words = self.update_words("--timeout", str(int(PATIENCE)), *options)
        if binary:
            words += ["--binary", str(binary)]
        update = Update.parse(run(*words, check=False, env=self.environment, patience=PATIENCE + 30))
        self.updates.append(update)
        if check and update.status != 0:
            raise LabError(f"baton update: exit status {update.status}\n{update.output}{update.errors}")
        if update.status == 0 and "--dry-run" not in options:
            self.drop_clients()
        return update

    def drop_clients(self) -> None:
        """The process that handed over stays for its clients: without them it ends."""
        for client in self.clients:
            client.close()
        self.clients.clear()

    def check_not_failed(self) -> None:
        """Spares those who wait for a guest that KVM has given up the rest of their time limit."""
        if "; the guest is stopped" in self.log:
            raise LabError(f"the guest has failed:\n{self.log[-2000:]}")

    def check_alive(self) -> None:
        """The guest computes, its console goes both ways, and exactly one process runs it."""
        assert self.command("echo $((6 * 7))") == "42"
        assert self.run_status() == "running"
        wait_for("one process only", lambda: self.processes() == [self.pid])


    def start_incoming(self, *options: str, binary: str | Path | None = None) -> Incoming:
        """Starts the process that shall take over, with nothing but these options and the channel."""
        self.incoming = Incoming(self, options, str(binary or self.binary))
        return self.incoming

    def hand_over(self, path: Path | str, outcome: str | None = "completed", **more: Any) -> dict[str, Any]:
        """Drives a hand-over through QMP, in the words of QEMU's documentation; returns what query-migrate says.
        @param outcome which status it must end in; None: in any"""
        qmp = self.qmp
        qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
        qmp.execute("migrate-set-parameters", mode="cpr-transfer")
        qmp.execute("migrate", channels=[cpr_channel(path)], **more)
        while (status := qmp.event("MIGRATION")["data"]["status"]) not in ("completed", "failed", "cancelled", "rehearsed"):
            pass
        answer = qmp.execute("query-migrate")
        if outcome not in (None, status):
            raise LabError(f"the hand-over ended '{status}', not '{outcome}': {answer}")
        return answer


class Incoming:
    """A process that waits for a guest on a cpr channel; it ends with the guest."""

    count = 0

    def __init__(self, guest: Guest, options: tuple[str, ...], binary: str) -> None:
        Incoming.count += 1
        self.guest = guest
        self.path = guest.directory / f"cpr{Incoming.count}"
        self.log_path = guest.directory / f"incoming{Incoming.count}.log"
        words = [*guest.wrapper, binary, "run", *options, "-incoming", json.dumps(cpr_channel(self.path))]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(words, env=guest.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def is_listening(self) -> bool:
        return any(line.split()[-1] == str(self.path) for line in Path("/proc/net/unix").read_text().splitlines())

    def wait_listening(self) -> Incoming:
        wait_for(f"the incoming process ({self.log})", self.is_listening)
        return self

    def exit_status(self) -> int:
        return self.process.wait(PATIENCE)


def through_proxy(guest: Guest, action: str, stage: str, outcome: str | None = "failed") -> str:
    """A hand-over that comes to harm at a stage; see proxy.py. @return the reason that the outgoing side gives, if it failed"""
    incoming = guest.start_incoming("-trace", "update_*").wait_listening()
    path = guest.directory / f"proxy{Incoming.count}"
    words = [*guest.wrapper, sys.executable, str(Path(__file__).with_name("proxy.py")), str(path), str(incoming.path), action, stage,
             str(incoming.pid)]
    with subprocess.Popen(words, env=guest.environment, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            report = guest.hand_over(path, outcome)
            if report["status"] == "failed":
                incoming.exit_status()
        finally:
            proxy.kill()
            said, _ = proxy.communicate()
    assert said == "done\n", f"the proxy has not done '{action}' at '{stage}'"
    return report.get("error-desc", "")


EDU_DRIVER = Path(BATON).parent / "tests/edu-driver"


class Edu:
    """edu_driver.c at work in the guest, which has an edu device at `address`."""

    # Microseconds between two interrupts, where others have work to do in the guest: hundreds a second, in a fraction of its time.
    REST = 2000

    def __init__(self, guest: Guest, address: str, mode: str, directory: str = "/tmp/edu", rest: int = 0) -> None:
        self.guest, self.directory = guest, directory
        if guest.console.status("test -x /tmp/edu-driver")[0] != 0:
            guest.put_program("/tmp/edu-driver", EDU_DRIVER)
        guest.command(f"rm -rf {directory}; mkdir {directory}")
        guest.command(f"(setsid /tmp/edu-driver {address} {directory} {mode} {rest} </dev/null >{directory}/log 2>&1 &)")

    def content(self, name: str) -> str:
        return self.guest.first_line(f"{self.directory}/{name}")

    def check(self) -> int:
        """It has found nothing to complain of. In one command, and none but the shell's own: a guest takes its time.
        @return how many interrupts it has raised so far"""
        read = f"for name in log result progress; do line=; {{ read -r line <{self.directory}/$name; }} 2>/dev/null; echo -n \"$line|\"; done"
        log, result, progress, _ = self.guest.command(f"{read}; echo").split("|")
        assert log == "" and result in ("", "ok")
        return int(progress or 0)

    @property
    def raised(self) -> int:
        return self.check()

    def wait_for_more(self, more: int = 20) -> None:
        wanted = self.raised + more
        wait_for(f"{wanted} interrupts", lambda: self.raised >= wanted)

    def wait_step(self, number: int) -> None:
        def reached() -> bool:
            self.check()
            return self.guest.console.status(f"test -e {self.directory}/step{number}")[0] == 0
        wait_for(f"step {number}", reached)

    def go(self, number: int) -> None:
        self.guest.command(f"touch {self.directory}/go{number}")

    def result(self) -> str:
        return wait_for("its result", lambda: self.content("result"))

    def stop(self) -> EduCounts:
        self.guest.command(f"touch {self.directory}/stop")
        return EduCounts(*map(int, self.result().split()))


@dataclass
class EduCounts:
    """What the driver counted. Nothing is lost or doubled when handled equals raised."""

    raised: int
    handled: int
    in_kernel: int  # counted by the guest's kernel, on the whole line
    spurious: int  # INTx without a cause, which levels allow
    copies: int
    mistakes: int
    status: int  # the device's interrupt status at the end: not zero if it waits for someone to handle an interrupt

    def check(self) -> None:
        assert self.raised == self.handled and self.status == 0, self
        assert self.mistakes == 0 and self.copies > 0, self


class Trace:
    """What the emulator saw of the devices (lab/run --trace), while it was watched: evidence from outside."""

    def __init__(self, path: Path = Path("/results/trace.log")) -> None:
        self.path = path
        self.lines: list[str] = []

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        start = self.path.stat().st_size
        yield
        with self.path.open() as file:
            file.seek(start)
            self.lines += file.read().splitlines()

    def check_untouched(self, *devices: str) -> None:
        """Nobody has reset these devices or set them up anew: the configuration space of neither them nor the ports above
        them was written, but for INTx disable, with which VFIO masks an interrupt."""
        for line in self.lines:
            written = re.search(r"pci_cfg_write (\S+) (\S+) @(0x\w+) <- (0x\w+)", line)
            if not written or written[1] not in (*devices, "pcie-root-port"):
                continue
            is_command = written[1] in devices and int(written[3], 16) == 4
            assert is_command and int(written[4], 16) & 6 == 6, line


class FioLoad:
    """fio writes and verifies in the guest, over and over, until it is told to stop: no matter how long that takes. Its rate leaves
    processor time to what is tested, and is a request every few milliseconds all the same."""

    COMMAND = ("fio --name=load --filename={target} --size={size} --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio"
               " --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --randrepeat=0 --minimal --rate_iops={rate}")

    def __init__(self, guest: Guest, target: str, size: str = "256k", rate: int = 128) -> None:
        self.guest = guest
        command = self.COMMAND.format(target=target, size=size, rate=rate)
        guest.put("/tmp/load", f"""
            n=0
            while [ ! -e /tmp/load.stop ]; do
                {command} >/tmp/load.out 2>&1 || break
                n=$((n + 1))
                echo $n >/tmp/load.rounds
            done
            [ -e /tmp/load.stop ] && echo verified >/tmp/load.end || echo failed >/tmp/load.end
        """)
        guest.command("rm -f /tmp/load.stop /tmp/load.end /tmp/load.rounds; (setsid sh /tmp/load </dev/null >/dev/null 2>&1 &)")
        self.wait_rounds(1)

    @property
    def rounds(self) -> int:
        return int(self.guest.first_line("/tmp/load.rounds") or 0)

    def wait_rounds(self, more: int) -> None:
        """Waits until this many further rounds have been written and verified."""
        wanted = self.rounds + more

        def reached() -> bool:
            if self.guest.console.status("test -e /tmp/load.end")[0] == 0:
                raise LabError("fio failed:\n" + self.guest.command("cat /tmp/load.out"))
            return self.rounds >= wanted
        self._wait(f"round {wanted} of fio", reached)

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        """If it does not happen: was it fio that waited, and for which device?"""
        try:
            wait_for(what, condition, 300)
        except LabTimeout as error:
            clocks = self.guest.console.status("cat /proc/uptime; grep LOC /proc/interrupts")[1]
            time.sleep(2)
            _, state = self.guest.console.status(
                "cat /proc/uptime; grep LOC /proc/interrupts; grep -H . /sys/block/*/inflight | grep -v ' 0 *0$'; "
                "grep MSI /proc/interrupts; ps axo pid,stat,time,wchan,args | grep [f]io; dmesg | tail -n 5")
            raise LabError(f"{error}; the guest's state:\n{clocks}\n{state}") from None

    def stop(self) -> int:
        """Ends it after its present round. @return how many rounds there were, every byte verified"""
        self.guest.command("touch /tmp/load.stop")
        self._wait("the end of fio", lambda: self.guest.console.status("test -e /tmp/load.end")[0] == 0)
        if self.guest.command("cat /tmp/load.end") != "verified":
            raise LabError("fio failed:\n" + self.guest.command("cat /tmp/load.out"))
        return self.rounds


def cpr_channel(path: Path | str) -> dict[str, Any]:
    return {"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix", "path": str(path)}}


def main_channel() -> dict[str, Any]:
    """QEMU's channel for device state; baton accepts it, and needs none."""
    return {"channel-type": "main", "addr": {"transport": "socket", "type": "inet", "host": "0", "port": "44444"}}
