# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""Locked memory: who it is charged to, before and after updates, and that nothing of it is left in the end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import baton_lab
from baton_lab import USER, Guest, Qmp, as_user, bind, end_process, nvme_guest, status_field, through_proxy, vfio_options

MEMORY = baton_lab.MEMORY << 20
SLACK = 1 << 20  # less than any mapping of the guest


@dataclass
class BackEnd:
    """Where the kernel counts the pages that it pins, and what an update needs: iommufd counts for a user, and twice while
    mappings move; a container counts for a process."""

    options: list[str]
    field: str
    limit: int


BACK_ENDS = {
    "iommufd": BackEnd(vfio_options("01:00.0", ident="nvme0"), "VmPin", 2 * MEMORY + SLACK),
    "container": BackEnd(vfio_options("01:00.0", ident="nvme0", iommufd=""), "VmLck", MEMORY + SLACK),
}


@pytest.fixture(params=BACK_ENDS)
def back_end(request: pytest.FixtureRequest) -> BackEnd:
    return BACK_ENDS[request.param]


@pytest.fixture(scope="module", autouse=True)
def devices() -> Iterator[None]:
    """A process of the guest's user lives all the while, as does the kernel's count."""
    bind("01:00.0")
    with subprocess.Popen([*as_user(), "sleep", "100000"]) as keeper:
        yield
        end_process(keeper.pid)


def user_guest(back_end: BackEnd, limit: int) -> Guest:
    return nvme_guest(*back_end.options, device=False, wrapper=as_user(limit))


def test_charge_follows_the_guest(back_end: BackEnd) -> None:
    """Both processes live when it is read, and one is charged. Then the guest ends, and one that just fits starts."""
    with user_guest(back_end, back_end.limit) as guest:
        guest.boot()
        for _ in range(3):
            former = guest.pid
            assert os.stat(f"/proc/{former}").st_uid == USER
            assert status_field(former, back_end.field) == MEMORY >> 10
            with Qmp(guest.qmp_path):  # keeps the former process from ending
                guest.update()
                assert guest.pid != former
                assert status_field(guest.pid, back_end.field) == MEMORY >> 10
                assert status_field(former, back_end.field) == 0
                assert os.path.exists(f"/proc/{former}")
        guest.check_alive()
        guest.check_kernel_log()
        guest.console.send("exit\n")
        guest.wait_gone()
    with user_guest(back_end, MEMORY + SLACK) as guest:
        guest.boot()
        assert status_field(guest.pid, back_end.field) == MEMORY >> 10
        guest.qmp.execute("quit")
        guest.wait_gone()


def test_charge_comes_back(back_end: BackEnd) -> None:
    """The process that had been charged for the mappings has died: the charge is this process's again, once."""
    with user_guest(back_end, back_end.limit) as guest:
        guest.boot()
        for stage in ("quiesce", "switch"):
            assert stage in through_proxy(guest, "kill-after", stage)
            assert status_field(guest.pid, back_end.field) == MEMORY >> 10
            guest.drop_clients()
        guest.update()
        assert status_field(guest.pid, back_end.field) == MEMORY >> 10
        guest.check_alive()
        guest.qmp.execute("quit")
        guest.wait_gone()


def test_limit_is_too_low_for_an_update(back_end: BackEnd) -> None:
    """Known in the rehearsal; the guest's process keeps what it has."""
    with user_guest(back_end, back_end.limit) as guest:
        guest.boot()
        guest.wrapper = as_user(back_end.limit - 2 * SLACK)
        update = guest.update(check=False)
        assert update.status == 1 and "limit on locked memory" in update.errors and "rehearse" in update.errors
        assert status_field(guest.pid, back_end.field) == MEMORY >> 10
        guest.wrapper = as_user(back_end.limit)
        guest.update()
        guest.check_alive()
        guest.qmp.execute("quit")
        guest.wait_gone()


def test_limit_is_too_low_for_the_guest(back_end: BackEnd) -> None:
    with user_guest(back_end, MEMORY - SLACK) as guest:
        guest.start()
        assert guest.exit_status() == 1
        assert "limit on locked memory" in guest.log
