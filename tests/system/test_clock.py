# SPDX-License-Identifier: Apache-2.0
# lab: --memory 2048 --append tsc_early_khz=999500
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


@pytest.mark.parametrize("updates", [0, 1])
def test_guest_keeps_time(guest: Guest, updates: int) -> None:
    """Its clock runs as the host's does, and its timers end when they should: not as late as the host has been running."""
    for _ in range(updates):
        guest.update()
    started, inside = time.monotonic(), float(guest.command("cut -d' ' -f1 /proc/uptime"))
    guest.command("sleep 3")
    elapsed, inside = time.monotonic() - started, float(guest.command("cut -d' ' -f1 /proc/uptime")) - inside
    assert 0.8 < inside / elapsed < 1.2, (inside, elapsed)
    assert 3 <= inside < 9, (inside, "a late timer would take as long as the host has been up", time.monotonic())
    guest.check_kernel_log()
