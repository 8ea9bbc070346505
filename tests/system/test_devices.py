# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device edu,dma_mask=0xffffffffffffffff --device e1000e --device pvpanic-pci
"""Devices of other kinds beside the NVMe drive: MSI and DMA (edu), a NIC, a BAR smaller than a page, a ROM, I/O ports."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import Edu, Guest, bind, nvme_guest, run, vfio_options, wait_for

HOST = Path("/sys/bus/pci/devices")
GUEST = "/sys/bus/pci/devices"
EDU, NIC, PANIC = "0000:00:02.0", "0000:00:03.0", "0000:00:04.0"


def host_rom(address: str) -> bytes:
    path = HOST / f"0000:{address}" / "rom"
    if not path.exists():
        return b""
    path.write_text("1")
    try:
        return path.read_bytes()
    finally:
        path.write_text("0")


@pytest.fixture(scope="module")
def rom() -> bytes:
    """The NIC's ROM as the host reads it, before a guest has the device."""
    return host_rom("03:00.0")


@pytest.fixture(scope="module")
def guest(rom: bytes) -> Iterator[Guest]:
    bind("all")
    run("ip", "addr", "replace", "10.1.1.1/24", "dev", "lab0")
    run("ip", "link", "set", "lab0", "up")
    options = [word for address, name in (("02:00.0", "edu0"), ("03:00.0", "nic0"), ("04:00.0", "panic0"))
               for word in vfio_options(address, ident=name, declare=False)]
    with nvme_guest(*options) as guest:
        yield guest.boot()


def test_all_are_there(guest: Guest) -> None:
    devices = guest.command("lspci -n | cut -d' ' -f1,3").splitlines()
    assert [line.split()[1] for line in devices if not line.startswith("00:00.0")] == [
        "1b36:0010", "1234:11e8", "8086:10d3", "1b36:0011"]


def test_msi_and_dma(guest: Guest) -> None:
    """As many interrupts as were raised, no more, no less; what DMA copied is what was there."""
    edu = Edu(guest, EDU, "msi")
    edu.wait_for_more(200)
    edu.stop().check()


def test_interrupts_across_updates(guest: Guest) -> None:
    """The same while the process changes six times: one interrupt lost or doubled would show."""
    edu = Edu(guest, EDU, "msi")
    edu.wait_for_more()
    before = guest.interrupts("vfio-msi")
    start = edu.raised
    for _ in range(6):
        guest.update()
        edu.wait_for_more(100)
    counts = edu.stop()
    counts.check()
    assert counts.raised - start >= 600 and before > 0
    guest.check_alive()
    guest.check_kernel_log()


@pytest.fixture(scope="module")
def network(guest: Guest) -> str:
    name = guest.command(f"ls {GUEST}/{NIC}/net")
    guest.command(f"ip addr add 10.1.1.2/24 dev {name} && ip link set {name} up")
    wait_for("the link", lambda: guest.console.status(f"grep -q 1 /sys/class/net/{name}/carrier")[0] == 0)
    return name


def test_nic_link_and_traffic(guest: Guest, network: str) -> None:
    assert "MSI-X: Enable+" in guest.command(f"lspci -v -s {NIC}")
    output = guest.command("ping -c 5 -i 0.2 -W 20 10.1.1.1")
    assert " 0% packet loss" in output
    assert guest.interrupts(network) > 0


def test_no_packet_lost_by_updates(guest: Guest, network: str) -> None:
    """A ping ten times a second: all of them are answered, if late."""
    token = guest.console.start("ping -q -c 60 -i 0.1 -W 30 10.1.1.1")
    for _ in range(3):
        guest.update()
    status, output = guest.console.finish(token)
    assert status == 0 and re.search(r"60 packets transmitted, 60 received, .*\b0% packet loss", output), output
    assert "errors" not in output and "duplicates" not in output
    guest.check_kernel_log()


def test_large_transfer_across_updates(guest: Guest, network: str) -> None:
    """TCP into the guest, summed on both sides."""
    guest.put("/tmp/sink.py", "import hashlib, socket\nserver = socket.create_server(('10.1.1.2', 7000))\nprint('ready', flush=True)\n"
                              "peer, _ = server.accept()\ntotal = hashlib.sha256()\nwhile data := peer.recv(65536):\n"
                              "    total.update(data)\nprint(total.hexdigest())\n")
    guest.command("(setsid python3 /tmp/sink.py </dev/null >/tmp/sink.out 2>&1 &)")
    wait_for("the server", lambda: "ready" in guest.command("cat /tmp/sink.out"))
    total, block = hashlib.sha256(), os.urandom(1 << 16)
    with socket.create_connection(("10.1.1.2", 7000), timeout=120) as peer:
        for number in range(32):
            piece = block + str(number).encode()
            peer.sendall(piece)
            total.update(piece)
            if number in (8, 16, 24):
                guest.update()
    wait_for("the sum", lambda: total.hexdigest() in guest.command("cat /tmp/sink.out"))


def test_bar_smaller_than_a_page(guest: Guest) -> None:
    """The host's BAR is smaller than a page. One that can be mapped is shown to the guest as a whole page, as VFIO keeps the
    rest of that page free; another is trapped, and keeps its size."""
    host_first, host_last = (int(word, 16) for word in (HOST / "0000:04:00.0" / "resource").read_text().split()[:2])
    first, last = (int(word, 16) for word in guest.command(f"head -n 1 {GUEST}/{PANIC}/resource").split()[:2])
    assert host_last - host_first + 1 < 4096
    assert last - first + 1 in (host_last - host_first + 1, 4096)
    guest.command(f"setpci -s {PANIC} COMMAND=0002:0002")
    supported = int(guest.command(f"busybox devmem {first:#x} 8"), 16)
    assert supported & 3 == 3 and supported < 0x10, "the events that it can tell: panicked, crash loaded"
    guest.update()
    assert int(guest.command(f"busybox devmem {first:#x} 8"), 16) == supported


def test_rom(guest: Guest, rom: bytes) -> None:
    """The first pages of it: each read is an exit."""
    length = 8192
    assert rom[:2] == b"\x55\xaa" and len(rom) >= length
    guest.command(f"echo 1 > {GUEST}/{NIC}/rom && head -c {length} {GUEST}/{NIC}/rom > /tmp/rom; echo 0 > {GUEST}/{NIC}/rom", 300)
    assert guest.command("sha256sum < /tmp/rom").split()[0] == hashlib.sha256(rom[:length]).hexdigest()


def test_io_ports(guest: Guest, network: str) -> None:
    """The NIC's registers through its I/O BAR are those of its memory BAR: STATUS, by way of IOADDR and IODATA."""
    lines = guest.command(f"cat {GUEST}/{NIC}/resource").splitlines()
    memory = int(lines[0].split()[0], 16)
    guest.command(f"setpci -s {NIC} COMMAND=0003:0003")
    guest.put("/tmp/port.py", f"import os\nfile = os.open('{GUEST}/{NIC}/resource2', os.O_RDWR)\n"
                              "os.pwrite(file, (8).to_bytes(4, 'little'), 0)\n"
                              "print(hex(int.from_bytes(os.pread(file, 4, 4), 'little')))\n")
    through_port = int(guest.command("python3 /tmp/port.py"), 16)
    assert through_port == int(guest.command(f"busybox devmem {memory + 8:#x} 32"), 16)
    assert through_port & 2, "link up"


def test_reset_brings_all_back(guest: Guest) -> None:
    guest.command("sync; mount -o remount,ro /")
    guest.qmp.execute("system_reset")
    guest.console.wait_prompt()
    edu = Edu(guest, EDU, "msi")
    edu.wait_for_more(200)
    edu.stop().check()
    name = guest.command(f"ls {GUEST}/{NIC}/net")
    guest.command(f"ip addr add 10.1.1.2/24 dev {name} && ip link set {name} up")
    assert " 0% packet loss" in guest.command("ping -c 3 -i 0.2 -W 20 10.1.1.1 || ping -c 3 -W 20 10.1.1.1")
    guest.console.send("exit\n")
    guest.wait_gone()
