# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""Legacy containers: a guest whose root is on a drive in one, with a second drive beside it, across updates that succeed or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import baton_lab
from baton_lab import (FioLoad, Guest, bind, nvme_guest, open_files, status_field, thread_count, through_proxy, vfio_files,
                       vfio_options, wait_for)

MEMORY = baton_lab.MEMORY * 1024  # KiB
FILES = {"containers": 1, "groups": 2, "iommufds": 0, "cdevs": 0, "kvm": 1}


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind("01:00.0", "02:00.0")
    with nvme_guest(*vfio_options("02:00.0", ident="blk1", iommufd=""), iommufd="") as guest:
        yield guest.boot()


def test_one_container_for_both(guest: Guest) -> None:
    """And no trace of iommufd."""
    assert vfio_files(guest.pid) == FILES
    assert status_field(guest.pid, "VmLck") == MEMORY
    assert guest.command("findmnt -no SOURCE /") in ("/dev/nvme0n1", "/dev/root")
    guest.check_kernel_log()


def test_five_updates_under_load(guest: Guest) -> None:
    """fio writes to one drive and verifies, and the other is read, while the mappings' addresses come and go."""
    load = FioLoad(guest, "/root/load")
    guest.command("(while :; do dd if=/dev/vda of=/dev/null bs=4k count=64 iflag=direct; done >/dev/null 2>&1 & echo $! >/tmp/pid)")
    before = guest.interrupts("virtio.-req")
    files = threads = 0
    for number in range(5):
        former = guest.pid
        guest.update()
        assert guest.pid != former
        assert vfio_files(guest.pid) == FILES
        assert status_field(guest.pid, "VmLck") == MEMORY
        if number == 0:
            files, threads = len(open_files(guest.pid)), thread_count(guest.pid)
    load.wait_rounds(1)
    assert load.stop() >= 2
    assert guest.interrupts("virtio.-req") > before
    guest.command("kill $(cat /tmp/pid)")
    assert (len(open_files(guest.pid)), thread_count(guest.pid)) <= (files, threads)
    guest.check_alive()
    guest.check_kernel_log()


def test_dry_run(guest: Guest) -> None:
    """The mappings stay with the process that has them."""
    pid, files = guest.pid, open_files(guest.pid)
    update = guest.update("--dry-run")
    assert update.predicted_ms and update.predicted_ms > 0 and update.blackout_ms is None
    assert (guest.pid, open_files(pid)) == (pid, files)
    assert status_field(pid, "VmLck") == MEMORY
    guest.command("dd if=/dev/vda of=/dev/null bs=4k count=64 iflag=direct 2>/dev/null")
    guest.check_alive()


LOST_AND_FOUND = [
    ("kill-before", "quiesce"),  # released, taken by nobody
    ("kill-after", "quiesce"),   # taken by a process that has died
    ("kill-after", "switch"),
    ("kill-before", "go"),
    ("hang", "switch"),          # taken by a process that has to be killed
]


def test_ownership_comes_back(guest: Guest) -> None:
    """Wherever the mappings' addresses are when the update fails: DMA never stops, and the next update succeeds."""
    load = FioLoad(guest, "/root/load")
    for action, stage in LOST_AND_FOUND:
        pid = guest.pid
        reason = through_proxy(guest, action, stage)
        assert ("run" if stage == "go" else stage) in reason, reason
        assert guest.pid == pid
        assert status_field(pid, "VmLck") == MEMORY, "the mappings are this process's again"
        guest.drop_clients()
        guest.update()
        assert status_field(guest.pid, "VmLck") == MEMORY
        load.wait_rounds(1)
    assert load.stop() >= 2
    guest.check_alive()
    guest.check_kernel_log()


def test_missing_descriptors(guest: Guest) -> None:
    """Each is asked for by its name."""
    group = next(name for name in open_files(guest.pid) if name.startswith("/dev/vfio/") and name[10:].isdigit())[10:]
    for name in ("iommu/container/0", f"iommu/group/{group}", "vfio/nvme0/device"):
        reason = through_proxy(guest, f"rename={name}={name[:-1]}x", "describe")
        assert name in reason, reason
    guest.drop_clients()
    guest.check_alive()


def test_other_address_space_is_a_difference(guest: Guest) -> None:
    options = list(guest.options)
    place = options.index("-device")
    options[place + 1] += ",container=other"
    incoming = guest.start_incoming(*options).wait_listening()
    report = guest.hand_over(incoming.path, "failed")
    assert "container=" in report["error-desc"]
    guest.drop_clients()


def test_guest_reboots(guest: Guest) -> None:
    guest.command("sync; mount -o remount,ro /")
    guest.console.send("busybox reboot -f\n")
    guest.qmp.event("RESET", reason="guest-reset")
    guest.console.wait_prompt()
    guest.update()
    guest.command("dd if=/dev/vda of=/dev/null bs=4k count=50 iflag=direct 2>/dev/null")
    guest.check_kernel_log()


def test_devices_are_free_afterwards(guest: Guest) -> None:
    """Last: the groups can be opened again, by a guest that wants them in an iommufd."""
    guest.console.send("exit\n")
    guest.wait_gone()
    words = [*vfio_options("01:00.0", ident="nvme0"), *vfio_options("02:00.0", ident="blk1", declare=False)]
    with nvme_guest(*words, device=False) as other:
        other.boot()
        wait_for("the second drive", lambda: other.console.status("test -b /dev/vda")[0] == 0)
        other.qmp.execute("quit")
        other.wait_gone()
