# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""baton needs no privilege but access to its device nodes: a user's guest with a passed-through drive, through its life."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import MEMORY, SANITIZED, USER, FioLoad, Guest, as_user, bind, end_process, nvme_guest, status_field, through_proxy

LIMITED = as_user((2 * MEMORY + 1) << 20)  # an iommufd counts twice while mappings move


@pytest.fixture(scope="module", autouse=True)
def devices() -> Iterator[None]:
    """A process of the guest's user lives all the while, as does the kernel's count."""
    bind("01:00.0")
    with subprocess.Popen([*LIMITED, "sleep", "100000"]) as keeper:
        yield
        end_process(keeper.pid)


def check_unprivileged(guest: Guest) -> None:
    pid = guest.pid
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Uid"].split() == [str(USER)] * 4 and status["Gid"].split() == [str(USER)] * 4
    assert status["Groups"].split() == []
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"].strip() == ("0" if SANITIZED else "1")  # comes with the sandbox


def test_life_of_a_users_guest(iommufd: str) -> None:
    """Boot, two updates under load, two that are undone, a rehearsal, a reset, power-off from within."""
    with nvme_guest(iommufd=iommufd, cpus=2, wrapper=LIMITED) as guest:
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
