# SPDX-License-Identifier: Apache-2.0
# lab: --memory 8192
"""Guests come up, and see the machine that the command line describes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baton_lab import BATON, KERNEL, VMLINUX, Guest, run, status_field

MakeGuest = Callable[..., Guest]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A bzImage with an initrd: what most tests of this file look at."""
    with Guest(memory="192M", kernel=KERNEL, append="test.word=one test.quoted='two three'") as guest:
        yield guest.boot()


def test_bzimage_with_initrd(guest: Guest) -> None:
    assert guest.command("cat /proc/1/comm") in ("init", "guest-init")
    assert "rootfs" in guest.command("mount | head -n 1")


def test_command_line(guest: Guest) -> None:
    line = guest.command("cat /proc/cmdline")
    assert "test.word=one test.quoted='two three'" in line
    assert line.startswith("console=ttyS0")


def test_memory_size(guest: Guest) -> None:
    total = int(guest.command("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert 150 * 1024 < total < 192 * 1024


def test_acpi_tables(guest: Guest) -> None:
    tables = set(guest.command("ls /sys/firmware/acpi/tables").split())
    assert {"APIC", "MCFG", "FACP", "DSDT"} <= tables
    assert guest.kernel_log("ACPI.*(error|warning)|firmware bug|bios bug") == []


def test_acpi_dsdt_is_sane(guest: Guest) -> None:
    head = guest.command("dd if=/sys/firmware/acpi/tables/DSDT bs=36 count=1 2>/dev/null | od -An -c | tr -d ' \\n'")
    assert head.startswith("DSDT")
    sums = guest.command("for t in APIC MCFG FACP DSDT; do od -An -v -tu1 /sys/firmware/acpi/tables/$t |"
                         " awk '{for (i = 1; i <= NF; i++) s += $i} END {print s % 256}'; done")
    assert sums.split() == ["0", "0", "0", "0"]


def test_power_button_and_soft_off(guest: Guest) -> None:
    assert guest.kernel_log("ACPI: PM: .*supports.*S0.*S5"), "no S5 in the FADT and DSDT"
    assert guest.kernel_log("Power Button")


def test_pci_root_with_ecam(guest: Guest) -> None:
    assert guest.kernel_log("ECAM|MMCONFIG")
    devices = guest.command("ls /sys/bus/pci/devices").split()
    assert devices == ["0000:00:00.0"]
    # 4096 bytes of configuration space are only there through ECAM.
    assert guest.command("wc -c < /sys/bus/pci/devices/0000:00:00.0/config").strip() in ("256", "4096")


def test_paravirtual_clock(guest: Guest) -> None:
    assert guest.command("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") in ("kvm-clock", "tsc")
    assert "kvm-clock" in guest.command("cat /sys/devices/system/clocksource/clocksource0/available_clocksource")
    assert guest.kernel_log("Hypervisor detected: KVM")


def test_cpuid_is_the_hosts(guest: Guest) -> None:
    def field(text: str, name: str) -> str:
        return re.search(rf"^{name}\s*: (.*)$", text, re.M)[1]  # type: ignore[index]
    inside, outside = guest.command("cat /proc/cpuinfo"), Path("/proc/cpuinfo").read_text()
    for name in ("vendor_id", "cpu family", "model", "model name", "stepping"):
        assert field(inside, name) == field(outside, name)
    assert "hypervisor" in field(inside, "flags").split()
    assert {"sse2", "xsave", "nx", "lm"} <= set(field(inside, "flags").split())


def test_nothing_unusual_in_the_kernel_log(guest: Guest) -> None:
    guest.check_kernel_log()


def test_runs_as_one_process_with_sealed_memory(guest: Guest) -> None:
    pid = guest.pid
    assert guest.processes() == [pid]
    memfds = [path for path in Path(f"/proc/{pid}/fd").iterdir() if "/memfd:" in str(path.readlink())]
    sizes = [path.stat().st_size for path in memfds]
    assert 192 << 20 in sizes or sum(sizes) >= 192 << 20


def test_lazily_allocated_memory(guest: Guest) -> None:
    """Without passed-through devices nothing is pinned, and a guest costs what it has touched."""
    assert status_field(guest.pid, "VmLck") == 0
    assert status_field(guest.pid, "VmRSS") < 192 * 1024


def test_baton_list_shows_it(guest: Guest) -> None:
    line = next(line for line in guest.list().splitlines() if line.startswith(guest.name + " "))
    assert line.split()[2] == "running"


def test_same_name_twice_is_refused(guest: Guest) -> None:
    again = run(guest.binary, "run", *guest.options, check=False, env=guest.environment)
    assert again.returncode == 1
    assert guest.name in again.stderr or str(guest.qmp_path) in again.stderr
    guest.check_alive()


def test_power_off(guest: Guest) -> None:
    """Last of this guest: its own power-off ends the process with 0 and leaves nothing behind."""
    guest.console.send("exit\n")
    assert guest.exit_status() == 0
    assert not guest.qmp_path.exists()
    assert not (guest.runtime / guest.name).exists()


def test_pvh_elf(make_guest: MakeGuest) -> None:
    guest = make_guest(kernel=VMLINUX, append="pvh.word=1").boot()
    assert "pvh.word=1" in guest.command("cat /proc/cmdline")
    assert guest.kernel_log("PVH")
    assert {"APIC", "FACP"} <= set(guest.command("ls /sys/firmware/acpi/tables").split())
    guest.console.send("exit\n")
    assert guest.exit_status() == 0


def test_memory_above_four_gigabytes(make_guest: MakeGuest) -> None:
    guest = make_guest(memory="5G", kernel=KERNEL).boot()
    total = int(guest.command("awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert total > 4.7 * (1 << 20)
    ranges = guest.command("grep 'System RAM' /proc/iomem").splitlines()
    high = [line for line in ranges if int(line.split("-")[0], 16) >= 1 << 32]
    assert len(high) == 1
    first, last = (int(word, 16) for word in high[0].split(":")[0].strip().split("-"))
    assert first == 1 << 32
    # Pages of the upper part, from its first to its last, hold what is written there.
    for address in (first, (first + last) // 2 & ~0xfff, last & ~0xfff):
        status, output = guest.console.status(f"busybox devmem {address:#x} 32")
        assert status == 0, output
    # The kernel gives out high memory first: this much is surely above 4 GiB in part.
    guest.command("mkdir -p /big && mount -t tmpfs -o size=400m tmpfs /big")
    guest.command("dd if=/dev/urandom of=/big/a bs=1M count=48 2>/dev/null && cp /big/a /big/b && cmp /big/a /big/b", 600)


def test_huge_pages(make_guest: MakeGuest) -> None:
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
    (pool / "nr_hugepages").write_text("96")
    try:
        assert (pool / "nr_hugepages").read_text().strip() == "96"
        guest = make_guest("-object", "memory-backend-memfd,id=ram0,size=128M,hugetlb=on,hugetlbsize=2M",
                           "-machine", "baton-1.0,memory-backend=ram0").boot()
        assert int((pool / "free_hugepages").read_text()) < 96
        guest.console.send("exit\n")
        assert guest.exit_status() == 0
        assert int((pool / "free_hugepages").read_text()) == 96
    finally:
        (pool / "nr_hugepages").write_text("0")


def test_huge_pages_that_are_not_there(make_guest: MakeGuest) -> None:
    guest = make_guest("-object", "memory-backend-memfd,id=ram0,size=128M,hugetlb=on,prealloc=on",
                       "-machine", "memory-backend=ram0").start()
    assert guest.exit_status() == 1
    assert "huge" in guest.log


def test_preallocated_memory(make_guest: MakeGuest) -> None:
    guest = make_guest("-object", "memory-backend-memfd,id=ram0,size=128M,prealloc=on", "-machine", "memory-backend=ram0").boot()
    shared = status_field(guest.pid, "RssShmem")
    assert shared >= 128 * 1024 or status_field(guest.pid, "VmRSS") >= 128 * 1024


@pytest.mark.parametrize(("options", "named"), [
    (["-kernel", "/no/such/kernel"], "/no/such/kernel"),
    (["-kernel", "/etc/passwd"], "/etc/passwd"),
    (["-kernel", VMLINUX, "-initrd", "/no/such/initrd"], "/no/such/initrd"),
    (["-kernel", VMLINUX, "-serial", "file:/no/such/directory/file"], "/no/such/directory/file"),
    (["-kernel", VMLINUX, "-qmp", "unix:/no/such/directory/qmp,server=on,wait=off"], "/no/such/directory/qmp"),
], ids=["no kernel", "not a kernel", "no initrd", "no serial file", "no qmp directory"])
def test_start_that_fails_says_why(options: list[str], named: str) -> None:
    done = run(BATON, "run", "-name", "failing", *options, check=False)
    assert done.returncode == 1
    assert named in done.stderr
    assert done.stderr.count("\n") <= 2, "one message, not a cascade"


@pytest.mark.parametrize(("options", "named"), [
    (["-no-such-option"], "no-such-option"),
    (["-m", "64M,slots=3"], "slots"),
    (["-m", "bogus"], "bogus"),
    (["-smp", "0"], "0"),
    (["-smp", "4,bogus=2"], "bogus"),
    (["-machine", "q35"], "q35"),
    (["-device", "virtio-net-pci"], "virtio-net-pci"),
    (["-device", "vfio-pci,host=01:00.0,iommufd=none,id=d"], "none"),
    (["-object", "iommufd,id=i0,bogus=1"], "bogus"),
    (["-object", "rng-random,id=r"], "rng-random"),
    (["-cpu", "qemu64"], "qemu64"),
    (["-serial", "tcp:1234", "-kernel", VMLINUX], "tcp:1234"),
    (["-incoming", "nonsense"], "nonsense"),
    ([], "-kernel"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_wrong_options_are_named(options: list[str], named: str) -> None:
    done = run(BATON, "run", *options, check=False)
    assert done.returncode == 2
    assert named in done.stderr
