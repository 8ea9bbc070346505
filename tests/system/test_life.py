# SPDX-License-Identifier: Apache-2.0
# lab: --memory 8192
"""A guest's life: processors, power-off, reboot, and what QMP does to it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baton_lab import KERNEL, Guest, is_alive, thread_count, wait_for

MakeGuest = Callable[..., Guest]


@pytest.mark.parametrize("cpus", [1, 2, 8])
def test_processors(make_guest: MakeGuest, cpus: int) -> None:
    guest = make_guest(cpus=cpus).boot()
    assert guest.command("cat /sys/devices/system/cpu/online") == ("0" if cpus == 1 else f"0-{cpus - 1}")
    assert guest.command("grep -c ^processor /proc/cpuinfo") == str(cpus)
    for cpu in range(cpus):
        assert guest.command(f"taskset {1 << cpu:x} sh -c 'echo ran'") == "ran"
    assert guest.kernel_log("skewed|smpboot.*(fail|not respond)|unable to boot") == []
    assert thread_count(guest.pid) >= cpus
    guest.console.send("exit\n")
    assert guest.exit_status() == 0


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """One guest for everything below, two processors."""
    with Guest(cpus=2, kernel=KERNEL) as guest:
        yield guest.boot()


def test_stop_and_cont(guest: Guest) -> None:
    qmp = guest.qmp
    guest.command("(while :; do echo tick >> /tmp/ticks; sleep 0.05; done) &")
    qmp.execute("stop")
    qmp.event("STOP")
    assert qmp.execute("query-status") == {"status": "paused", "running": False}
    guest.console.send("echo woken\n")
    used = cpu_time(guest.pid)
    for _ in range(20):
        assert qmp.execute("query-status")["status"] == "paused"
    assert cpu_time(guest.pid) - used < 100, "a stopped guest uses no processor time"
    assert b"woken" not in guest.console.log[guest.console.position:]
    qmp.execute("cont")
    qmp.event("RESUME")
    guest.console.wait("woken")
    assert qmp.execute("query-status") == {"status": "running", "running": True}
    assert int(guest.command("wc -l < /tmp/ticks")) > 0


def cpu_time(pid: int) -> int:
    """Ticks of a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_stop_and_cont_twice_each(guest: Guest) -> None:
    """As in QEMU, a command that changes nothing is no error, and makes no event."""
    qmp = guest.qmp
    qmp.drain_events()
    qmp.execute("stop")
    qmp.execute("stop")
    qmp.execute("cont")
    qmp.execute("cont")
    assert qmp.drain_events() == ["STOP", "RESUME"]


def test_many_stops(guest: Guest) -> None:
    for _ in range(50):
        guest.qmp.execute("stop")
        guest.qmp.execute("cont")
    assert guest.command("echo alive") == "alive"


def test_reboot_twice(guest: Guest) -> None:
    """The guest's own reset comes up in the same process, each time from a clean state."""
    pid, qmp = guest.pid, guest.qmp
    for generation in range(2):
        guest.command(f"echo {generation} > /tmp/left")
        guest.console.send("busybox reboot -f\n")
        qmp.event("RESET", reason="guest-reset")
        guest.console.wait_prompt()
        assert guest.console.status("test -e /tmp/left")[0] == 1
        assert guest.command("cat /sys/devices/system/cpu/online") == "0-1"
        assert guest.pid == pid
    guest.check_kernel_log()


def test_system_reset(guest: Guest) -> None:
    guest.command("echo > /tmp/left")
    guest.qmp.execute("system_reset")
    guest.qmp.event("RESET", reason="host-qmp-system-reset")
    guest.console.wait_prompt()
    assert guest.console.status("test -e /tmp/left")[0] == 1


def test_system_reset_of_a_stopped_guest(guest: Guest) -> None:
    """It starts over and stays stopped."""
    qmp = guest.qmp
    qmp.execute("stop")
    qmp.execute("system_reset")
    qmp.event("RESET")
    assert qmp.execute("query-status")["status"] == "paused"
    qmp.execute("cont")
    guest.console.wait_prompt()


def test_reset_in_the_middle_of_booting(guest: Guest) -> None:
    for _ in range(3):
        guest.qmp.execute("system_reset")
        guest.qmp.event("RESET")
    guest.console.wait_prompt()
    guest.check_kernel_log()


def test_system_powerdown(guest: Guest) -> None:
    """The guest is asked: it sees its power button pressed, shuts itself down, and the process ends with 0."""
    qmp = guest.qmp
    qmp.drain_events()
    qmp.execute("system_powerdown")
    qmp.event("POWERDOWN")
    guest.console.wait("guest: power button")
    assert qmp.event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-shutdown"}
    assert guest.exit_status() == 0
    assert not guest.qmp_path.exists()


def test_quit_and_start_paused(make_guest: MakeGuest) -> None:
    """-S waits for cont; quit ends the process at once, with 0, whatever the guest thinks."""
    guest = make_guest("-S", "-pidfile", "/tmp/test.pid").start()
    qmp = guest.qmp
    assert qmp.execute("query-status") == {"status": "prelaunch", "running": False}
    assert guest.process and int(Path("/tmp/test.pid").read_text()) == guest.process.pid
    used = cpu_time(guest.process.pid)
    time.sleep(2)
    assert cpu_time(guest.process.pid) - used < 50, "a guest that runs would have used up to two seconds"
    qmp.execute("cont")
    qmp.event("RESUME")
    guest.console.wait_prompt()
    qmp.execute("quit")
    assert qmp.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-qmp-quit"}
    assert guest.exit_status() == 0
    assert not Path("/tmp/test.pid").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it(make_guest: MakeGuest, number: signal.Signals) -> None:
    guest = make_guest("-S").start()
    qmp = guest.qmp
    assert guest.process
    os.kill(guest.process.pid, number)
    assert qmp.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-signal"}
    assert guest.exit_status() == 0
    assert not guest.qmp_path.exists() and not guest.console_path.exists()


def test_killed_process_does_not_block_the_next(make_guest: MakeGuest) -> None:
    """What SIGKILL left behind (sockets, the name's directory) is taken over by a new start under the same name."""
    guest = make_guest("-S").start()
    assert guest.qmp.execute("query-status")["status"] == "prelaunch"
    assert guest.process
    guest.process.kill()
    guest.process.wait()
    guest.drop_clients()
    assert guest.name not in guest.list().split()
    guest.start()
    assert guest.qmp.execute("query-status")["status"] == "prelaunch"
    guest.qmp.execute("quit")
    assert guest.exit_status() == 0
    wait_for("its end", lambda: not is_alive(guest.process.pid) if guest.process else True)
