# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme
"""What is done while the guest stands still, counted and not timed: a system call or a byte more must be meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from baton_lab import Guest, bind, nvme_guest
from faults import TOOLS, Injection

# By side and stage: system calls that there are once, and once for each vCPU. Locks between threads are not counted; the calls of
# the last stage on either side include the wait for what comes when the guest runs again.
CALLS = {
    ("outgoing", "pause"): (1, 11),
    ("outgoing", "switch"): (8, 0),
    ("outgoing", "go"): (1, 0),
    ("outgoing", "run"): (2, 0),
    ("incoming", "switch"): (10, 13),
    ("incoming", "go"): (6, 0),
}
STAGES = dict.fromkeys(stage for _, stage in CALLS)
BYTES, VCPU_BYTES = 4_750, 8_050  # in messages and state; a vCPU's xsave area is most of it


@pytest.fixture(scope="module", params=[("iommufd0", 1), ("", 1), ("iommufd0", 2)], ids=["iommufd", "container", "two-processors"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """With the recorder of test_faults.py in its process."""
    iommufd, cpus = request.param
    bind("01:00.0")
    with nvme_guest("-trace", "update_*", iommufd=iommufd, cpus=cpus) as guest:
        guest.environment |= {"LD_PRELOAD": str(TOOLS / "libinject.so"), "BATON_FAULTS": str(guest.directory / "faults")}
        guest.injection = Injection(guest.directory / "faults")
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
    assert 0 < sum(moved.values()) <= BYTES + VCPU_BYTES * guest.cpus, moved
