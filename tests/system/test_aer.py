# SPDX-License-Identifier: Apache-2.0
# lab: --kernel debian --memory 2048 --device e1000e
"""A device meets an error that cannot be corrected: the guest is stopped, as QEMU stops it. Debian's kernel can inject one."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from baton_lab import Guest, QmpError, bind, vfio_options

MakeGuest = Callable[..., Guest]
ADDRESS = "01:00.0"
COMPLETION_TIMEOUT = 0x4000  # PCI_ERR_UNC_COMP_TIME: uncorrectable, not fatal, so the link is not reset


def inject() -> None:
    """Through the kernel's own AER code: the root port's interrupt, error_detected of vfio-pci, its error notifier."""
    bus, device, function = 1, 0, 0
    Path("/dev/aer_inject").write_bytes(struct.pack("=BBBxIIIIIII", bus, device, function, COMPLETION_TIMEOUT, 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("updates", [0, 2])
def test_error_stops_the_guest(make_guest: MakeGuest, updates: int) -> None:
    bind(ADDRESS)
    guest = make_guest(*vfio_options(ADDRESS, ident="nic0", iommufd="")).boot()
    for _ in range(updates):
        guest.update()
    guest.qmp.execute("query-status")
    inject()
    assert guest.qmp.event("BATON_DEVICE_ERROR")["data"] == {"device": "nic0", "host": f"0000:{ADDRESS}"}
    guest.qmp.event("STOP")
    status = guest.qmp.execute("query-status")
    assert status["status"] == "internal-error" and status["running"] is False
    assert "nic0" in guest.log and "cannot be corrected" in guest.log
    with pytest.raises(QmpError):
        guest.qmp.execute("cont")
    refused = guest.update(check=False)
    assert refused.status != 0 and "internal-error" in refused.errors
    guest.qmp.execute("quit")
    guest.wait_gone()
