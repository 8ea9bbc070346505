# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""A guest on a passed-through NVMe drive, and a second drive (virtio-blk) beside it: what VFIO shows, and reads and writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baton_lab import (BATON, MEMORY, VMLINUX, FioLoad, Guest, bind, nvme_guest, pci_driver, run, status_field, unbind,
                       vfio_options, wait_for)

MakeGuest = Callable[..., Guest]
HOST = Path("/sys/bus/pci/devices")
SECOND = vfio_options("02:00.0", ident="blk1", declare=False)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind("01:00.0", "02:00.0")
    with nvme_guest(*SECOND) as guest:
        yield guest.boot()


def refused(*options: str) -> str:
    done = run(BATON, "run", "-kernel", VMLINUX, *options, check=False)
    assert done.returncode == 1
    return done.stderr


def test_device_that_is_not_bound() -> None:
    """Says which device, which driver has it, and what to do."""
    unbind("01:00.0")
    message = refused(*vfio_options("01:00.0", ident="nvme0"))
    assert "01:00.0" in message and "nvme" in message and "vfio-pci" in message


def test_device_that_does_not_exist() -> None:
    assert "0a:00.0" in refused(*vfio_options("0a:00.0", ident="nvme0"))


def test_root_file_system(guest: Guest) -> None:
    assert guest.command("findmnt -no SOURCE /") in ("/dev/nvme0n1", "/dev/root")
    assert guest.command("ls /dev/nvme*n1 /dev/vda").split() == ["/dev/nvme0n1", "/dev/vda"]
    guest.check_kernel_log()


def test_configuration_space(guest: Guest) -> None:
    """What identifies the function passes; its slot and its BARs' addresses are the guest's own."""
    for slot, host in (("01", "01"), ("02", "02")):
        inside = bytes.fromhex(guest.command(f"od -An -v -tx1 -N 256 /sys/bus/pci/devices/0000:00:{slot}.0/config"))
        outside = (HOST / f"0000:{host}:00.0/config").read_bytes()
        assert inside[0x00:0x04] == outside[0x00:0x04], "vendor and device"
        assert inside[0x08:0x0c] == outside[0x08:0x0c], "revision and class"
        assert inside[0x2c:0x30] == outside[0x2c:0x30], "subsystem"
        capabilities = guest.command(f"lspci -s 00:{slot}.0 -v")
        assert "MSI-X: Enable+" in capabilities
        assert "Express" in capabilities


def test_bar_sizes(guest: Guest) -> None:
    for slot, host, bar in (("01", "01", 0), ("02", "02", 1), ("02", "02", 4)):
        size = guest.command(f"stat -c %s /sys/bus/pci/devices/0000:00:{slot}.0/resource{bar}")
        assert int(size) == (HOST / f"0000:{host}:00.0/resource{bar}").stat().st_size


def test_memory_is_pinned(guest: Guest) -> None:
    """For DMA all guest memory stays in place, and this process answers for it."""
    assert status_field(guest.pid, "VmPin") + status_field(guest.pid, "VmLck") >= MEMORY * 1024


def test_write_read_verify(guest: Guest) -> None:
    output = guest.command("fio --name=w --filename=/dev/vda --size=16M --rw=randwrite --bs=4k --iodepth=16"
                           " --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal", 300)
    assert output.split(";")[4] == "0", output
    guest.check_kernel_log()


def test_data_is_really_on_the_drive(guest: Guest) -> None:
    """Written through one path, read through another, around the page cache."""
    guest.command("head -c 1M /dev/urandom > /tmp/data; dd if=/tmp/data of=/dev/vda bs=64k oflag=direct 2>/dev/null")
    guest.command("dd if=/dev/vda of=/tmp/back bs=128k count=8 iflag=direct 2>/dev/null; cmp /tmp/data /tmp/back")


def test_interrupts_are_counted(guest: Guest) -> None:
    """At queue depth one the device raises an interrupt for each read, and the guest handles them."""
    before = guest.interrupts("nvme0q")
    guest.command("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=300 iflag=direct 2>/dev/null")
    assert guest.interrupts("nvme0q") - before >= 300


def test_admin_commands(guest: Guest) -> None:
    assert "lab0" in guest.command("nvme id-ctrl /dev/nvme0 | grep '^sn'")


def test_driver_unbinds_and_binds(guest: Guest) -> None:
    """Vectors are disarmed and armed again; the controller is reset by the guest's driver."""
    for _ in range(2):
        guest.command("echo 0000:00:02.0 > /sys/bus/pci/drivers/virtio-pci/unbind")
        guest.command("echo 0000:00:02.0 > /sys/bus/pci/drivers/virtio-pci/bind")
        wait_for("the drive", lambda: guest.console.status("test -b /dev/vda")[0] == 0)
        guest.command("dd if=/dev/vda of=/dev/null bs=4k count=20 iflag=direct 2>/dev/null")


def test_bar_moves(guest: Guest) -> None:
    """The guest puts a BAR elsewhere: registers answer there, and no longer at the old place."""
    path = "/sys/bus/pci/devices/0000:00:02.0"
    guest.command("echo 0000:00:02.0 > /sys/bus/pci/drivers/virtio-pci/unbind")
    first = guest.command(f"sed -n 5p {path}/resource").split()
    old, size = int(first[0], 16), int(first[1], 16) - int(first[0], 16) + 1
    setpci = "setpci -s 00:02.0"
    guest.command(f"{setpci} COMMAND=0002:0003")
    capability = guest.command(f"busybox devmem {old + 0x10:#x} 32")
    assert capability not in ("0xFFFFFFFF", "0x00000000")
    new = old + 0x200000 & ~(size - 1)
    for address in (new, old):
        guest.command(f"{setpci} COMMAND=0000:0003; {setpci} BASE_ADDRESS_4={address & 0xffffffff:08x}"
                      f" BASE_ADDRESS_5={address >> 32:08x}; {setpci} COMMAND=0002:0003")
        assert guest.command(f"busybox devmem {address + 0x10:#x} 32") == capability
        other = new if address == old else old
        assert guest.command(f"busybox devmem {other + 0x10:#x} 32") == "0xFFFFFFFF"
    guest.command("echo 0000:00:02.0 > /sys/bus/pci/drivers/virtio-pci/bind")
    wait_for("the drive", lambda: guest.console.status("test -b /dev/vda")[0] == 0)


def test_device_in_use_elsewhere(guest: Guest) -> None:
    message = refused(*vfio_options("01:00.0", ident="nvme0"))
    assert "01:00.0" in message
    guest.check_alive()


def test_guest_reboot(guest: Guest) -> None:
    """The devices are reset with the guest, and boot it again."""
    guest.command("sync; mount -o remount,ro /")
    guest.console.send("busybox reboot -f\n")
    guest.qmp.event("RESET", reason="guest-reset")
    guest.console.wait_prompt()
    guest.command("dd if=/dev/vda of=/dev/null bs=4k count=50 iflag=direct 2>/dev/null")
    guest.check_kernel_log()


def test_system_reset_in_the_middle_of_writes(guest: Guest) -> None:
    """DMA that is under way does not reach the next life of the guest."""
    FioLoad(guest, "/dev/vda")
    guest.qmp.execute("system_reset")
    guest.console.wait_prompt()
    guest.command("fio --name=w --filename=/dev/vda --size=2M --rw=write --bs=64k --direct=1 --verify=crc32c"
                  " --do_verify=1 --verify_fatal=1 --minimal", 300)
    guest.check_kernel_log()


def test_device_is_free_afterwards(guest: Guest) -> None:
    """The guest powers off; the host's own driver can have the device, and a second run has it again."""
    guest.console.send("exit\n")
    assert guest.exit_status() == 0
    unbind("01:00.0")
    assert pci_driver("01:00.0") == "nvme"
    name = wait_for("the host's drive", lambda: list(HOST.glob("0000:01:00.0/nvme/nvme*/nvme*n1")))[0].name
    assert re.match(r"nvme\d+", name)
    run("dd", f"if=/dev/{name}", "of=/dev/null", "bs=64k", "count=8", "iflag=direct")
    bind("01:00.0")
    guest.consoles.clear()
    guest.drop_clients()
    guest.boot()
    assert guest.command("ls /dev/nvme*n1 /dev/vda").split() == ["/dev/nvme0n1", "/dev/vda"]
    guest.qmp.execute("quit")
    assert guest.exit_status() == 0
