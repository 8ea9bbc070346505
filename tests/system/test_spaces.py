# SPDX-License-Identifier: Apache-2.0
# lab: --memory 4096 --device nvme --device virtio-blk:size=64M,multifunction=on,addr=0.0 --device virtio-blk:size=64M,bus=port1,addr=0.1 --device virtio-blk:size=64M --device virtio-blk:size=64M --device virtio-blk:size=64M
"""Address spaces of every kind in one guest: two containers, two devices of one group, two iommufds, two IOASes in one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import baton_lab
from baton_lab import (BATON, VMLINUX, FioLoad, Guest, bind, nvme_guest, open_files, run, status_field, through_proxy, unbind,
                       vfio_files, vfio_options, wait_for)

MEMORY = baton_lab.MEMORY * 1024  # KiB
PAIR = ("02:00.0", "02:00.1")  # two functions of one device: one IOMMU group
DRIVES = [*PAIR, "04:00.0", "05:00.0", "06:00.0"]
ALL = "/dev/vda:/dev/vdb:/dev/vdc:/dev/vdd:/dev/vde"
FILES = {"containers": 2, "groups": 2, "iommufds": 2, "cdevs": 3, "kvm": 1}


def group_of(address: str) -> str:
    return Path(f"/sys/bus/pci/devices/0000:{address}/iommu_group").resolve().name


def refused(*options: str) -> str:
    done = run(BATON, "run", "-kernel", VMLINUX, *options, check=False)
    assert done.returncode == 1
    return done.stderr


def test_pair_is_one_group() -> None:
    """What the rest relies on."""
    bind("01:00.0", *DRIVES)
    assert group_of(PAIR[0]) == group_of(PAIR[1])
    assert len({group_of(address) for address in DRIVES}) == 4


def test_one_group_in_two_containers() -> None:
    message = refused(*vfio_options(PAIR[0], ident="a", iommufd="", more=",container=one"),
                      *vfio_options(PAIR[1], ident="b", iommufd="", more=",container=two"))
    assert "'b'" in message and PAIR[1] in message and "'one'" in message and "'two'" in message


def test_one_group_in_both_back_ends() -> None:
    message = refused(*vfio_options(PAIR[0], ident="a"), *vfio_options(PAIR[1], ident="b", iommufd=""))
    assert "'b'" in message and "group" in message and "iommufd" in message


def test_group_with_a_device_of_the_host() -> None:
    unbind(PAIR[1])
    message = refused(*vfio_options(PAIR[0], ident="a", iommufd=""))
    assert "'a'" in message and "group" in message and "bind all" in message
    bind(PAIR[1])


def test_device_that_is_not_bound() -> None:
    unbind("04:00.0")
    message = refused(*vfio_options("04:00.0", ident="a", iommufd=""))
    assert "04:00.0" in message and "virtio-pci" in message and "vfio-pci" in message
    bind("04:00.0")


def test_device_that_does_not_exist() -> None:
    assert "0a:00.0" in refused(*vfio_options("0a:00.0", ident="a", iommufd=""))


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind("01:00.0", *DRIVES)
    words = [*vfio_options("01:00.0", ident="nvme0", iommufd=""),
             *vfio_options(PAIR[0], ident="blk0", iommufd="", more=",container=pair"),
             *vfio_options(PAIR[1], ident="blk1", iommufd="", more=",container=pair"),
             *vfio_options("04:00.0", ident="blk2", iommufd="first"),
             *vfio_options("05:00.0", ident="blk3", iommufd="first", declare=False, more=",ioas=second"),
             *vfio_options("06:00.0", ident="blk4", iommufd="other")]
    with nvme_guest(*words, device=False) as guest:
        yield guest.boot()


def check_spaces(guest: Guest) -> None:
    """What a process has that runs the guest. Memory counts once for each container."""
    assert vfio_files(guest.pid) == FILES
    assert status_field(guest.pid, "VmLck") == 2 * MEMORY


def test_every_kind_in_one_guest(guest: Guest) -> None:
    check_spaces(guest)
    assert status_field(guest.pid, "VmPin") == 2 * MEMORY, "once for each iommufd, however many IOASes it has"
    assert guest.command("ls /dev/vd?").split() == ALL.split(":")
    guest.check_kernel_log()


def test_device_in_use_elsewhere(guest: Guest) -> None:
    message = refused(*vfio_options("01:00.0", ident="a", iommufd=""))
    assert "01:00.0" in message and "in use" in message
    guest.check_alive()


def test_five_updates_under_load(guest: Guest) -> None:
    """fio writes to the drives in all address spaces, and verifies."""
    load = FioLoad(guest, ALL, "1280k", 640)
    files = 0
    for number in range(5):
        guest.update()
        check_spaces(guest)
        files = files or len(open_files(guest.pid))
        assert len(open_files(guest.pid)) == files or number == 0
    load.wait_rounds(1)
    assert load.stop() >= 2
    guest.check_alive()
    guest.check_kernel_log()


@pytest.mark.parametrize(("action", "stage"), [("kill-before", "quiesce"), ("kill-after", "quiesce"), ("kill-after", "switch")])
def test_everything_comes_back(guest: Guest, action: str, stage: str) -> None:
    load = FioLoad(guest, ALL, "1280k", 640)
    assert stage in through_proxy(guest, action, stage)
    check_spaces(guest)
    guest.drop_clients()
    load.wait_rounds(1)
    guest.update()
    check_spaces(guest)
    assert load.stop() >= 2
    guest.check_alive()
    guest.check_kernel_log()


def test_end(guest: Guest) -> None:
    """Last: all of it is free again."""
    guest.console.send("exit\n")
    guest.wait_gone()
    for address in ("01:00.0", *DRIVES):
        unbind(address)
    wait_for("the host's drives", lambda: len(list(Path("/sys/block").glob("vd?"))) >= 5)
