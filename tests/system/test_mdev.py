# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""Mediated devices: the kernel's sample of a PCI serial card (mtty), which echoes what is written to it.

In an iommufd a guest with two of them, beside the drive that it has booted from, is updated while data goes round; in a legacy
container, where the kernel moves no mappings of such a guest, it runs, and its update is refused before it is touched. Data
goes round the first card by way of the guest's serial driver, with interrupts, and round the second by a program that polls
its registers.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import BATON, INITRD, KERNEL, Guest, bind, nvme_guest, open_files, run, through_proxy, vfio_options, wait_for

TYPES = Path("/sys/class/mdev_bus/mtty/mdev_supported_types")
DEVICES = Path("/sys/bus/mdev/devices")
CARD = "/sys/bus/pci/devices/0000:00:{:02x}.0"

# Lines of nine bytes, fewer than the FIFO holds, go out and come back, and are compared.
TTY_LOAD = """
import json, os, pathlib, select, sys, termios, tty
name, port = sys.argv[1:]
card = os.open(port, os.O_RDWR | os.O_NOCTTY)
tty.setraw(card)
sent = received = rounds = 0
fault = ""
def save(end=False):
    pathlib.Path(f"/tmp/{name}.new").write_text(json.dumps(
        {"sent": sent, "received": received, "rounds": rounds, "fault": fault, "end": end}))
    os.rename(f"/tmp/{name}.new", f"/tmp/{name}.json")
while pathlib.Path(f"/tmp/{name}.on").exists() and not fault:
    out = b"%08d\\n" % rounds
    sent += os.write(card, out)
    back = b""
    while len(back) < len(out) and select.select([card], [], [], 60)[0]:
        back += os.read(card, 64)
    received += len(back)
    rounds += 1
    if back != out:
        fault = f"round {rounds}: {out!r} went out, {back!r} came back"
    save()
save(True)
"""

# Random bytes go out, up to one less than the FIFO holds, come back, and are compared. SCR is a register that nobody but this
# program writes: whoever resets the card, or takes another one for it, changes it.
LOAD = """
import json, os, pathlib, random, sys, time
name, directory, bar = sys.argv[1:]
card = os.open(f"{directory}/resource{bar}", os.O_RDWR)
RX_TX, FCR, LCR, LSR, SCR = 0, 2, 3, 5, 7
get = lambda register: os.pread(card, 1, register)[0]
put = lambda register, value: os.pwrite(card, bytes([value]), register)
put(LCR, 3); put(FCR, 7)
sent = received = rounds = 0
fault = ""
def save(end=False):
    pathlib.Path(f"/tmp/{name}.new").write_text(json.dumps(
        {"sent": sent, "received": received, "rounds": rounds, "fault": fault, "end": end}))
    os.rename(f"/tmp/{name}.new", f"/tmp/{name}.json")
while pathlib.Path(f"/tmp/{name}.on").exists() and not fault:
    out = random.randbytes(random.randint(1, 15))
    put(SCR, out[0])
    for byte in out:
        put(RX_TX, byte)
        sent += 1
    back = b""
    while get(LSR) & 1:
        back += bytes([get(RX_TX)])
        received += 1
    scratch = get(SCR)
    rounds += 1
    if back != out or scratch != out[0]:
        fault = f"round {rounds}: {out.hex()} went out, {back.hex()} came back, scratch {scratch:02x}"
    save()
    time.sleep(0.01)
save(True)
"""


def create(kind: str) -> str:
    ident = str(uuid.uuid4())
    (TYPES / kind / "create").write_text(ident)
    assert (DEVICES / ident / "vfio-dev").is_dir()
    return ident


def remove(ident: str) -> None:
    (DEVICES / ident / "remove").write_text("1")


def options(ident: str, more: str = ",iommufd=iommufd0") -> list[str]:
    return ["-device", f"vfio-pci,sysfsdev={DEVICES / ident}{more}"]


@pytest.fixture(scope="module")
def card() -> Iterator[str]:
    ident = create("mtty-1")
    yield ident
    remove(ident)


@pytest.fixture(scope="module")
def nameless() -> Iterator[str]:
    """A card with two ports, which the guest has without id=."""
    ident = create("mtty-2")
    yield ident
    remove(ident)


@pytest.fixture(scope="module")
def guest(card: str, nameless: str) -> Iterator[Guest]:
    bind("01:00.0")
    with nvme_guest(*options(card, ",iommufd=iommufd0,id=tty0"), *options(nameless)) as guest:
        yield guest.boot()


class SerialLoad:
    """Data that goes round through a port of a card of the guest, by a program and what that wants to know."""

    count = 0

    def __init__(self, guest: Guest, program: str, *arguments: str) -> None:
        SerialLoad.count += 1
        self.guest, self.name = guest, f"serial{SerialLoad.count}"
        guest.put(f"/tmp/{self.name}.py", program)
        guest.command(f"touch /tmp/{self.name}.on; setsid python3 /tmp/{self.name}.py {self.name} {' '.join(arguments)} "
                      f">/tmp/{self.name}.log 2>&1 </dev/null & true")
        wait_for("the load to start", lambda: guest.console.status(f"test -e /tmp/{self.name}.json")[0] == 0)

    def state(self) -> dict[str, int | str]:
        state = json.loads(self.guest.command(f"cat /tmp/{self.name}.json"))
        assert not state["fault"], state["fault"]
        return state

    def wait_rounds(self, more: int) -> None:
        """Until data has gone round so many times more."""
        wanted = self.state()["rounds"] + more
        wait_for(f"{more} rounds of {self.name}", lambda: self.state()["rounds"] >= wanted)

    def stop(self) -> int:
        """Ends it; returns how many bytes have gone round. Every one that went out has come back."""
        self.guest.command(f"rm /tmp/{self.name}.on")
        wait_for(f"the end of {self.name}", lambda: self.state()["end"])
        state = self.state()
        assert state["sent"] == state["received"]
        return state["sent"]


def descriptors(pid: int) -> tuple[int, int, int]:
    names = open_files(pid)
    return (len([name for name in names if name.startswith("/dev/vfio/devices/")]), names.count("/dev/iommu"),
            names.count("/dev/vfio/vfio"))


def test_guest_finds_the_cards(guest: Guest) -> None:
    """With as many ports as they have; and what they cannot do (reset, MSI-X) is no trouble."""
    for slot, bars in ((2, 1), (3, 2)):
        assert guest.command(f"cat {CARD.format(slot)}/vendor {CARD.format(slot)}/device").split() == ["0x4348", "0x3253"]
        ports = guest.command(f"head -n 2 {CARD.format(slot)}/resource").splitlines()
        assert sum(line.endswith("101") for line in ports) == bars, ports
    assert descriptors(guest.pid) == (3, 1, 0)
    assert "cannot" not in guest.log


def test_five_updates_while_data_flows(guest: Guest) -> None:
    """Through both cards."""
    loads = [SerialLoad(guest, TTY_LOAD, "/dev/ttyS1"), SerialLoad(guest, LOAD, CARD.format(3), "1")]
    before = guest.interrupts("ttyS1")
    for _ in range(5):
        former = guest.pid
        guest.update()
        assert guest.pid != former
        assert descriptors(guest.pid) == (3, 1, 0)
        for load in loads:
            load.wait_rounds(5)
    assert guest.interrupts("ttyS1") >= before + 25  # gone with the last who has it open
    assert all(load.stop() > 100 for load in loads)
    assert "cannot" not in guest.log
    guest.check_alive()
    guest.check_kernel_log()


@pytest.mark.parametrize(("action", "stage"), [("kill-after", "quiesce"), ("kill-before", "go")])
def test_failed_update(guest: Guest, action: str, stage: str) -> None:
    load = SerialLoad(guest, TTY_LOAD, "/dev/ttyS1")
    pid = guest.pid
    through_proxy(guest, action, stage)
    assert guest.pid == pid
    guest.drop_clients()
    load.wait_rounds(3)
    guest.update()
    load.wait_rounds(3)
    load.stop()


def test_other_device_is_a_difference(guest: Guest, card: str) -> None:
    words = list(guest.options)
    place = next(i for i, word in enumerate(words) if card in word)
    words[place] = words[place].replace(card, str(uuid.uuid4()))
    incoming = guest.start_incoming(*words).wait_listening()
    reason = guest.hand_over(incoming.path, "failed")["error-desc"]
    assert "id=tty0" in reason and "sysfsdev=" in reason, reason
    guest.drop_clients()


def test_missing_device() -> None:
    ident = str(uuid.uuid4())
    done = run(BATON, "run", "-object", "iommufd,id=iommufd0", *options(ident), "-kernel", KERNEL, "-initrd", INITRD, check=False)
    assert done.returncode == 1
    assert f"device '{ident}'" in done.stderr and "no such device" in done.stderr


def test_legacy_container(guest: Guest, card: str, nameless: str) -> None:
    """Last. The guest runs, its drive and its card in one container; that it cannot be updated shows while it runs."""
    guest.qmp.execute("quit")
    guest.wait_gone()
    words = [*vfio_options("01:00.0", ident="nvme0", iommufd=""), *options(card, ",id=tty0")]
    with nvme_guest(*words, device=False) as other:
        other.boot()
        assert descriptors(other.pid) == (0, 0, 1)
        load = SerialLoad(other, LOAD, CARD.format(2), "0")
        pid = other.pid
        [blocker] = other.qmp.execute("query-migrate")["baton"]["blockers"]
        assert "container" in blocker["object"] and "mediated device" in blocker["reason"] and "iommufd=" in blocker["remedy"]
        for dry in ((), ("--dry-run",)):
            update = other.update(*dry, check=False)
            assert update.status == 1 and update.stages == {}
            assert "mediated device" in update.errors and "iommufd=" in update.errors, update.errors
        assert other.processes() == [pid]
        load.wait_rounds(3)
        load.stop()
        other.check_alive()


def test_alone_in_a_container(guest: Guest, nameless: str) -> None:
    """One that has nothing to do with an IOMMU of the hardware's. A guest's reset is the end of nothing, though the card has no
    reset that VFIO knows of."""
    with Guest(*options(nameless, "")) as alone:
        alone.boot()
        assert descriptors(alone.pid) == (0, 0, 1)
        assert "mediated device" in alone.update(check=False).errors
        alone.console.send("busybox reboot -f\n")
        alone.qmp.event("RESET", reason="guest-reset")
        alone.console.wait_prompt()
        assert alone.command(f"cat {CARD.format(1)}/device") == "0x3253"
        assert "cannot reset" not in alone.log
        alone.check_alive()
