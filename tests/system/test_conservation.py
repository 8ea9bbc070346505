# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --trace pci_cfg_write
"""Interrupts are conserved: devices that raise an exact number of them, as fast as the guest takes them, through 50 updates."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from baton_lab import Edu, Guest, Trace, bind, nvme_guest, vfio_options

DEVICES = {"msi": ("02:00.0", "0000:00:02.0"), "intx": ("03:00.0", "0000:00:03.0")}  # in L1, and in the guest
UPDATES = 50


@pytest.fixture(scope="module")
def guest(iommufd: str) -> Iterator[Guest]:
    bind("all")
    words = [word for mode, (host, _) in DEVICES.items() for word in vfio_options(host, ident=mode, iommufd=iommufd, declare=False)]
    with nvme_guest(*words, iommufd=iommufd) as guest:
        yield guest.boot()


def test_50_updates(guest: Guest) -> None:
    """What each device raised, what its driver handled, and what the guest's kernel counted agree; edu_driver.c says why a loss
    or a duplicate cannot hide."""
    trace = Trace()
    edus = {mode: Edu(guest, address, mode, f"/tmp/{mode}") for mode, (_, address) in DEVICES.items()}
    for edu in edus.values():
        edu.wait_for_more()
    first, start = {mode: edu.raised for mode, edu in edus.items()}, time.monotonic()
    for _ in range(UPDATES):
        with trace.watch():
            guest.update()
    last, seconds = {mode: edu.raised for mode, edu in edus.items()}, time.monotonic() - start
    counts = {mode: edu.stop() for mode, edu in edus.items()}
    for mode, count in counts.items():
        raised = last[mode] - first[mode]
        print(f"{mode}: {count}, {raised / seconds:.0f} a second during {UPDATES} updates in {seconds:.0f} s")
    for mode, count in counts.items():
        count.check()
        assert last[mode] - first[mode] > UPDATES * 20, "there was traffic during the updates"
    assert counts["msi"].in_kernel == counts["msi"].raised
    assert counts["intx"].raised <= counts["intx"].in_kernel <= counts["intx"].raised + 2 * UPDATES, "spurious ones are rare"
    trace.check_untouched("edu", "nvme")
    guest.check_alive()
    guest.check_kernel_log()
