# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""Updates between versions: up, down, alternating under load; what a version cannot take is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import BATON, NEXT, SKEW, FioLoad, Guest, bind, nvme_guest, vfio_options

PROTOCOL = SKEW / "protocol" / "baton"
SECTION = SKEW / "section" / "baton"
VERSIONS = {NEXT: "0.2.0", PROTOCOL: "9.0.0", SECTION: "0.3.0"}


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind("01:00.0", "02:00.0")
    with nvme_guest(*vfio_options("02:00.0", ident="blk1", declare=False)) as guest:
        yield guest.boot()


def running_version(guest: Guest) -> str:
    qemu = guest.qmp.execute("query-version")["qemu"]
    return f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}"


def change_to(guest: Guest, binary: str | Path) -> None:
    guest.update(binary=binary)
    guest.drop_clients()
    guest.check_alive()


def refusal(guest: Guest, binary: str | Path) -> str:
    """An update that does not happen: its reason; the guest stays where it is."""
    pid, version = guest.pid, running_version(guest)
    update = guest.update(binary=binary, check=False)
    assert update.status == 1
    guest.drop_clients()
    assert (guest.pid, running_version(guest)) == (pid, version)
    guest.check_alive()
    return update.output + update.errors


def test_upgrade(guest: Guest) -> None:
    """Newer versions of four state types, with fields that the older one has never written."""
    old = running_version(guest)
    change_to(guest, NEXT)
    assert (old, running_version(guest)) != (VERSIONS[NEXT], VERSIONS[NEXT])
    assert running_version(guest) == VERSIONS[NEXT]


def test_downgrade(guest: Guest) -> None:
    """Fields and a section that the older version does not know are skipped."""
    assert running_version(guest) == VERSIONS[NEXT]
    change_to(guest, BATON)
    assert running_version(guest) != VERSIONS[NEXT]


def test_up_and_down_under_load(guest: Guest) -> None:
    load = FioLoad(guest, "/root/load")
    for _ in range(3):
        change_to(guest, NEXT)
        change_to(guest, BATON)
    load.wait_rounds(1)
    assert load.stop() > 0
    guest.check_kernel_log()


def test_other_protocol_is_refused(guest: Guest) -> None:
    reason = refusal(guest, PROTOCOL)
    assert "stage 'hello'" in reason
    assert "9 to 9" in reason and VERSIONS[PROTOCOL] in reason


def test_required_section_is_refused_by_name(guest: Guest) -> None:
    """Up to a version that adds a section which its reader must know: from there, this one is no way back."""
    change_to(guest, SECTION)
    reason = refusal(guest, BATON)
    assert "telemetry" in reason and "required" in reason


def test_same_version_still_works(guest: Guest) -> None:
    """After a refusal, too."""
    change_to(guest, SECTION)
    assert running_version(guest) == VERSIONS[SECTION]
    guest.check_kernel_log()
