# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""Builds without iommufd, without legacy containers, and without both: what they can do they do, what they lack they name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import BATON, KERNEL, Guest, bind, nvme_guest, run, vfio_files, vfio_options

VARIANTS = Path(os.environ.get("BATON_VARIANTS", "/baton/build/variants"))
FULL = Path(BATON)
NO_IOMMUFD, NO_CONTAINER, NO_VFIO = (VARIANTS / name / "baton" for name in ("no-iommufd", "no-container", "no-vfio"))
IOMMUFD, CONTAINER = "iommufd0", ""  # of vfio_options()
WITHOUT = {IOMMUFD: ("iommufd", "-Diommufd=enabled"), CONTAINER: ("legacy containers", "-Dvfio_container=enabled")}


@pytest.mark.parametrize(("binary", "parts"), [
    (FULL, "iommufd, legacy containers"), (NO_IOMMUFD, "legacy containers"), (NO_CONTAINER, "iommufd"), (NO_VFIO, "none"),
], ids=["full", "no-iommufd", "no-container", "no-vfio"])
def test_says_what_is_in_it(binary: Path, parts: str) -> None:
    for words in (["version"], ["--version"], ["run", "-version"]):
        assert run(binary, *words).stdout.splitlines()[1] == f"VFIO back ends: {parts}"


@pytest.mark.parametrize(("binary", "iommufd", "instead"), [
    (NO_IOMMUFD, IOMMUFD, "leave -object iommufd and iommufd= out, or build it with"),
    (NO_CONTAINER, CONTAINER, "give the device iommufd=, or build it with"),
    (NO_VFIO, IOMMUFD, "build it with"),
    (NO_VFIO, CONTAINER, "build it with"),
], ids=["no-iommufd", "no-container", "no-vfio, iommufd", "no-vfio, container"])
def test_names_what_it_lacks(binary: Path, iommufd: str, instead: str) -> None:
    """One message, with the way out that there is."""
    bind("01:00.0")
    name, option = WITHOUT[iommufd]
    words = vfio_options("01:00.0", ident="nvme0", iommufd=iommufd)
    done = run(binary, "run", "-name", "failing", *words, "-kernel", KERNEL, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(f"this baton was built without {name}: {instead} {option}")
    assert done.stderr.count("\n") == 1


def change_to(guest: Guest, binary: Path) -> None:
    former = guest.pid
    guest.update(binary=binary)
    assert guest.pid != former
    assert Path(f"/proc/{guest.pid}/exe").resolve() == binary.resolve()
    guest.check_alive()


def check_refused(guest: Guest, binary: Path, iommufd: str) -> None:
    """By a rehearsal and by an update alike; the guest stays."""
    pid, files = guest.pid, vfio_files(guest.pid)
    name, option = WITHOUT[iommufd]
    for options in (["--dry-run"], []):
        update = guest.update(*options, binary=binary, check=False)
        assert update.status == 1
        assert f"was built without {name}: the guest needs one built with {option}" in update.errors, update.errors
        assert "pause" not in update.stages
        guest.drop_clients()
        assert (guest.pid, vfio_files(guest.pid)) == (pid, files)
        guest.check_alive()


def power_off(guest: Guest) -> None:
    """Leaves a clean file system to the next guest."""
    guest.console.send("exit\n")
    guest.wait_gone()


@pytest.fixture(scope="class")
def iommufd_guest() -> Iterator[Guest]:
    bind("01:00.0")
    with nvme_guest(binary=NO_CONTAINER) as guest:
        yield guest.boot()
        power_off(guest)


@pytest.fixture(scope="class")
def container_guest() -> Iterator[Guest]:
    bind("01:00.0")
    with nvme_guest(*vfio_options("01:00.0", ident="nvme0", iommufd=CONTAINER), device=False, binary=NO_IOMMUFD) as guest:
        yield guest.boot()
        power_off(guest)


def read_drive(guest: Guest) -> None:
    guest.command("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=100 iflag=direct 2>/dev/null")
    guest.check_kernel_log()


class TestWithoutContainers:
    def test_updated(self, iommufd_guest: Guest) -> None:
        change_to(iommufd_guest, NO_CONTAINER)
        read_drive(iommufd_guest)

    def test_to_the_full_build_and_back(self, iommufd_guest: Guest) -> None:
        change_to(iommufd_guest, FULL)
        change_to(iommufd_guest, NO_CONTAINER)
        change_to(iommufd_guest, FULL)
        read_drive(iommufd_guest)

    @pytest.mark.parametrize("binary", [NO_IOMMUFD, NO_VFIO], ids=["no-iommufd", "no-vfio"])
    def test_refused_by_what_lacks_iommufd(self, iommufd_guest: Guest, binary: Path) -> None:
        check_refused(iommufd_guest, binary, IOMMUFD)
        read_drive(iommufd_guest)


class TestWithoutIommufd:
    def test_updated(self, container_guest: Guest) -> None:
        change_to(container_guest, NO_IOMMUFD)
        read_drive(container_guest)

    def test_to_the_full_build_and_back(self, container_guest: Guest) -> None:
        change_to(container_guest, FULL)
        change_to(container_guest, NO_IOMMUFD)
        change_to(container_guest, FULL)
        read_drive(container_guest)

    @pytest.mark.parametrize("binary", [NO_CONTAINER, NO_VFIO], ids=["no-container", "no-vfio"])
    def test_refused_by_what_lacks_containers(self, container_guest: Guest, binary: Path) -> None:
        check_refused(container_guest, binary, CONTAINER)
        read_drive(container_guest)


def test_without_both() -> None:
    """A guest that has no devices needs neither."""
    with Guest(binary=NO_VFIO) as guest:
        guest.boot()
        guest.command("echo kept > /tmp/kept")
        change_to(guest, NO_VFIO)
        change_to(guest, FULL)
        change_to(guest, NO_VFIO)
        assert guest.command("cat /tmp/kept") == "kept"
        guest.check_kernel_log()
