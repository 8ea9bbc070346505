# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M --device e1000e
"""What is done while the guest stands still, counted and not timed: a system call or a byte more must be meant."""

from __future__ import annotations

import errno
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import SANITIZED, Guest, bind, nvme_guest, vfio_options, wait_for
from faults import Call, Injection, held_update, preload

# By side and stage: system calls that there are once, and once for each vCPU; there is none for a passed-through device. Locks
# between threads are not counted; the calls of the last stage on either side include the wait for what comes when the guest runs
# again, and in "go" two lines of the trace (see inject.c).
CALLS = {
    ("outgoing", "pause"): (5, 11),
    ("outgoing", "switch"): (4, 0),
    ("outgoing", "go"): (1, 0),
    ("outgoing", "run"): (2, 0),
    ("incoming", "switch"): (10, 13),
    ("incoming", "go"): (7, 0),
}
KVM_IRQFD = 0x4020ae76
STAGES = dict.fromkeys(stage for _, stage in CALLS)
BYTES, VCPU_BYTES, DEVICE_BYTES = 4_000, 8_050, 850  # in messages and state; a vCPU's xsave area is most of its part


@pytest.fixture(scope="module", params=[("iommufd0", 1, 1), ("", 1, 1), ("iommufd0", 2, 1), ("iommufd0", 1, 3)],
                ids=["iommufd", "container", "two-processors", "three-devices"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """With the recorder of test_faults.py in its process."""
    iommufd, cpus, devices = request.param
    bind("all")
    words = [word for number in range(1, devices)
             for word in vfio_options(f"{number + 1:02x}:00.0", ident=f"device{number}", iommufd=iommufd, declare=False)]
    with nvme_guest("-trace", "update_*", *words, iommufd=iommufd, cpus=cpus) as guest:
        guest.devices = devices
        guest.injection = preload(guest)
        guest.boot()
        yield guest


def test_calls(guest: Guest) -> None:
    guest.injection.clear()
    guest.update("--trace", "update_*")
    calls = [call for call in guest.injection.calls() if call.stage in STAGES]
    counts = Counter((call.side, call.stage) for call in calls)
    assert counts == {key: once + each * guest.cpus for key, (once, each) in CALLS.items()}, "\n".join(map(str, calls))


def test_bytes(guest: Guest) -> None:
    guest.update("--trace", "update_*")
    stages = guest.qmp.execute("query-migrate")["baton"]["stages"]
    moved = {stage["name"]: stage["bytes"] for stage in stages if stage["name"] in STAGES}
    assert 0 < sum(moved.values()) <= BYTES + VCPU_BYTES * guest.cpus + DEVICE_BYTES * guest.devices, moved


# The blackout, from the first call of a stage to one of another; on the incoming side to where the go has come, before the guest runs:
# then its vCPUs' threads fault in its memory.
BOUNDS = {"outgoing": (("pause", 0), ("finish", 0)), "incoming": (("switch", 0), ("go", 0))}


def minor_faults(pid: int) -> Counter[str]:
    """How many each thread has had, by its name."""
    stats = (task.joinpath("stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    return Counter({stat[stat.index("(") + 1:stat.rindex(")")]: int(stat.rsplit(")", 1)[1].split()[7]) for stat in stats})


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's runtime touches memory of its own")
@pytest.mark.parametrize("side", BOUNDS)
def test_page_faults(guest: Guest, side: str) -> None:
    """Whatever is touched in the blackout has been touched before, on either side."""
    guest.injection.clear()
    guest.update("--trace", "update_*")
    first, last = ([call for call in guest.injection.calls() if (call.side, call.stage) == (side, stage)][index]
                   for stage, index in BOUNDS[side])
    before = guest.pid
    with held_update(guest, guest.injection, first) as update:
        others = [pid for pid in guest.processes() if pid not in (before, update.pid)]
        watched = before if side == "outgoing" else others[0]
        faults = minor_faults(watched)
        guest.injection.hold_next(last)
        wait_for(str(last), lambda: guest.injection.reached)
        faults = minor_faults(watched) - faults
    assert not faults, faults


def memory_digest(guest: Guest) -> int:
    return zlib.adler32(guest.memory_file.read_bytes())


@pytest.mark.parametrize("guest", [pytest.param(("iommufd0", 2, 1), id="two-processors")], indirect=True)
def test_memory_before(guest: Guest) -> None:
    """The new process has the state of vCPUs that run in the other one, and leaves the guest's memory alone until it has the guest.
    Busy processors see to it that its vCPUs' threads are preempted, which KVM tells a guest in its memory, once it has been in it."""
    guest.qmp.execute("stop")
    before = memory_digest(guest)
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(4)]
    try:
        guest.injection.plan(Injection.ERROR, Call("outgoing", "quiesce", "ioctl", KVM_IRQFD), errno.EIO)
        update = guest.update("--trace", "update_*", check=False)
        assert "stage 'quiesce'" in update.errors and "update_warm_up" in update.errors, update
        assert memory_digest(guest) == before
    finally:
        for process in busy:
            process.kill()
            process.wait()
    guest.qmp.execute("cont")
    guest.check_alive()
