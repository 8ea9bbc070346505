# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --trace pci_cfg_write
"""Interrupts are conserved: devices that raise an exact number of them, as fast as the guest takes them, through 50 updates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from baton_lab import Edu, Guest, Trace, bind, nvme_guest, vfio_options

UPDATES = 50


@dataclass
class Device:
    mode: str
    iommufd: str  # the drive's; or empty, for a container
    slot: int  # in L1, and in the guest

    @property
    def name(self) -> str:
        return f"{self.mode}-{self.iommufd or 'container'}"

    def options(self) -> list[str]:
        return vfio_options(f"{self.slot:02x}:00.0", ident=self.name, iommufd=self.iommufd, declare=False)

    def start(self, guest: Guest) -> Edu:
        return Edu(guest, f"0000:00:{self.slot:02x}.0", self.mode, f"/tmp/{self.name}")


DEVICES = [Device("msi", "iommufd0", 2), Device("intx", "iommufd0", 3), Device("msi", "", 4), Device("intx", "", 5)]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind("all")
    with nvme_guest(*(word for device in DEVICES for word in device.options()), iommufd="iommufd0") as guest:
        yield guest.boot()


def test_50_updates(guest: Guest) -> None:
    """What each device raised, what its driver handled, and what the guest's kernel counted agree; edu_driver.c says why a loss
    or a duplicate cannot hide."""
    trace = Trace()
    edus = [device.start(guest) for device in DEVICES]
    for edu in edus:
        edu.wait_for_more()
    first, start = [edu.raised for edu in edus], time.monotonic()
    for _ in range(UPDATES):
        with trace.watch():
            guest.update()
    last, seconds = [edu.raised for edu in edus], time.monotonic() - start
    counts = [edu.stop() for edu in edus]
    during = [after - before for before, after in zip(first, last)]
    for device, count, raised in zip(DEVICES, counts, during):
        print(f"{device.name}: {count}, {raised / seconds:.0f} a second during {UPDATES} updates in {seconds:.0f} s")
    for device, count, raised in zip(DEVICES, counts, during):
        count.check()
        assert raised > UPDATES * 20, f"{device.name}: there was traffic during the updates"
        if device.mode == "msi":
            assert count.in_kernel == count.raised
        else:
            assert count.raised <= count.in_kernel <= count.raised + 2 * UPDATES, "spurious ones are rare"
    trace.check_untouched("edu", "nvme")
    guest.check_alive()
    guest.check_kernel_log()
