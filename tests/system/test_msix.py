# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device ahci:size=64M --device e1000e --trace pci_cfg_write
"""MSI-X: messages, masked and pending vectors, and vectors that are first enabled after an update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import Guest, Trace, bind, nvme_guest, through_proxy, vfio_options, wait_for

NIC = "0000:00:02.0"


@pytest.fixture(scope="module")
def guest(iommufd: str) -> Iterator[Guest]:
    bind("all")
    with nvme_guest(*vfio_options("03:00.0", ident="nic0", iommufd=iommufd, declare=False), iommufd=iommufd) as guest:
        yield guest.boot()


def test_vectors_across_updates(guest: Guest) -> None:
    """An update at each step of msix_driver.py, which sees what has come of every vector before and after. Two are followed by
    one that is undone, after which the driver goes on in the process that has taken the guest back."""
    trace = Trace()
    for name in ("edu_driver.py", "msix_driver.py"):
        guest.put(f"/tmp/{name}", (Path(__file__).parent / name).read_text())
    guest.command("rm -rf /tmp/msix; mkdir /tmp/msix")
    guest.command(f"(setsid python3 /tmp/msix_driver.py {NIC} /tmp/msix </dev/null >/tmp/msix/log 2>&1 &)")

    def state(name: str) -> str:
        assert guest.command("cat /tmp/msix/log") == ""
        assert guest.console.status("cat /tmp/msix/result")[1].strip() in ("ok", "cat: /tmp/msix/result: No such file or directory")
        return guest.console.status(f"ls /tmp/msix/{name} 2>/dev/null")[1]

    for number, stage in enumerate(("switch", "quiesce", "", ""), 1):
        wait_for(f"step {number}", lambda: state(f"step{number}"))
        with trace.watch():
            guest.update()
            if stage:
                assert stage in through_proxy(guest, "close-after", stage)
        guest.command(f"touch /tmp/msix/go{number}")
    wait_for("the result", lambda: state("result"))
    trace.check_untouched("e1000e", "nvme")
    guest.check_alive()
    guest.check_kernel_log()


def test_driver_takes_over_again(guest: Guest) -> None:
    """The guest's own driver, which has MSI-X enabled anew in a process that has never armed a vector of this device."""
    guest.command("pkill -f msix_driver.py; true")
    guest.command(f"echo > /sys/bus/pci/devices/{NIC}/driver_override; echo {NIC} > /sys/bus/pci/drivers/vfio-pci/unbind;"
                  f" echo {NIC} > /sys/bus/pci/drivers_probe")
    name = guest.command(f"ls /sys/bus/pci/devices/{NIC}/net")
    guest.command(f"ip link set {name} up")
    wait_for("the link", lambda: guest.console.status(f"grep -q 1 /sys/class/net/{name}/carrier")[0] == 0)
    assert guest.interrupts(name) > 0
    guest.update()
    guest.command(f"ip link set {name} down; ip link set {name} up")
    wait_for("the link", lambda: guest.console.status(f"grep -q 1 /sys/class/net/{name}/carrier")[0] == 0)
    guest.check_kernel_log()
