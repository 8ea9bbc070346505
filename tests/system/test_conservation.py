# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device edu,dma_mask=0xffffffffffffffff --trace pci_cfg_write
"""Interrupts are conserved: a device that raises an exact number of them, as fast as the guest takes them, through 50 updates."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from baton_lab import Edu, Guest, Trace, bind, nvme_guest, vfio_options

EDU = "0000:00:02.0"
UPDATES = 50


@pytest.fixture(scope="module")
def guest(iommufd: str) -> Iterator[Guest]:
    bind("all")
    with nvme_guest(*vfio_options("02:00.0", ident="edu0", iommufd=iommufd, declare=False), iommufd=iommufd) as guest:
        yield guest.boot()


@pytest.mark.parametrize("mode", ["msi", "intx"])
def test_50_updates(guest: Guest, mode: str) -> None:
    """What the device raised, what the driver handled, and what the guest's kernel counted agree; edu_driver.c says why a
    loss or a duplicate cannot hide."""
    trace = Trace()
    edu = Edu(guest, EDU, mode)
    edu.wait_for_more()
    first, start = edu.raised, time.monotonic()
    for _ in range(UPDATES):
        with trace.watch():
            guest.update()
    last, seconds = edu.raised, time.monotonic() - start
    counts = edu.stop()
    print(f"{mode}: {counts}, {(last - first) / seconds:.0f} a second during {UPDATES} updates in {seconds:.0f} s")
    counts.check()
    assert last - first > UPDATES * 20, "there was traffic during the updates"
    if mode == "msi":
        assert counts.in_kernel == counts.raised
    else:
        assert counts.raised <= counts.in_kernel <= counts.raised + 2 * UPDATES, "spurious ones are rare"
    trace.check_untouched("edu", "nvme")
    guest.check_alive()
    guest.check_kernel_log()
