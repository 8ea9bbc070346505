# SPDX-License-Identifier: Apache-2.0
# lab: --memory 8192
"""The boundaries of docs/threat-model.md, of a process of baton that runs: filters of system calls in every thread, and what
happens to a call that is on no list; memory that cannot shrink; descriptors that no program inherits; other users of the host.
(All other files run with the filters on, too, and fail if a call of baton's own is refused: Guest.destroy(). Each list, call by
call: test_sandbox.c.)"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baton_lab import BATON, SANITIZED, USER, Guest, as_user, cpr_channel, is_alive, run, wait_for
from injection import inject

MakeGuest = Callable[..., Guest]
GETPID, OPENAT, EXECVE = 39, 257, 59
OTHER_USER = USER + 1

needs_filters = pytest.mark.skipif(SANITIZED, reason="a build with sanitizers has no sandbox")


def threads(pid: int) -> dict[str, int]:
    return {(task / "comm").read_text().strip(): int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()}


def filtered(pid: int) -> dict[str, tuple[str, str]]:
    """Of each thread: its mode of seccomp (2: there is a filter), and whether it can gain privileges (1: it cannot)."""
    found = {}
    for name, thread in threads(pid).items():
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines())
        found[name] = (lines["Seccomp"].strip(), lines["NoNewPrivs"].strip())
    return found


def filters(pid: int, thread: str) -> int:
    """How many filters a thread has: its own on top of the main thread's."""
    for line in Path(f"/proc/{pid}/task/{threads(pid)[thread]}/status").read_text().splitlines():
        if line.startswith("Seccomp_filters:"):
            return int(line.split()[1])
    raise AssertionError("this kernel does not say how many filters there are")


def check_filtered(pid: int, *names: str) -> None:
    found = filtered(pid)
    assert set(names) <= set(found), found
    assert set(found.values()) == {("2", "1")}, found
    own = int(filters(pid, "baton"))
    for name in names:
        assert filters(pid, name) == own + 1, name


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(cpus=2) as guest:
        yield guest.boot()


def test_version_says_whether_there_are_filters() -> None:
    line = "sandbox: none, because of sanitizers" if SANITIZED else "sandbox: system call filters"
    assert run(BATON, "version").stdout.splitlines()[2] == line


@needs_filters
def test_every_thread_is_filtered(guest: Guest) -> None:
    """From the first process to the next; and the incoming one before anybody has said anything to it."""
    check_filtered(guest.pid, "vcpu/0", "vcpu/1", "irq-proxy")
    guest.update()
    check_filtered(guest.pid, "vcpu/0", "vcpu/1", "irq-proxy")
    incoming = guest.start_incoming().wait_listening()
    check_filtered(incoming.pid)
    os.kill(incoming.pid, signal.SIGKILL)
    incoming.exit_status()


@needs_filters
def test_thread_of_a_hand_over_is_filtered(guest: Guest) -> None:
    incoming = guest.start_incoming().wait_listening()
    os.kill(incoming.pid, signal.SIGSTOP)
    guest.qmp.execute("migrate-set-parameters", mode="cpr-transfer")
    guest.qmp.execute("migrate", channels=[cpr_channel(incoming.path)])
    wait_for("the thread of the hand-over", lambda: "hand-over" in threads(guest.pid))
    check_filtered(guest.pid, "hand-over")
    os.kill(incoming.pid, signal.SIGKILL)
    wait_for("its end", lambda: guest.qmp.execute("query-migrate")["status"] == "failed")
    incoming.exit_status()
    guest.drop_clients()
    guest.check_alive()


@needs_filters
def test_forbidden_call_is_refused(guest: Guest) -> None:
    """A thread that may not open files tries to: the kernel does not, and says SIGSYS instead. What baton makes of that is in
    test_sandbox.c; here the tracer takes the signal, so that the thread sleeps on, and the guest is as before."""
    pid = guest.pid
    guest.qmp.execute("stop")
    vcpu = threads(pid)["vcpu/0"]
    assert inject(pid, vcpu, GETPID) == pid, "what is on the list is carried out"
    assert inject(pid, vcpu, OPENAT, -100, 0, 0) == signal.SIGSYS
    guest.qmp.execute("cont")
    guest.check_alive()
    guest.update()
    guest.check_alive()


@needs_filters
def test_execve_ends_the_process(make_guest: MakeGuest) -> None:
    guest = make_guest().boot()
    guest.qmp.execute("stop")
    pid = guest.pid
    assert inject(pid, threads(pid)["vcpu/0"], EXECVE, 0, 0, 0) == signal.SIGSYS
    assert guest.exit_status() == -signal.SIGSYS


@needs_filters
def test_off_and_on(make_guest: MakeGuest) -> None:
    """An option of the host's side: each process has its own."""
    guest = make_guest("-sandbox", "off").boot()
    assert set(filtered(guest.pid).values()) == {("0", "0")}
    guest.update()
    check_filtered(guest.pid, "vcpu/0", "irq-proxy")
    incoming = guest.start_incoming("-sandbox", "off").wait_listening()
    guest.hand_over(incoming.path)
    guest.drop_clients()
    assert guest.pid == incoming.pid
    assert set(filtered(guest.pid).values()) == {("0", "0")}
    guest.check_alive()


def inherited(pid: int) -> list[str]:
    """Descriptors, beyond the standard ones, that a program which it executes would have."""
    found = []
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        flags = int(path.read_text().split("flags:")[1].split()[0], 8)
        if int(path.name) > 2 and not flags & os.O_CLOEXEC:
            found.append(os.readlink(f"/proc/{pid}/fd/{path.name}"))
    return found


def test_no_descriptor_is_inherited(guest: Guest) -> None:
    assert inherited(guest.pid) == []
    guest.update()
    guest.check_alive()
    assert inherited(guest.pid) == []


def test_memory_keeps_its_size(guest: Guest) -> None:
    """Whoever is handed a memfd of baton's can neither shrink it under it nor take the seals off."""
    memfds = [path for path in Path(f"/proc/{guest.pid}/fd").iterdir() if os.readlink(path).startswith("/memfd:")]
    assert memfds
    for path in memfds:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL, os.readlink(path)
        size = os.fstat(fd).st_size
        for other in (0, size + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, other)
        os.close(fd)


# ---- other users of the host ----

CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX, int(sys.argv[2])); s.connect(sys.argv[1]); print(s.recv(9))"


def connect(user: int, path: Path, kind: int = socket.SOCK_STREAM) -> subprocess.CompletedProcess[str]:
    return run(*as_user(user=user), sys.executable, "-c", CONNECT, path, str(int(kind)), check=False)


@pytest.fixture(scope="module")
def user_guest() -> Iterator[Guest]:
    """A guest of an ordinary user, whose directory others may enter: what keeps them out is the rest."""
    with Guest() as guest:
        guest.directory.chmod(0o711)
        yield guest.boot()


def test_modes(user_guest: Guest) -> None:
    for path, mode in ((user_guest.runtime, 0o700), (user_guest.runtime / user_guest.name, 0o700),
                       (user_guest.runtime / user_guest.name / "qmp.sock", 0o600), (user_guest.qmp_path, 0o600),
                       (user_guest.console_path, 0o600)):
        status = path.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (mode, USER), path


def test_other_users_reach_no_socket(user_guest: Guest) -> None:
    incoming = user_guest.start_incoming().wait_listening()
    for path, kind in ((user_guest.qmp_path, socket.SOCK_STREAM), (user_guest.console_path, socket.SOCK_STREAM),
                       (incoming.path, socket.SOCK_SEQPACKET)):
        assert f"[Errno {errno.EACCES}]" in connect(OTHER_USER, path, kind).stderr
    assert "QMP" in connect(USER, user_guest.qmp_path).stdout
    os.kill(incoming.pid, signal.SIGKILL)
    incoming.exit_status()


def test_other_users_hand_no_guest_over(user_guest: Guest) -> None:
    """Even where the socket is open to all, an incoming process asks the kernel who connects."""
    incoming = user_guest.start_incoming().wait_listening()
    incoming.path.chmod(0o666)
    assert connect(OTHER_USER, incoming.path, socket.SOCK_SEQPACKET).stdout.strip() in ("", "b''")
    assert f"belongs to user {OTHER_USER}" in incoming.log
    user_guest.hand_over(incoming.path)  # it has waited on
    user_guest.drop_clients()
    user_guest.check_alive()


LISTEN = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
s.listen()
c, _ = s.accept()
print(len(c.recv(9)), flush=True)
"""


def hand_over_to(user: int, guest: Guest) -> tuple[str, str]:
    """A hand-over to a process of some user's that is not baton. @return why it failed, and how much that process was sent"""
    place = guest.directory / f"of{user}"
    place.mkdir()
    os.chown(place, user, user)
    path = place / "cpr"
    with subprocess.Popen([*as_user(user=user), sys.executable, "-c", LISTEN, str(path)], stdout=subprocess.PIPE, text=True) as other:
        wait_for("its socket", lambda: path.exists() and stat.S_IMODE(path.stat().st_mode) == 0o666)
        reason = guest.hand_over(path, "failed")["error-desc"]
        sent = other.communicate()[0].strip()
    guest.drop_clients()
    guest.check_alive()
    return reason, sent


def test_other_users_get_no_guest(user_guest: Guest) -> None:
    """The process that hands over asks as well, before it has sent anything. Root is trusted."""
    reason, sent = hand_over_to(OTHER_USER, user_guest)
    assert f"belongs to user {OTHER_USER}" in reason and sent == "0"
    reason, sent = hand_over_to(0, user_guest)
    assert "belongs to" not in reason and sent == "9"


def test_root_takes_no_users_guest(user_guest: Guest) -> None:
    """A process of root's would have to trust a user's: it does not."""
    wrapper, user_guest.wrapper = user_guest.wrapper, ()
    incoming = user_guest.start_incoming().wait_listening()
    os.chown(incoming.path, USER, USER)  # the mode would keep the user out already
    user_guest.hand_over(incoming.path, "failed")
    assert f"belongs to user {USER}" in incoming.log
    assert is_alive(incoming.pid), "it waits on"
    os.kill(incoming.pid, signal.SIGKILL)
    incoming.exit_status()
    user_guest.wrapper = wrapper
    user_guest.drop_clients()
    user_guest.check_alive()
