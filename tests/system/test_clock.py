# SPDX-License-Identifier: Apache-2.0
# lab-all: --memory 2048 --append tsc_early_khz=999500
"""A guest's clock on a host that has measured its TSC again since KVM was loaded, and found another frequency."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from baton_lab import Guest, run, wait_for


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Started once the host has measured again, some seconds into its life."""
    wait_for("the second measurement", lambda: "Refined TSC clocksource calibration" in run("dmesg").stdout)
    wait_for("a host that has been up for 20 s", lambda: time.monotonic() > 20)
    with Guest() as guest:
        yield guest.boot()


def uptime(guest: Guest) -> float:
    return float(guest.command("cut -d' ' -f1 /proc/uptime"))


@pytest.mark.parametrize("updates", [0, 1])
def test_guest_keeps_time(guest: Guest, updates: int) -> None:
    """Its clock runs as the host's does, and its timers end when they should: not as late as the host has been running."""
    for _ in range(updates):
        guest.update()
    before, begin, after_begin = time.monotonic(), uptime(guest), time.monotonic()
    guest.command("sleep 3")
    before_end, end, after = time.monotonic(), uptime(guest), time.monotonic()
    inside, shortest, longest = end - begin, before_end - after_begin, after - before
    assert 0.8 * shortest < inside < 1.2 * longest, (inside, shortest, longest)
    assert 3 <= inside < 9, (inside, "a late timer would take as long as the host has been up", time.monotonic())
    guest.check_kernel_log()
