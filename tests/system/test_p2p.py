# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --trace pci_cfg_write
"""Peer-to-peer: devices that do DMA into each other's BARs, across updates, on both back ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import Guest, bind, nvme_guest, through_proxy, vfio_options, wait_for

EDU = ("0000:00:02.0", "0000:00:03.0")


def peers_guest(iommufd: str, more: str = "") -> Guest:
    bind("01:00.0", "02:00.0", "03:00.0")
    words: list[str] = []
    for number in (0, 1):
        words += vfio_options(f"0{number + 2}:00.0", ident=f"edu{number}", iommufd=iommufd, declare=False, more=more)
    return nvme_guest(*words, iommufd=iommufd)


class PeerLoop:
    """p2p_driver.py at work in the guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        for name in ("edu_driver.py", "p2p_driver.py"):
            guest.put(f"/tmp/{name}", (Path(__file__).parent / name).read_text())
        guest.command("rm -rf /tmp/peers; mkdir /tmp/peers")
        guest.command(f"(setsid python3 /tmp/p2p_driver.py {EDU[0]} {EDU[1]} /tmp/peers </dev/null >/tmp/peers/log 2>&1 &)")
        self.wait_for_more(1)

    @property
    def rounds(self) -> int:
        return int(self.guest.first_line("/tmp/peers/progress") or 0)

    def wait_for_more(self, more: int) -> None:
        wanted = self.rounds + more

        def reached() -> bool:
            log = self.guest.command("cat /tmp/peers/log")
            assert not log, log
            return self.rounds >= wanted
        wait_for(f"{wanted} rounds of DMA", reached)

    def stop(self) -> tuple[int, int]:
        self.guest.command("touch /tmp/peers/stop")
        wait_for("its result", lambda: self.guest.console.status("test -s /tmp/peers/result")[0] == 0)
        rounds, mistakes = map(int, self.guest.command("cat /tmp/peers/result").split())
        return rounds, mistakes


@pytest.fixture(scope="module")
def guest(iommufd: str) -> Iterator[Guest]:
    with peers_guest(iommufd) as guest:
        yield guest.boot()


def test_peers_across_updates(guest: Guest) -> None:
    """Some are undone, when ownership has moved, and when the new process, which ends by itself, has all state."""
    loop = PeerLoop(guest)
    for stage in ("", "quiesce", "", "switch", ""):
        guest.update()
        if stage:
            assert stage in through_proxy(guest, "close-after", stage)
        loop.wait_for_more(1)
    rounds, mistakes = loop.stop()
    assert rounds >= 6 and mistakes == 0
    assert "cannot" not in guest.log
    guest.check_alive()
    guest.check_kernel_log()
