# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device e1000 --device rtl8139 --device edu,dma_mask=0xffffffffffffffff --trace pci_cfg_write
"""INTx: NICs that have nothing else, under traffic while the process changes; lines pending, masked, shared and reset."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from baton_lab import Edu, Guest, Trace, bind, copy_descriptor, nvme_guest, run, vfio_options, wait_for
from faults import Call, held_update, preload

# For what has nothing to do with how DMA is mapped and takes its time.
iommufd_only = pytest.mark.parametrize("iommufd", ["iommufd0"], ids=["iommufd"], indirect=True)


@dataclass
class Nic:
    """A NIC in the guest, and the end of its cable in L1."""

    ident: str
    host: str  # address in L1
    guest: str  # and in the guest
    cable: str
    net: str  # the guest is .2, L1 is .1
    driver: str
    gsi: int

    def start_ping(self, count: int, interval: float) -> subprocess.Popen[str]:
        return subprocess.Popen(["ping", "-q", "-c", str(count), "-i", str(interval), "-W", "60", f"{self.net}.2"],
                                stdout=subprocess.PIPE, text=True)


NICS = [Nic("e1000", "02:00.0", "0000:00:02.0", "lab0", "10.1.1", "e1000", 18),
        Nic("rtl8139", "03:00.0", "0000:00:03.0", "lab1", "10.1.2", "8139cp", 19)]
READINGS = (0xC208AE62, 0x8070AE9F, 0x8400AE8E)  # KVM_GET_IRQCHIP, KVM_GET_PIT2, KVM_GET_LAPIC
EDU = "0000:00:0a.0"  # eight slots after the first NIC, whose line it shares
KVM_IRQFD = 0x4020AE76
# Where updates fail here: edu's line has two irqfds, and the thread has the drive's interrupts only; the thread has all of them; they
# are held; the new process has their state as well.
FAILURES = [Call("outgoing", "quiesce", "ioctl", KVM_IRQFD, 4),
            *(Call("outgoing", stage, "sendmsg") for stage in ("quiesce", "switch", "go"))]


@pytest.fixture(scope="module")
def trace(iommufd: str) -> Trace:
    return Trace()


def make_guest(iommufd: str, *options: str, append: str = "") -> Guest:
    """With its drive, edu, and what else is given."""
    bind("all")
    edu = vfio_options("04:00.0", ident="edu0", iommufd=iommufd, declare=False, more=",addr=0xa")
    guest = nvme_guest(*edu, *options, iommufd=iommufd, append=append)
    guest.injection = preload(guest)
    return guest


def configure(guest: Guest) -> None:
    for nic in NICS:
        name = guest.command(f"ls /sys/bus/pci/devices/{nic.guest}/net")
        guest.command(f"ip addr add {nic.net}.2/24 dev {name} && ip link set {name} up")
    for nic in NICS:
        assert check_ping(nic.start_ping(3, 0.2), 3)


def check_ping(process: subprocess.Popen[str], count: int) -> bool:
    output, _ = process.communicate(timeout=120)
    assert re.search(rf"{count} packets transmitted, {count} received, .*\b0% packet loss", output), output
    assert "errors" not in output and "duplicates" not in output, output
    return True


@pytest.fixture(scope="module")
def guest(iommufd: str) -> Iterator[Guest]:
    options = []
    for nic in NICS:
        run("ip", "addr", "replace", f"{nic.net}.1/24", "dev", nic.cable)
        run("ip", "link", "set", nic.cable, "up")
        options += vfio_options(nic.host, ident=nic.ident, iommufd=iommufd, declare=False)
    with make_guest(iommufd, *options) as guest:
        guest.boot()
        configure(guest)
        yield guest


def host_interrupts(address: str) -> int:
    """How often VFIO has handled INTx of a device."""
    for line in Path("/proc/interrupts").read_text().splitlines():
        if f"vfio-intx(0000:{address})" in line:
            return sum(int(word) for word in line.split()[1:] if word.isdigit())
    raise AssertionError(f"{address} has no INTx armed")


def undone_update(guest: Guest, call: Call) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """An update that is held for as long as the block takes, and fails then."""
    guest.qmp.execute("trace-event-set-state", name="update_*", enable=True)
    return held_update(guest, guest.injection, call, error=errno.EIO)


def test_lines(guest: Guest) -> None:
    """Pins are routed as the ACPI tables say, level-triggered."""
    for nic in NICS:
        assert "pin A" in guest.command(f"lspci -v -s {nic.guest} -vv | grep Interrupt")
        line = guest.command(f"grep -E '^ *{nic.gsi}:' /proc/interrupts")
        assert "IO-APIC" in line and "fasteoi" in line, line
        assert guest.interrupts(f"^ *{nic.gsi}:") > 0
        assert host_interrupts(nic.host) > 0
    guest.check_kernel_log()


def test_no_packet_lost_by_updates(guest: Guest, trace: Trace) -> None:
    """Pings over both NICs all the while; every one is answered, once."""
    before = [guest.interrupts(f"^ *{nic.gsi}:") for nic in NICS]
    pings = [nic.start_ping(150, 0.05) for nic in NICS]
    for _ in range(5):
        with trace.watch():
            guest.update()
    for ping in pings:
        check_ping(ping, 150)
    for nic, count in zip(NICS, before):
        assert guest.interrupts(f"^ *{nic.gsi}:") - count >= 100
    guest.check_kernel_log()


@iommufd_only
@pytest.mark.parametrize("nic", NICS, ids=[nic.ident for nic in NICS])
def test_large_transfer_across_updates(guest: Guest, trace: Trace, nic: Nic) -> None:
    """TCP into the guest, one connection, summed on both sides."""
    guest.put("/tmp/sink.py", f"import hashlib, socket\nserver = socket.create_server(('{nic.net}.2', 7000))\n"
                              "print('ready', flush=True)\npeer, _ = server.accept()\ntotal = hashlib.sha256()\n"
                              "while data := peer.recv(65536):\n    total.update(data)\nprint(total.hexdigest())\n")
    guest.command("(setsid python3 /tmp/sink.py </dev/null >/tmp/sink.out 2>&1 &)")
    wait_for("the server", lambda: "ready" in guest.command("cat /tmp/sink.out"))
    total, block = hashlib.sha256(), os.urandom(1 << 16)
    with socket.create_connection((f"{nic.net}.2", 7000), timeout=120) as peer:
        for number in range(24):
            piece = block + str(number).encode()
            peer.sendall(piece)
            total.update(piece)
            if number in (4, 8, 12, 16, 20):
                with trace.watch():
                    guest.update()
    wait_for("the sum", lambda: total.hexdigest() in guest.command("cat /tmp/sink.out"))


@pytest.mark.parametrize("nic", NICS, ids=[nic.ident for nic in NICS])
def test_pending_at_the_switch(guest: Guest, nic: Nic) -> None:
    """The device asserts its line while no vCPU runs: the interrupt is in the controllers of a VM that then ends. It reaches
    the guest in the next one, and so do those after it."""
    guest.qmp.execute("stop")
    before = host_interrupts(nic.host)
    ping = nic.start_ping(3, 0.2)
    wait_for("the interrupt", lambda: host_interrupts(nic.host) > before)
    assert host_interrupts(nic.host) == before + 1, "VFIO masks it until the guest has seen to it"
    guest.update()
    assert host_interrupts(nic.host) == before + 1
    guest.qmp.execute("cont")
    check_ping(ping, 3)
    check_ping(nic.start_ping(5, 0.1), 5)
    assert host_interrupts(nic.host) > before + 1
    guest.check_kernel_log()


@iommufd_only
def test_masked_lines(guest: Guest) -> None:
    """An interrupt that the guest holds or masks through INTx disable, over updates at each step."""
    update_at_each_step(guest, FAILURES)


def update_at_each_step(guest: Guest, failures: list[Call]) -> None:
    """And then one that is undone: the guest goes on in the process that has taken it back."""
    edu = Edu(guest, EDU, "steps")
    for number, call in enumerate(failures, 1):
        edu.wait_step(number)
        guest.update()
        with undone_update(guest, call):
            pass
        edu.go(number)
    assert edu.result() == "ok"
    guest.check_kernel_log()


@iommufd_only
def test_shared_line_across_updates(guest: Guest, trace: Trace) -> None:
    """Two devices on one line, both busy: each gets its interrupts, and edu counts that it gets every one."""
    edu = Edu(guest, EDU, "intx")
    edu.wait_for_more()
    ping = NICS[0].start_ping(100, 0.05)
    for _ in range(5):
        with trace.watch():
            guest.update()
        edu.wait_for_more(50)
    check_ping(ping, 100)
    edu.stop().check()
    guest.check_kernel_log()


def is_asserted(address: str) -> bool:
    """Interrupt status, a bit of PCI_STATUS: whatever masks the line, the device tells."""
    return bool(Path(f"/sys/bus/pci/devices/0000:{address}/config").read_bytes()[6] & 8)


def assert_lines() -> list[subprocess.Popen[str]]:
    """Pings to both NICs, each of which has raised an interrupt since, or asserts its line still: then it raises no further one."""
    before = [host_interrupts(nic.host) for nic in NICS]
    pings = [nic.start_ping(3, 0.2) for nic in NICS]
    wait_for("interrupts", lambda: all(host_interrupts(nic.host) > count or is_asserted(nic.host) for nic, count in zip(NICS, before)))
    return pings


@iommufd_only
def test_asserted_before_an_undone_update(guest: Guest, trace: Trace) -> None:
    """The guest has not handled the interrupts when the update begins."""
    for call in FAILURES:
        guest.qmp.execute("stop")
        pings = assert_lines()
        with trace.watch(), undone_update(guest, call):
            pass
        guest.qmp.execute("cont")
        for ping in pings:
            check_ping(ping, 3)
    guest.update()
    guest.check_kernel_log()


@iommufd_only
def test_asserted_during_an_undone_update(guest: Guest, trace: Trace) -> None:
    """The guest is served by the thread then, or does not run. Two devices share one of the lines; edu's interrupts are counted."""
    edu = Edu(guest, EDU, "intx")
    for call in FAILURES:
        edu.wait_for_more()
        with trace.watch(), undone_update(guest, call):
            pings = assert_lines()
        for ping in pings:
            check_ping(ping, 3)
    edu.wait_for_more()
    guest.update()
    edu.wait_for_more()
    edu.stop().check()
    guest.check_kernel_log()


def test_nothing_was_reset(trace: Trace) -> None:
    assert len(trace.lines) > 0, "VFIO masks and unmasks through configuration space, so there is something to see"
    trace.check_untouched("e1000", "rtl8139", "edu", "nvme")


@iommufd_only
def test_reset_brings_all_back(guest: Guest) -> None:
    guest.command("sync; mount -o remount,ro /")
    guest.qmp.execute("system_reset")
    guest.console.wait_prompt()
    configure(guest)
    edu = Edu(guest, EDU, "intx")
    edu.wait_for_more(50)
    guest.update()
    edu.stop().check()
    guest.console.send("exit\n")
    guest.wait_gone()


@iommufd_only
def test_lines_masked_in_the_controller(iommufd: str) -> None:
    """A guest that masks its IOAPIC's input instead of using INTx disable."""
    with make_guest(iommufd, append="vfio_pci.nointxmask=1") as guest:
        guest.boot()
        update_at_each_step(guest, FAILURES)
        update_at_each_step(guest, FAILURES[::-1])
        edu = Edu(guest, EDU, "intx")
        for _ in range(3):
            edu.wait_for_more(50)
            guest.update()
        edu.stop().check()
        guest.check_kernel_log()


def pin(guest: Guest, gsi: int) -> int:
    """The eventfd through which the guest's process, held in an update, raises a line itself: the one that it gave to KVM last."""
    return int(re.findall(rf"^{guest.pid}@\S+:kvm_irqfd_assign gsi={gsi} fd=(\d+)", guest.log, re.M)[-1])


@iommufd_only
def test_between_the_controllers(iommufd: str) -> None:
    """The kernel raises a line some time after it was told to: maybe when one interrupt controller has been read and the next has
    not. Whatever they say then, the line must not wait for an answer to an interrupt that no vCPU has."""
    with make_guest(iommufd, "-trace", "update_*", "-trace", "kvm_irqfd_*") as guest:
        guest.boot()
        edu = Edu(guest, EDU, "intx")
        for request in READINGS:
            edu.wait_for_more()
            call = Call("outgoing", "pause", "ioctl", request)
            with held_update(guest, guest.injection, call, "kvm_irqfd_*"):
                eventfd = copy_descriptor(guest.pid, pin(guest, NICS[0].gsi))
                os.eventfd_write(eventfd, 1)
                os.close(eventfd)
                time.sleep(0.2)
            edu.wait_for_more()
        edu.stop().check()
        guest.check_kernel_log()
