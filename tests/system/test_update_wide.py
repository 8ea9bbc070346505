# SPDX-License-Identifier: Apache-2.0
# lab: --memory 5120 --device nvme --device virtio-blk:size=64M
"""Updates of bigger guests: two and more vCPUs, memory above 4 GiB, huge pages, no passed-through device at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baton_lab import FioLoad, Guest, bind, nvme_guest, vfio_options, wait_for
from test_update import check_report

MakeGuest = Callable[..., Guest]
SECOND = vfio_options("02:00.0", ident="blk1", declare=False)


@pytest.fixture(scope="module")
def big() -> Iterator[Guest]:
    """Two vCPUs, and 256 MiB above the 4 GiB boundary: all of it pinned for the devices, in huge pages for speed."""
    Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").write_text("advise")
    bind("01:00.0", "02:00.0")
    with nvme_guest(*SECOND, memory="3328M", cpus=2) as guest:
        yield guest.boot()


def test_two_processors_under_load(big: Guest) -> None:
    """Both work while the process under them changes, timers and inter-processor interrupts included. What keeps them busy steps
    back for what is waited for."""
    for cpu in (1, 2):
        big.command(f"(nice -n 19 taskset {cpu} sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 &)")
    load = FioLoad(big, "/root/load")
    for _ in range(3):
        assert big.update().blackout_ms
    assert load.stop() >= 1
    big.command("pkill -f 'while :' || true")
    for cpu in (1, 2):
        assert big.command(f"taskset {cpu} sh -c 'sleep 0.1; echo ran'") == "ran"
    assert big.command("cat /sys/devices/system/cpu/online") == "0-1"
    big.check_alive()
    big.check_kernel_log()


def test_report_has_both_processors(big: Guest) -> None:
    incoming = big.start_incoming().wait_listening()
    check_report(big.hand_over(incoming.path), cpus=2)
    big.drop_clients()
    big.check_alive()


def test_memory_above_four_gigabytes(big: Guest) -> None:
    """Pages in the upper part hold their content, and take DMA."""
    assert int(big.command("grep 'System RAM' /proc/iomem | tail -n 1 | cut -d- -f2 | cut -d' ' -f1 | sed 's/^/0x/'"), 16) >= 4 << 30
    big.command("mkdir -p /tmp/big; mount -t tmpfs -o size=100m tmpfs /tmp/big")
    # The kernel gives out its upper zone first; the drive writes into it and reads from it.
    big.command("head -c 24M /dev/urandom > /tmp/big/data; sha256sum /tmp/big/data > /tmp/sum", 300)
    big.command("dd if=/tmp/big/data of=/dev/vda bs=1M oflag=direct 2>/dev/null", 300)
    big.update()
    big.command("sha256sum -c /tmp/sum", 300)
    big.command("dd if=/dev/vda of=/tmp/big/back bs=1M count=24 iflag=direct 2>/dev/null; cmp /tmp/big/data /tmp/big/back", 300)
    big.check_kernel_log()


def test_end_of_the_big_guest(big: Guest) -> None:
    big.qmp.execute("quit")
    big.wait_gone()


def test_huge_pages(make_guest: MakeGuest) -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    Path("/proc/sys/vm/compact_memory").write_text("1")
    (pool / "nr_hugepages").write_text("128")
    try:
        assert (pool / "nr_hugepages").read_text().strip() == "128"
        guest = nvme_guest("-object", "memory-backend-memfd,id=ram0,size=256M,hugetlb=on", "-machine", "memory-backend=ram0",
                           memory="256M")
        with guest:
            guest.boot()
            for _ in range(2):
                guest.update()
            assert (pool / "free_hugepages").read_text().strip() == "0"
            guest.check_alive()
            guest.check_kernel_log()
        wait_for("the pages", lambda: (pool / "free_hugepages").read_text().strip() == "128")
    finally:
        (pool / "nr_hugepages").write_text("0")


def memory_in_use(guest: Guest) -> int:
    """Bytes that are allocated of the memfd that holds its memory."""
    return 512 * guest.memory_file.stat().st_blocks


def test_eight_processors_without_devices(make_guest: MakeGuest) -> None:
    """No iommufd, no vector to move: an initrd guest. What it has not touched of its memory costs the host nothing afterwards,
    either."""
    guest = make_guest(cpus=8, memory="512M").boot()
    guest.command("echo kept > /tmp/kept")
    before = memory_in_use(guest)
    for _ in range(2):
        guest.update()
    assert before <= memory_in_use(guest) < before + (16 << 20) < 256 << 20
    for cpu in range(8):
        assert guest.command(f"taskset {1 << cpu:x} sh -c 'sleep 0.05; echo ran'") == "ran"
    assert guest.command("cat /tmp/kept") == "kept"
    guest.check_alive()
    guest.check_kernel_log()
