# SPDX-License-Identifier: Apache-2.0
# lab-all: --memory 3072 --device nvme --device ahci:size=64M --device virtio-blk:size=64M --device e1000e --device igb --device igb --device e1000 --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --trace resettable_reset --trace pci_cfg_write
# lab-all: --kernel debian --memory 3072 --device nvme --device ahci:size=64M --device virtio-blk:size=64M --device e1000e --device igb --device igb --device e1000 --trace resettable_reset --trace pci_cfg_write
# lab-all: --kernel debian-backports --memory 3072 --device nvme --device ahci:size=64M --device virtio-blk:size=64M --device e1000e --device igb --device igb --device e1000 --trace resettable_reset --trace pci_cfg_write
"""The device matrix: every kind of device on every back end, all at work in one guest while its process changes six times.

Each row has traffic whose data is checked, from before the first update until after the last: fio on drives, pings and a TCP
stream on NICs, counted interrupts and DMA on edu.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from baton_lab import Edu, FioLoad, Guest, Trace, bind, nvme_guest, run, vfio_options, wait_for
from traffic import Cable, Ping, TcpStream

UPDATES = 6
PARENT = "06:00.0"  # the igb that stays with L1, for the sake of its virtual function
NOISE = re.compile(r"clocksource|perf: interrupt took|hogged CPU|sched_clock|crng|rcu.*expedited")  # of a slow machine


# ---- traffic ----

class Disks:
    """fio on all drives in turn, at a rate that leaves room for others."""

    def __init__(self, guest: Guest, targets: list[str]) -> None:
        self.load = FioLoad(guest, ":".join(targets), f"{len(targets) * 256}k", 100)
        self.rounds = self.load.rounds
        self.verified = False

    def wait_more(self) -> None:
        self.load.wait_rounds(0)  # it has not failed

    def stop(self) -> None:
        """Once for all of them."""
        if not self.verified:
            self.load.wait_rounds(1)
            assert self.load.stop() > self.rounds
            self.verified = True


class Nic:
    """Pings and a TCP stream, from L1's end of the cable."""

    def __init__(self, cable: Cable) -> None:
        self.stream, self.ping = TcpStream(cable.there), Ping(cable.there)

    def wait_more(self) -> None:
        self.ping.wait_more()
        self.stream.wait_more()

    def stop(self) -> None:
        self.ping.stop()
        self.stream.stop()


class Interrupts:
    """edu's driver: an interrupt lost or doubled would show, as would a page that DMA did not copy."""

    def __init__(self, guest: Guest, device: Device) -> None:
        self.edu = Edu(guest, device.place, device.interrupts, f"/tmp/{device.name}")
        guest.command("renice -n 19 $(pidof edu-driver)")  # it goes as fast as it can
        self.edu.wait_for_more()

    def wait_more(self) -> None:
        self.edu.wait_for_more(5)

    def stop(self) -> None:
        self.edu.stop().check()


@dataclass
class Device:
    """A row."""

    name: str
    address: str  # in L1
    interrupts: str  # what the guest's driver has chosen
    model: str  # the emulator's name of it
    disk: str = ""  # a file or block device of the guest
    cable: str = ""  # L1's end of it
    place: str = ""  # in the guest


DEVICES = [
    Device("nvme", "01:00.0", "msix", "nvme", disk="/root/load"),
    Device("ahci", "02:00.0", "msi", "ich9-ahci", disk="/dev/sda"),
    Device("virtio-blk", "03:00.0", "msix", "virtio-blk-pci", disk="/dev/vda"),
    Device("e1000e", "04:00.0", "msix", "e1000e", cable="lab0"),
    Device("igb", "05:00.0", "msix", "igb", cable="lab1"),
    Device("igb-virtual-function", "06:10.0", "msix", "igbvf", cable="lab2"),
    Device("e1000", "07:00.0", "intx", "e1000", cable="lab3"),
]
SPARE = Device("spare", "06:10.2", "msix", "igbvf", cable="lab2")  # another virtual function: not used before the updates
if Path("/dev/iommu").exists():  # the lab's kernel: guests of Debian's have no driver that edu-driver could use
    DEVICES += [Device("edu-msi", "08:00.0", "msi", "edu"), Device("edu-intx", "09:00.0", "intx", "edu")]
    BACK_ENDS = {"iommufd": "iommufd0", "container": ""}
else:
    BACK_ENDS = {"container": ""}
for number, row in enumerate([*DEVICES, SPARE], 1):
    row.place = f"0000:00:{number:02x}.0"


def interface(guest: Guest, device: Device) -> str:
    """A NIC's in the guest."""
    return guest.command(f"ls /sys/bus/pci/devices/{device.place}/net")


# ---- a guest, and what was seen of it ----

@dataclass
class Story:
    """What happened in one guest. A device's traffic is stopped, and so judged, by the device's own test."""

    guest: Guest
    traffic: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, set[str]] = field(default_factory=dict)  # of each device's vectors
    interrupts: list[dict[str, int]] = field(default_factory=list)  # before the updates, and after each, by device
    retransmissions: int = 0
    kernel_log: list[str] = field(default_factory=list)  # of the guest, since the first update
    trace: Trace = field(default_factory=Trace)  # during the updates


class Counter:
    """How many interrupts each device has raised that the guest has handled."""

    def __init__(self, guest: Guest, devices: list[Device]) -> None:
        self.guest = guest
        self.numbers: dict[str, dict[str, str]] = {device.name: {} for device in devices}  # vectors and their kinds, by device
        names = {device.place: device.name for device in devices}
        for line in guest.command("cd /sys/bus/pci/devices; grep -s . */msi_irqs/* */irq || true").splitlines():
            path, _, content = line.rpartition(":")
            place, *words = path.split("/")
            if place in names and words[0] == "msi_irqs":
                self.numbers[names[place]][words[1]] = content
            elif place in names and not self.numbers[names[place]]:
                self.numbers[names[place]][content] = "intx"
        self.pattern = "|".join(number for numbers in self.numbers.values() for number in numbers)

    def kinds(self, name: str) -> set[str]:
        return set(self.numbers[name].values())

    def read(self) -> dict[str, int]:
        lines = self.guest.command(f"grep -E '^ *({self.pattern}):' /proc/interrupts | cut -c -20").splitlines()
        counts = {number.strip(): int(rest.split()[0]) for number, rest in (line.split(":") for line in lines)}
        return {name: sum(counts.get(number, 0) for number in numbers) for name, numbers in self.numbers.items()}

    def read_further(self, before: dict[str, int]) -> dict[str, int]:
        """Waits until every device has raised some since then."""
        counts: dict[str, int] = {}

        def all_further() -> bool:
            counts.update(self.read())
            return all(counts[name] > before[name] for name in before)
        wait_for(f"more interrupts than {before}; there are {counts}", all_further)
        return counts


@pytest.fixture(scope="module", autouse=True)
def devices() -> None:
    """A virtual function needs its parent's driver, and a link that is up there."""
    path = Path(f"/sys/bus/pci/devices/0000:{PARENT}")
    (path / "sriov_numvfs").write_text("2")
    run("ip", "link", "set", next((path / "net").iterdir()).name, "up")
    bind(*(device.address for device in [*DEVICES, SPARE]))


@pytest.fixture(scope="module", params=BACK_ENDS)
def story(request: pytest.FixtureRequest, devices: None) -> Iterator[Story]:
    iommufd = BACK_ENDS[request.param]
    options = [word for device in [*DEVICES, SPARE] for word in
               vfio_options(device.address, ident=device.name, iommufd=iommufd, declare=device is DEVICES[0])]
    with nvme_guest(*options, device=False, append="pci=lastbus=0") as guest:
        guest.boot()
        yield observe(guest)


def observe(guest: Guest) -> Story:
    """What has to be typed in the guest is typed before it is busy."""
    cables = {device.name: Cable(guest, device.cable, interface(guest, device), number)
              for number, device in enumerate(DEVICES) if device.cable}
    for cable in cables.values():
        cable.wait()
    story = Story(guest, traffic=start_traffic(guest, cables))
    counter = Counter(guest, DEVICES)
    story.kinds = {device.name: counter.kinds(device.name) for device in DEVICES}
    again = cables["igb"].retransmissions()
    lines = int(guest.command("dmesg | wc -l"))
    story.interrupts.append(counter.read())
    with story.trace.watch():
        for _ in range(UPDATES):
            guest.update()
            for traffic in set(story.traffic.values()):
                traffic.wait_more()
            story.interrupts.append(counter.read_further(story.interrupts[-1]))
    story.retransmissions = cables["igb"].retransmissions() - again
    story.kernel_log = guest.command(f"dmesg | tail -n +{lines + 1}").splitlines()
    return story


def start_traffic(guest: Guest, cables: dict[str, Cable]) -> dict[str, Any]:
    traffic: dict[str, Any] = {device.name: Interrupts(guest, device) for device in DEVICES if device.model == "edu"}
    drives = [device for device in DEVICES if device.disk]
    fio = Disks(guest, [device.disk for device in drives])
    traffic |= {device.name: fio for device in drives}
    traffic |= {name: Nic(cable) for name, cable in cables.items()}
    return traffic


# ---- what must be true of it ----

@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_device(story: Story, device: Device) -> None:
    """Data, order and number of everything that went through it; its interrupts came after every update."""
    assert story.kinds[device.name] == {device.interrupts}
    story.traffic[device.name].stop()
    counts = [counts[device.name] for counts in story.interrupts]
    assert len(counts) == UPDATES + 1 and all(former < latter for former, latter in zip(counts, counts[1:])), counts


def test_nothing_was_sent_twice(story: Story) -> None:
    """By the guest, through any of the NICs; L1's end of each stream has counted its own."""
    assert story.retransmissions == 0


def test_devices_were_left_alone(story: Story) -> None:
    """The emulator saw resets before the updates, and during them neither resets nor configuration."""
    assert story.trace.path.read_text().count("resettable_reset") >= len(DEVICES)
    assert [line for line in story.trace.lines if "resettable_reset" in line] == []
    story.trace.check_untouched(*(device.model for device in DEVICES))


def test_vectors_that_are_used_for_the_first_time(story: Story) -> None:
    """A driver asks for its vectors when its interface is brought up: here after the updates, by the other process."""
    counter = Counter(story.guest, [SPARE])
    assert counter.kinds(SPARE.name) == {SPARE.interrupts}
    assert counter.read() == {SPARE.name: 0}
    cable = Cable(story.guest, SPARE.cable, interface(story.guest, SPARE), len(DEVICES)).wait()
    ping = Ping(cable.there)
    counter.read_further({SPARE.name: 0})
    ping.stop()


def test_guest_noticed_nothing(story: Story) -> None:
    assert [line for line in story.kernel_log if not NOISE.search(line)] == []
    story.guest.check_alive()
