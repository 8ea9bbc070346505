# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""Descriptors that whoever starts baton has opened (fd=), and the names by which another process finds a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import BATON, KERNEL, FioLoad, Guest, bind, nvme_guest, open_files, run, through_proxy

HOST = "0000:01:00.0"


def cdev() -> str:
    """VFIO's character device of the drive."""
    [entry] = Path(f"/sys/bus/pci/devices/{HOST}/vfio-dev").iterdir()
    return f"/dev/vfio/devices/{entry.name}"


class Passed:
    """An iommufd and the drive, opened here, for a guest that inherits them."""

    def __init__(self) -> None:
        self.iommufd, self.device = os.open("/dev/iommu", os.O_RDWR), os.open(cdev(), os.O_RDWR)

    def options(self, name: str = ",id=nvme0") -> list[str]:
        return ["-object", f"iommufd,id=iommufd0,fd={self.iommufd}",
                "-device", f"vfio-pci,fd={self.device}{name},iommufd=iommufd0"]

    def start(self, guest: Guest) -> Guest:
        """Starts it, and leaves the descriptors to it: who passes them has no part in the guest any more."""
        guest.start(pass_fds=(self.iommufd, self.device))
        self.close()
        return guest

    def close(self) -> None:
        os.close(self.iommufd)
        os.close(self.device)


def vfio_files(pid: int) -> list[str]:
    return [name for name in open_files(pid) if name.startswith(("/dev/vfio/", "/dev/iommu"))]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind("01:00.0")
    passed = Passed()
    with nvme_guest(*passed.options(), device=False) as guest:
        passed.start(guest)
        guest.console.wait_prompt()
        yield guest


def test_nothing_else_is_opened(guest: Guest) -> None:
    assert vfio_files(guest.pid) == ["/dev/iommu", cdev()]
    guest.check_kernel_log()


def test_five_updates_under_load(guest: Guest) -> None:
    """The new process has inherited nothing: `baton update` has no such descriptors to pass on."""
    load = FioLoad(guest, "/root/load")
    for _ in range(5):
        former = guest.pid
        guest.update()
        assert guest.pid != former
        assert vfio_files(guest.pid) == ["/dev/iommu", cdev()]
    load.wait_rounds(1)
    assert load.stop() >= 2
    guest.check_alive()
    guest.check_kernel_log()


def test_the_same_options_again(guest: Guest) -> None:
    """QEMU's way: the new process is given the guest's command line. A number says nothing there, whether it is open or not."""
    incoming = guest.start_incoming(*guest.options).wait_listening()
    guest.hand_over(incoming.path)
    guest.drop_clients()
    assert guest.pid == incoming.pid
    assert vfio_files(guest.pid) == ["/dev/iommu", cdev()]
    guest.check_alive()


def test_host_instead_of_fd_is_a_difference(guest: Guest) -> None:
    words = list(guest.options)
    place = words.index("-device") + 1
    words[place] = f"vfio-pci,host={HOST},id=nvme0,iommufd=iommufd0"
    incoming = guest.start_incoming(*words).wait_listening()
    reason = guest.hand_over(incoming.path, "failed")["error-desc"]
    assert "id=nvme0" in reason and "fd=" in reason, reason
    guest.drop_clients()


def test_failed_updates(guest: Guest) -> None:
    pid = guest.pid
    assert "vfio/nvme0/device" in through_proxy(guest, "rename=vfio/nvme0/device=vfio/nvme1/device", "describe")
    through_proxy(guest, "kill-after", "switch")
    guest.drop_clients()
    assert guest.pid == pid
    guest.update()
    guest.check_alive()


def refused(*options: str, status: int = 1, inherit: tuple[int, ...] = ()) -> str:
    done = run(BATON, "run", "-kernel", KERNEL, *options, check=False, pass_fds=inherit)
    assert done.returncode == status, done.stderr
    return done.stderr


def test_unnamed_device_blocks_updates(guest: Guest) -> None:
    """Last of those with this guest. Without id= it runs, and says while it runs why it cannot be updated."""
    guest.qmp.execute("quit")
    guest.wait_gone()
    passed = Passed()
    name = f"device 'fd:{passed.device}'"
    with nvme_guest(*passed.options(""), device=False) as other:
        passed.start(other)
        other.console.wait_prompt()
        pid = other.pid
        [blocker] = other.qmp.execute("query-migrate")["baton"]["blockers"]
        assert blocker["object"] == name
        assert "descriptor" in blocker["reason"] and "id=" in blocker["remedy"]
        update = other.update(check=False)
        assert update.status == 1
        assert name in update.errors and "id=" in update.errors
        assert other.processes() == [pid]
        other.check_alive()


def test_named_by_host_address(guest: Guest) -> None:
    """Without id= a device of the host's is called after its address, in every process."""
    with nvme_guest("-object", "iommufd,id=iommufd0", "-device", "vfio-pci,host=01:00.0,iommufd=iommufd0",
                    device=False) as other:
        other.boot()
        assert f"vfio/{HOST}/device" in through_proxy(other, f"rename=vfio/{HOST}/device=vfio/{'x' * len(HOST)}/device", "describe")
        other.drop_clients()
        other.update()
        incoming = other.start_incoming(*other.options).wait_listening()
        other.hand_over(incoming.path)
        other.drop_clients()
        other.check_alive()
        other.check_kernel_log()


def test_descriptors_that_are_something_else(guest: Guest) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    other = os.open("/dev/iommu", os.O_RDWR)
    device = ("-device", f"vfio-pci,fd={null},id=nvme0,iommufd=iommufd0")
    message = refused("-object", f"iommufd,id=iommufd0,fd={null}", inherit=(null,))
    assert "iommufd 'iommufd0'" in message and "not of /dev/iommu" in message
    message = refused("-object", f"iommufd,id=iommufd0,fd={other}", *device, inherit=(other, null))
    assert "device 'nvme0'" in message and "/dev/vfio/devices/" in message
    message = refused("-object", "iommufd,id=iommufd0", *device, status=2)  # not inherited
    assert "'nvme0'" in message and f"descriptor {null} is not open" in message
    message = refused("-object", "iommufd,id=iommufd0,fd=handed-over", status=2)
    assert "'iommufd0'" in message and "-incoming" in message
    os.close(null)
    os.close(other)
