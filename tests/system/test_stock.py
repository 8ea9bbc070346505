# SPDX-License-Identifier: Apache-2.0
# lab: --kernel debian --memory 3072 --device nvme
# lab-all: --kernel debian-backports --memory 3072 --device nvme
"""Debian's own kernels, as they are, under baton and in its guests: no iommufd, and drivers that are modules."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from baton_lab import BATON, KERNEL, VMLINUX, Guest, bind, run, vfio_options

MakeGuest = Callable[..., Guest]
RELEASE = run("uname", "-r").stdout.strip()


def test_kernel_is_debians() -> None:
    """What the other tests here are about: it has VFIO with groups and containers, and no iommufd."""
    assert re.fullmatch(r"[0-9.]+\+deb[0-9]+-amd64", RELEASE)
    bind("01:00.0")
    group = Path("/sys/bus/pci/devices/0000:01:00.0/iommu_group").resolve().name
    assert Path("/dev/kvm").is_char_device()
    assert Path("/dev/vfio/vfio").is_char_device()
    assert Path(f"/dev/vfio/{group}").is_char_device()
    assert not Path("/dev/iommu").exists()
    assert not Path("/dev/vfio/devices").exists()


def test_missing_iommufd_is_named() -> None:
    bind("01:00.0")
    done = run(BATON, "run", "-name", "failing", *vfio_options("01:00.0", ident="nvme0"), "-kernel", KERNEL, check=False)
    assert done.returncode == 1
    assert "/dev/iommu" in done.stderr
    assert done.stderr.count("\n") <= 2, "one message, not a cascade"


def test_guest_is_updated(make_guest: MakeGuest) -> None:
    """The stock kernel from its bzImage, across three updates."""
    guest = make_guest(kernel=KERNEL).boot()
    assert guest.command("uname -r") == RELEASE
    guest.command("echo kept > /tmp/kept")
    for _ in range(3):
        guest.update()
    assert guest.command("cat /tmp/kept") == "kept"
    guest.check_alive()
    guest.check_kernel_log()


def test_two_processors_pvh(make_guest: MakeGuest) -> None:
    """The stock kernel from the ELF file that is inside its bzImage, with two processors, across an update."""
    guest = make_guest(cpus=2, memory="256M", kernel=VMLINUX).boot()
    guest.update()
    for cpu in range(2):
        assert guest.command(f"taskset {1 << cpu:x} sh -c 'sleep 0.05; echo ran'") == "ran"
    guest.check_alive()
    guest.check_kernel_log()
