# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""Hosts that lack /dev/iommu, /dev/vfio or parts of it, or /dev/kvm: what needs none of it works, and the rest is told what is missing.

A host's /dev is made anew in a mount namespace, without what shall be absent (test_stock.py is about kernels that have no
iommufd at all).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import BATON, KERNEL, Guest, bind, nvme_guest, open_files, run, vfio_options

HIDE = """
mount -t tmpfs dev /mnt
cp -a /dev/null /dev/zero /dev/urandom /dev/kvm /dev/iommu /dev/vfio /mnt/
for name in {names}; do rm -r /mnt/$name; done
mount --bind /mnt /dev
exec "$@"
"""


def without(*names: str) -> tuple[str, ...]:
    """Runs a program where /dev lacks these."""
    return ("unshare", "--mount", "sh", "-ec", HIDE.format(names=" ".join(names)), "sh")


@pytest.fixture(scope="module", autouse=True)
def group() -> str:
    bind("01:00.0")
    return Path("/sys/bus/pci/devices/0000:01:00.0/iommu_group").resolve().name


def failure(*names: str, iommufd: str | None = None) -> str:
    """What a guest with the drive (or without, by default) says there; it does not start."""
    words = [] if iommufd is None else vfio_options("01:00.0", ident="nvme0", iommufd=iommufd)
    done = run(*without(*names), BATON, "run", "-name", "failing", *words, "-kernel", KERNEL, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, "one message, not a cascade"
    return done.stderr


def vfio_nodes(pid: int) -> list[str]:
    """What a process has open below /dev, which has no such name when seen from here."""
    names = [name.removeprefix("/dev") for name in open_files(pid)]
    return sorted(name for name in names if name.startswith(("/iommu", "/vfio/")))


def test_no_kvm() -> None:
    assert "/dev/kvm is not there: " in (message := failure("kvm")) and "kvm_intel or kvm_amd" in message


def test_no_iommufd() -> None:
    message = failure("iommu", iommufd="iommufd0")
    assert "iommufd 'iommufd0': /dev/iommu is not there: the kernel needs CONFIG_IOMMUFD" in message


def test_no_character_device() -> None:
    message = failure("vfio/devices", iommufd="iommufd0")
    assert "'nvme0' (0000:01:00.0): /dev/vfio/devices/vfio" in message
    assert "is missing: the kernel needs CONFIG_VFIO_DEVICE_CDEV" in message


@pytest.mark.parametrize("names", [("vfio/vfio",), ("vfio",), ("vfio", "iommu")], ids=" ".join)
def test_no_container(names: tuple[str, ...]) -> None:
    message = failure(*names, iommufd="")
    assert "'nvme0' (0000:01:00.0): VFIO container: /dev/vfio/vfio is not there: the kernel needs CONFIG_VFIO_CONTAINER" in message
    assert "or give the device iommufd=" in message


def test_no_group(group: str) -> None:
    message = failure(f"vfio/{group}", iommufd="")
    assert "'nvme0' (0000:01:00.0): " in message
    assert "offers no group for it: the kernel needs CONFIG_VFIO_GROUP" in message


def test_guest_without_devices() -> None:
    """Needs /dev/kvm and nothing else."""
    with Guest(wrapper=without("iommu", "vfio")) as guest:
        guest.boot()
        guest.update()
        guest.check_alive()
        guest.check_kernel_log()


def test_container_without_iommufd(group: str) -> None:
    """The drive in a legacy container, on a host that has nothing of iommufd."""
    words = vfio_options("01:00.0", ident="nvme0", iommufd="")
    with nvme_guest(*words, device=False, wrapper=without("iommu", "vfio/devices")) as guest:
        guest.boot()
        guest.update()
        assert vfio_nodes(guest.pid) == [f"/vfio/{group}", "/vfio/vfio"]
        guest.check_alive()
        guest.check_kernel_log()
        guest.console.send("exit\n")  # leaves a clean file system to the next guest
        guest.wait_gone()


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """The drive in an iommufd, on a host that has nothing of groups and containers."""
    with nvme_guest(wrapper=without("vfio/[0-9]*", "vfio/vfio")) as guest:
        yield guest.boot()


def test_iommufd_without_containers(guest: Guest) -> None:
    guest.update()
    assert [re.sub("[0-9]+", "N", name) for name in vfio_nodes(guest.pid)] == ["/iommu", "/vfio/devices/vfioN"]
    guest.check_alive()


def test_update_opens_nothing_of_vfio(guest: Guest) -> None:
    """All that the new process needs of VFIO arrives open: it may be one that can see none of it."""
    guest.wrapper = without("iommu", "vfio")
    guest.update()
    assert not Path(f"/proc/{guest.pid}/root/dev/iommu").exists()
    guest.command("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=100 iflag=direct 2>/dev/null")
    guest.check_alive()
    guest.check_kernel_log()


def test_update_without_kvm_is_refused(guest: Guest) -> None:
    """A new process needs a VM of its own. Without, the guest runs on where it is."""
    pid = guest.pid
    guest.wrapper = without("kvm")
    update = guest.update(check=False)
    assert update.status == 1
    assert "/dev/kvm is not there" in update.errors
    assert "pause" not in update.stages
    guest.drop_clients()
    assert guest.pid == pid
    guest.check_alive()
