# SPDX-License-Identifier: Apache-2.0
# lab: --memory 2048 --device e1000e
# lab-all: --kernel debian --memory 2048 --device e1000e
"""The host wants a passed-through device back: who runs the guest is told, before and after updates, until it is given back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from baton_lab import Guest, bind, pci_driver, vfio_options, wait_for

MakeGuest = Callable[..., Guest]
ADDRESS = "01:00.0"
OPTIONS = vfio_options(ADDRESS, ident="nic0", iommufd="iommufd0" if Path("/dev/iommu").exists() else "")
REQUEST = {"device": "nic0", "host": f"0000:{ADDRESS}"}


class Unbinding:
    """`echo ADDRESS > .../unbind`, which the kernel does not end before the device is closed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sh", "-c", f"echo 0000:{ADDRESS} > /sys/bus/pci/drivers/vfio-pci/unbind"])

    @property
    def is_waiting(self) -> bool:
        return self.process.poll() is None

    def wait_done(self) -> None:
        assert self.process.wait(60) == 0
        assert pci_driver(ADDRESS) == ""


def wait_request(guest: Guest) -> None:
    assert guest.qmp.event("BATON_DEVICE_REQUEST")["data"] == REQUEST


def test_request_before_and_after_an_update(make_guest: MakeGuest) -> None:
    """The kernel repeats its request every ten seconds, so the new process hears of one that was made to the old one."""
    bind(ADDRESS)
    guest = make_guest(*OPTIONS).boot()
    assert guest.qmp.execute("query-status")["status"] == "running"  # connected before it happens
    unbinding = Unbinding()
    wait_request(guest)
    assert "nic0" in guest.log and ADDRESS in guest.log
    for _ in range(2):
        guest.update()
        wait_request(guest)
    assert unbinding.is_waiting
    guest.check_alive()
    guest.qmp.execute("quit")
    unbinding.wait_done()
    guest.wait_gone()


def test_request_only_after_an_update(make_guest: MakeGuest) -> None:
    """Armed once by the first process, heard by the third. It ends with the guest's own end as well."""
    bind(ADDRESS)
    guest = make_guest(*OPTIONS).boot()
    for _ in range(2):
        guest.update()
    assert guest.qmp.execute("query-status")["status"] == "running"
    unbinding = Unbinding()
    wait_request(guest)
    assert unbinding.is_waiting
    guest.console.send("exit\n")
    unbinding.wait_done()
    guest.wait_gone()


def test_request_while_the_guest_changes_hands(make_guest: MakeGuest) -> None:
    """One that comes in the middle of a hand-over is heard by the process that has the guest in the end; here that is the old
    one, since the new one does not get so far."""
    bind(ADDRESS)
    guest = make_guest(*OPTIONS).boot()
    qmp = guest.qmp
    qmp.execute("query-status")
    incoming = guest.start_incoming("-m", "64M").wait_listening()  # not what the guest has: refused in describe
    unbinding = Unbinding()
    guest.hand_over(incoming.path, "failed")
    wait_request(guest)
    guest.check_alive()
    assert unbinding.is_waiting
    guest.qmp.execute("quit")
    unbinding.wait_done()


def test_many_requests_are_few_messages(make_guest: MakeGuest) -> None:
    """Each unbinding that waits, and each repetition, is one request; more than one a second is not passed on."""
    bind(ADDRESS)
    guest = make_guest(*OPTIONS).boot()
    guest.qmp.execute("query-status")
    unbinding, start = Unbinding(), time.monotonic()
    wait_request(guest)
    wait_request(guest)
    elapsed = time.monotonic() - start
    assert guest.log.count("wants device") <= elapsed + 2
    guest.qmp.execute("quit")
    unbinding.wait_done()
    wait_for("the end", lambda: not guest.processes())
