# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""baton needs no privilege but access to its device nodes: a user's guest with a passed-through drive, through its life."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import MEMORY, FioLoad, Guest, bind, end_process, nvme_guest, status_field, through_proxy

# An iommufd counts twice while mappings move.
AS_USER = ("prlimit", f"--memlock={(2 * MEMORY + 1) << 20}", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups",
           "--inh-caps=-all", "--bounding-set=-all")


@pytest.fixture(scope="module", autouse=True)
def devices() -> Iterator[None]:
    """An ordinary user may have the device. A process of that user lives all the while, as does the kernel's count."""
    bind("01:00.0")
    for path in (Path("/dev/kvm"), Path("/dev/iommu"), *Path("/dev/vfio").iterdir(), *Path("/dev/vfio/devices").iterdir()):
        os.chown(path, 1000, 1000)
    with subprocess.Popen([*AS_USER, "sleep", "100000"]) as keeper:
        yield
        end_process(keeper.pid)


def check_unprivileged(guest: Guest) -> None:
    pid = guest.pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Uid"].split() == ["1000"] * 4 and status["Gid"].split() == ["1000"] * 4
    assert status["Groups"].split() == []
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"].strip() == "1"


def test_life_of_a_users_guest(iommufd: str) -> None:
    """Boot, two updates under load, two that are undone, a rehearsal, a reset, power-off from within."""
    with nvme_guest(iommufd=iommufd, cpus=2, wrapper=AS_USER) as guest:
        os.chown(guest.directory, 1000, 1000)
        guest.boot()
        check_unprivileged(guest)
        load = FioLoad(guest, "/load")
        for _ in range(2):
            guest.update()
            check_unprivileged(guest)
        load.wait_rounds(1)
        for stage in ("quiesce", "switch"):
            assert stage in through_proxy(guest, "kill-after", stage)
            guest.drop_clients()
        load.wait_rounds(1)
        guest.update("--dry-run")
        guest.update()
        assert load.stop() > 0
        guest.check_alive()
        guest.check_kernel_log()
        assert status_field(guest.pid, "VmPin" if iommufd else "VmLck") == MEMORY << 10
        guest.qmp.execute("system_reset")
        guest.console.wait_prompt()
        guest.check_alive()
        guest.console.send("exit\n")
        guest.wait_gone()
