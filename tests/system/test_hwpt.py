# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --trace pci_cfg_write
"""Hardware page tables of an iommufd: shared ones, one of a device's own, the kernel's; kept across updates, gone at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

import pytest

from baton_lab import Edu, FioLoad, Guest, bind, copy_descriptor, nvme_guest, through_proxy, vfio_options

GET_DIRTY_BITMAP = ord(";") << 8 | 0x8C
NO_CLEAR = 1
IDS = range(1, 64)
DEVICES = {"edu1": ("02:00.0", ""), "edu2": ("03:00.0", ",hwpt=own"), "edu3": ("04:00.0", ",hwpt=ioas")}
OWN = "0000:00:03.0"  # edu2 in the guest


def copy_iommufd(pid: int) -> int:
    return copy_descriptor(pid, next(int(name) for name in os.listdir(f"/proc/{pid}/fd")
                                     if os.readlink(f"/proc/{pid}/fd/{name}") == "/dev/iommu"))


def page_tables(iommufd: int) -> list[int]:
    """Ids that belong to a page table: the kernel looks it up before it sees that nothing was asked."""
    found = []
    for number in IDS:
        try:
            fcntl.ioctl(iommufd, GET_DIRTY_BITMAP, struct.pack("<IIIIQQQQ", 48, number, NO_CLEAR, 0, 0, 0, 4096, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            assert error.errno in (errno.EINVAL, errno.EOPNOTSUPP), error
        found.append(number)
    return found


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind("all")
    words = vfio_options("01:00.0", ident="nvme0")
    for name, (address, more) in DEVICES.items():
        words += vfio_options(address, ident=name, declare=False, more=more)
    with nvme_guest(*words, device=False) as guest:
        yield guest.boot()


def test_one_shared_one_own_one_of_the_kernel(guest: Guest) -> None:
    """Two devices have one, so that four have three."""
    iommufd = copy_iommufd(guest.pid)
    try:
        assert len(page_tables(iommufd)) == 3
    finally:
        os.close(iommufd)


def test_kept_across_updates(guest: Guest) -> None:
    """The new process knows them by id, and leaves them alone when it ends because the update is undone. fio verifies what went
    through the shared one, edu what went through its own."""
    iommufd = copy_iommufd(guest.pid)
    before = page_tables(iommufd)
    os.close(iommufd)
    load, edu = FioLoad(guest, "/root/load"), Edu(guest, OWN, "msi", rest=Edu.REST)
    for stage in ("", "quiesce", "", "switch", ""):
        guest.update()
        if stage:
            assert stage in through_proxy(guest, "close-after", stage)
        iommufd = copy_iommufd(guest.pid)
        assert page_tables(iommufd) == before
        os.close(iommufd)
        edu.wait_for_more()
    load.wait_rounds(1)
    assert load.stop() >= 2
    edu.stop().check()
    assert "cannot" not in guest.log
    guest.check_alive()
    guest.check_kernel_log()


def test_another_choice_is_a_difference(guest: Guest) -> None:
    options = [word.replace("hwpt=own", "hwpt=shared") for word in guest.options]
    incoming = guest.start_incoming(*options).wait_listening()
    report = guest.hand_over(incoming.path, "failed")
    assert "id=edu2: hwpt=" in report["error-desc"]
    guest.drop_clients()


def test_nothing_is_left(guest: Guest) -> None:
    """Last: the process that has the guest destroys them, even though somebody else keeps the iommufd open."""
    iommufd = copy_iommufd(guest.pid)
    assert len(page_tables(iommufd)) == 3
    guest.qmp.execute("quit")
    guest.wait_gone()
    assert page_tables(iommufd) == []
    os.close(iommufd)
