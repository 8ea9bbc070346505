# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""Updates that do not happen: each says why, the guest runs on under load, and a later update succeeds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from baton_lab import (BATON, MEMORY, FioLoad, Guest, Incoming, QmpError, bind, cpr_channel, nvme_guest, open_files,
                       run, status_field, thread_count, through_proxy, vfio_options, wait_for)


@pytest.fixture(scope="module")
def running() -> Iterator[Guest]:
    bind("01:00.0", "02:00.0")
    with nvme_guest(*vfio_options("02:00.0", ident="blk1", declare=False)) as guest:
        yield guest.boot()


@pytest.fixture(scope="module")
def load(running: Guest) -> FioLoad:
    return FioLoad(running, "/root/load")


@pytest.fixture
def guest(running: Guest, load: FioLoad) -> Iterator[Guest]:
    """The guest, before and after a refusal: same process, nothing left behind, disks and console at work."""
    pid = running.pid
    files, threads = len(open_files(pid)), thread_count(pid)
    yield running
    running.drop_clients()
    assert running.pid == pid
    running.check_alive()
    assert running.processes() == [pid]
    assert status_field(pid, "VmPin") + status_field(pid, "VmLck") >= MEMORY * 1024, "the mappings are this process's again"
    load.wait_rounds(1)
    wait_for("descriptors to be closed again", lambda: len(open_files(pid)) <= files)
    wait_for("threads to end", lambda: thread_count(pid) <= threads)


def refused(guest: Guest, incoming: Incoming) -> str:
    """Hands over in vain; the reason, which both sides give."""
    report = guest.hand_over(incoming.path, "failed")
    assert report["baton"]["incoming"] is False
    return report["error-desc"]


def changed(guest: Guest, option: str, value: str) -> list[str]:
    """The guest's own options, one of them changed."""
    options = list(guest.options)
    options[options.index(option) + 1] = value
    return options


@pytest.mark.parametrize(("option", "value", "named"), [
    ("-m", "384M", "-m"),
    ("-smp", "3", "-smp"),
    ("-name", "another", "-name"),
    ("-append", "other words", "-append"),
    ("-kernel", "/lab-cache/vmlinux", "-kernel"),
    ("-device", "vfio-pci,host=01:00.0,iommufd=iommufd0,id=other", "-device"),
    ("-device", "vfio-pci,host=01:00.0,iommufd=iommufd0,id=nvme0,addr=05.0", "-device"),
    ("-device", "vfio-pci,host=03:00.0,iommufd=iommufd0,id=nvme0", "-device"),
])
def test_option_that_differs(guest: Guest, option: str, value: str, named: str) -> None:
    options = changed(guest, option, value)
    incoming = guest.start_incoming(*options)
    reason = refused(guest, incoming.wait_listening())
    assert named in reason and "describe" in reason, reason
    assert incoming.exit_status() == 1
    assert named in incoming.log


def test_option_too_many(guest: Guest) -> None:
    reason = refused(guest, guest.start_incoming(*guest.options, "-initrd", "/lab-cache/guest-initrd.cpio").wait_listening())
    assert "-initrd" in reason


def test_device_too_few(guest: Guest) -> None:
    options = guest.options[:]
    place = len(options) - 1 - options[::-1].index("-device")
    del options[place:place + 2]
    assert "-device" in refused(guest, guest.start_incoming(*options).wait_listening())


def test_memory_backend_that_differs(guest: Guest) -> None:
    options = ["-object", f"memory-backend-memfd,id=ram0,size={MEMORY}M,hugetlb=on", "-machine", "memory-backend=ram0"]
    reason = refused(guest, guest.start_incoming(*options).wait_listening())
    assert "memory" in reason


def test_program_that_does_not_exist(guest: Guest) -> None:
    update = guest.update(binary="/no/such/baton", check=False)
    assert update.status == 1
    assert "/no/such/baton" in update.errors


def test_program_that_ends_at_once(guest: Guest) -> None:
    update = guest.update(binary="/bin/false", check=False)
    assert update.status == 1
    assert "the guest is where it was" in update.errors


def test_program_that_never_listens(guest: Guest) -> None:
    script = guest.directory / "sleeper"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o755)
    update = guest.update("--timeout", "2", binary=script, check=False)
    assert update.status == 1
    assert "not ready in time" in update.errors
    assert [pid for pid in guest.processes() if pid != guest.pid] == [], "what the update started has ended"


def test_nobody_listens(guest: Guest) -> None:
    guest.qmp.execute("migrate-set-parameters", mode="cpr-transfer")
    report = guest.hand_over(guest.directory / "nobody", "failed")
    assert "hello" in report["error-desc"] and "nobody" in report["error-desc"]


class Peer:
    """A listener on a cpr channel that is no baton: it accepts, does one thing, and is gone or silent."""

    def __init__(self, guest: Guest, action: str) -> None:
        self.path = guest.directory / f"peer-{action.replace(' ', '-')}"
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.action = action
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        if self.action == "silence":
            time.sleep(60)
        elif self.action == "garbage":
            connection.recv(1 << 16)
            connection.send(b"\xff" * 4096)
            time.sleep(5)
        elif self.action == "echo":
            while data := connection.recv(1 << 16):
                connection.send(data)
        connection.close()


@pytest.mark.parametrize("action", ["close", "garbage", "echo"])
def test_peer_that_is_no_baton(guest: Guest, action: str) -> None:
    report = guest.hand_over(Peer(guest, action).path, "failed")
    assert "hello" in report["error-desc"]


def test_stream_socket_instead(guest: Guest) -> None:
    path = guest.directory / "stream"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    report = guest.hand_over(path, "failed")
    assert "hello" in report["error-desc"]
    listener.close()


def test_incoming_that_hangs_is_given_up(guest: Guest) -> None:
    """Stopped by SIGSTOP before the hello: the stage's limit ends it, and the process is killed."""
    incoming = guest.start_incoming().wait_listening()
    os.kill(incoming.pid, signal.SIGSTOP)
    reason = refused(guest, incoming)
    assert "hello" in reason
    os.kill(incoming.pid, signal.SIGCONT)
    wait_for("its end", lambda: incoming.process.poll() is not None)


def test_cancel_while_waiting(guest: Guest) -> None:
    qmp = guest.qmp
    qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    qmp.execute("migrate-set-parameters", mode="cpr-transfer")
    qmp.execute("migrate", channels=[cpr_channel(guest.directory / "nobody")])
    with pytest.raises(QmpError):
        qmp.execute("migrate", channels=[cpr_channel(guest.directory / "nobody")])
    qmp.execute("migrate_cancel")
    qmp.event("MIGRATION", status="cancelled")
    assert qmp.execute("query-migrate")["status"] == "cancelled"


def test_descriptor_too_few(guest: Guest) -> None:
    assert "describe" in through_proxy(guest, "drop-descriptor", "describe")


@pytest.mark.parametrize("name", ["vfio/nvme0/device", "vfio/nvme0/irq/0", "iommu/iommufd0", "ram/0"])
def test_missing_descriptor(guest: Guest, name: str) -> None:
    """The incoming process misses it by its name."""
    reason = through_proxy(guest, f"rename={name}={name[:-1]}x", "describe")
    assert name in reason, reason


def test_refusal_of_a_paused_guest(guest: Guest) -> None:
    """Undone into what it was: paused."""
    guest.qmp.execute("stop")
    through_proxy(guest, "kill-before", "switch")
    assert guest.qmp.execute("query-status") == {"status": "paused", "running": False}
    guest.qmp.execute("cont")


def test_interrupted_update(guest: Guest) -> None:
    """Ctrl-C of `baton update` before the new process is ready: nothing has happened."""
    script = guest.directory / "slow"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o755)
    with subprocess.Popen(guest.update_words("--binary", str(script)), env=guest.environment,
                          stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as update:
        assert update.stdout
        update.stdout.readline()
        wait_for("the new process", lambda: len(guest.processes()) > 2)
        update.send_signal(signal.SIGINT)
        _, errors = update.communicate(timeout=60)
        assert update.returncode == 1 and "interrupted" in errors


def test_unknown_guest() -> None:
    done = run(BATON, "update", "nobody", check=False)
    assert done.returncode == 1 and "nobody" in done.stderr


@pytest.mark.parametrize("words", [["update"], ["update", "x", "--timeout", "soon"], ["update", "x", "y"], ["update", "--bogus"]])
def test_usage(words: list[str]) -> None:
    assert run(BATON, *words, check=False).returncode == 2


def test_a_later_update_succeeds(running: Guest, load: FioLoad) -> None:
    """Last: after all that was refused, the guest moves, and every byte that fio wrote was right."""
    for _ in range(2):
        running.update()
    load.wait_rounds(1)
    assert load.stop() > 1
    running.check_alive()
    running.check_kernel_log()
    running.console.send("exit\n")
    running.wait_gone()
