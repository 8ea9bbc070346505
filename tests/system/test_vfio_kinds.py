# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device ahci:size=64M --device e1000e --trace pci_cfg_write
"""Other kinds of devices, and several in one guest: a disk controller with MSI and a NIC with MSI-X, across updates."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from baton_lab import Guest, bind, nvme_guest, run, vfio_options

ADDRESSES = ("01:00.0", "02:00.0", "03:00.0")
HERE, THERE = "10.7.0.1", "10.7.0.2"  # L1's end of the NIC's cable, and the guest's


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind(*ADDRESSES)
    run("ip", "address", "add", f"{HERE}/24", "dev", "lab0")
    run("ip", "link", "set", "lab0", "up")
    options = [*vfio_options("02:00.0", ident="ahci0", declare=False), *vfio_options("03:00.0", ident="nic0", declare=False)]
    with nvme_guest(*options) as guest:
        guest.boot()
        guest.command(f"ip address add {THERE}/24 dev eth0; ip link set eth0 up")
        guest.command("for i in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 1 " + HERE + " >/dev/null 2>&1 && break; sleep 1; done")
        yield guest


def read_disk(guest: Guest, count: int) -> None:
    guest.command(f"dd if=/dev/sda of=/dev/null bs=4k count={count} iflag=direct 2>/dev/null")


def test_message_signalled_interrupts(guest: Guest) -> None:
    """The controller has MSI and no MSI-X."""
    before = guest.interrupts("ahci")
    assert "PCI-MSI-" in guest.command("grep ahci /proc/interrupts")
    read_disk(guest, 200)
    assert guest.interrupts("ahci") - before >= 100


def test_disk_keeps_what_was_written(guest: Guest) -> None:
    guest.command("dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null"
                  " && dd if=/tmp/data of=/dev/sda bs=64k oflag=direct 2>/dev/null")
    guest.update()
    assert guest.console.status("dd if=/dev/sda bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/data")[0] == 0


def test_nic_reaches_the_host(guest: Guest) -> None:
    assert "PCI-MSIX-" in guest.command("grep eth0 /proc/interrupts")
    assert run("ping", "-c", "3", "-W", "5", THERE).returncode == 0


def test_no_packet_is_lost_in_updates(guest: Guest) -> None:
    """Fifty packets a second from outside, while the process is replaced three times; all three devices at work."""
    guest.command("(while :; do dd if=/dev/sda of=/dev/null bs=4k count=64 iflag=direct; done >/dev/null 2>&1 & echo $! >/tmp/pid)")
    guest.command(f"(ping -i 0.02 -c 500 {HERE} >/tmp/ping 2>&1; echo $? >/tmp/ping.status) >/dev/null 2>&1 &")
    for _ in range(3):
        guest.update()
    guest.command("while ! [ -e /tmp/ping.status ]; do sleep 0.2; done", patience=180)
    summary = guest.command("cat /tmp/ping")
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", summary)
    assert counts and counts[1] == counts[2] == "500", summary
    guest.command("kill $(cat /tmp/pid)")


def test_interrupts_still_arrive_afterwards(guest: Guest) -> None:
    for pattern, work in (("ahci", lambda: read_disk(guest, 200)),
                          ("eth0", lambda: guest.command(f"ping -i 0.02 -c 100 {HERE} >/dev/null"))):
        before = guest.interrupts(pattern)
        work()
        assert guest.interrupts(pattern) - before >= 50
    guest.check_kernel_log()


def test_reboot_with_all_of_them(guest: Guest) -> None:
    """Functions are reset with the guest, and found again by it."""
    guest.console.send("reboot -f || echo b > /proc/sysrq-trigger\n")
    guest.console.wait_prompt()
    assert guest.console.status("test -b /dev/sda && test -e /sys/class/net/eth0")[0] == 0
    read_disk(guest, 10)
