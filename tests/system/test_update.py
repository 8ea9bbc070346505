# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device virtio-blk:size=64M
"""Updates of a guest whose root is on a passed-through NVMe drive: one, ten under load, paused, and by QEMU's procedure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from baton_lab import (MEMORY, PATIENCE, STAGES, USER, FioLoad, Guest, Qmp, QmpError, as_user, bind, cpr_channel,
                       main_channel, nvme_guest, open_files, status_field, thread_count, vfio_options, wait_for)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind("01:00.0", "02:00.0")
    with nvme_guest(*vfio_options("02:00.0", ident="blk1", declare=False)) as guest:
        yield guest.boot()


def check_report(report: dict[str, Any], cpus: int = 1) -> None:
    """Stages in order, without overlap, and sums that agree."""
    details = report["baton"]
    stages = details["stages"]
    assert [stage["name"] for stage in stages] == list(STAGES)
    for stage in stages:
        assert 0 <= stage["incoming-ns"] <= stage["end-ns"] - stage["start-ns"]
    for earlier, later in zip(stages, stages[1:]):
        assert later["start-ns"] >= earlier["end-ns"]
    spent = sum(stage["end-ns"] - stage["start-ns"] for stage in stages)
    between = sum(later["start-ns"] - earlier["end-ns"] for earlier, later in zip(stages, stages[1:]))
    whole = stages[-1]["end-ns"] - stages[0]["start-ns"]
    assert spent + between == whole
    assert spent <= details["total-ns"]
    times = details["vcpus"]
    assert len(times) == cpus
    assert details["blackout-ns"] == max(vcpu["in-ns"] for vcpu in times) - min(vcpu["out-ns"] for vcpu in times)
    pause, finish = stages[STAGES.index("pause")], stages[-1]
    for vcpu in times:
        assert pause["start-ns"] <= vcpu["out-ns"] < vcpu["in-ns"] <= finish["end-ns"]
    assert report["downtime"] == -(-details["blackout-ns"] // 1_000_000)
    assert report["total-time"] == -(-details["total-ns"] // 1_000_000)


MTRR_DEFAULT, MTRR_BASE, MTRR_MASK = 0x2ff, 0x200, 0x201


def read_msr(guest: Guest, index: int) -> int:
    return int(guest.command(f"dd if=/dev/cpu/0/msr bs=8 count=1 iflag=skip_bytes skip={index} status=none | od -An -tx8"), 16)


def test_memory_types(guest: Guest) -> None:
    """Memory is cached from the first instruction on, and what the guest makes of its MTRRs goes with it: KVM's list of MSRs
    does not have them."""
    assert read_msr(guest, MTRR_DEFAULT) == 0x806, "enabled, write-back"
    guest.command(f"printf '\\1\\0\\0\\340\\0\\0\\0\\0' | dd of=/dev/cpu/0/msr bs=8 oflag=seek_bytes seek={MTRR_BASE} status=none")
    guest.command(f"printf '\\0\\10\\0\\377\\17\\0\\0\\0' | dd of=/dev/cpu/0/msr bs=8 oflag=seek_bytes seek={MTRR_MASK} status=none")
    before = [read_msr(guest, index) for index in (MTRR_DEFAULT, MTRR_BASE, MTRR_MASK)]
    assert before == [0x806, 0xe0000001, 0xfff000800]
    guest.update()
    assert [read_msr(guest, index) for index in (MTRR_DEFAULT, MTRR_BASE, MTRR_MASK)] == before


def test_memory_is_mapped_before(guest: Guest) -> None:
    """The guest need not wait for each page that it touches in the new process; how many the time was enough for says the kernel."""
    update = guest.update("--trace", "update_warm_up")
    mapped = re.search(r"update_warm_up mapped=(\d+)", update.errors)
    assert mapped and int(mapped[1]) >= 8 << 20, update.errors


def test_one_update(guest: Guest) -> None:
    """The process changes; the guest's memory, disks and shell are what they were."""
    guest.command("echo kept > /tmp/memory; echo kept > /root/disk")
    before, interrupts = guest.pid, guest.interrupts("nvme0q")
    update = guest.update()
    assert list(update.stages) == list(STAGES)
    assert update.blackout_ms is not None and update.total_ms is not None
    assert 0 < update.blackout_ms < update.total_ms
    assert guest.pid != before
    assert guest.exit_status() == 0, "the former process ends well"
    assert guest.command("cat /tmp/memory /root/disk").split() == ["kept", "kept"]
    guest.command("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=100 iflag=direct 2>/dev/null")
    assert guest.interrupts("nvme0q") - interrupts >= 100
    guest.check_alive()
    guest.check_kernel_log()


def test_two_updates_at_once(guest: Guest) -> None:
    """One of them moves the guest. The other one says why it did not, and ends no process but the one that it has started:
    their new processes wait for each other, so that both updates have found nothing in their way."""
    before = guest.pid
    together = guest.directory / "together"
    together.write_text(f"#!/bin/sh\ntouch {together}.$$\nwhile [ $(ls {together}.* | wc -l) -lt 2 ]; do sleep 0.1; done\n"
                        f"exec {guest.binary} \"$@\"\n", encoding="ascii")
    together.chmod(0o755)
    words = guest.update_words("--timeout", str(int(PATIENCE)), "--binary", str(together))
    updates = [subprocess.Popen(words, env=guest.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for _ in range(2)]
    errors = [update.communicate(timeout=PATIENCE + 30)[1] for update in updates]
    assert sorted(update.returncode for update in updates) == [0, 1], errors
    assert re.search("under way already|in another process now", "".join(errors)), errors
    guest.drop_clients()
    wait_for("one process", lambda: guest.processes() == [guest.pid])
    assert guest.pid != before
    assert os.listdir(guest.runtime / guest.name) == ["qmp.sock"]
    guest.check_alive()


def test_ten_updates_under_load(guest: Guest) -> None:
    """fio writes and verifies all the while; nothing is lost, nothing times out, nothing piles up."""
    load = FioLoad(guest, "/root/load")
    guest.update()
    files, threads = len(open_files(guest.pid)), thread_count(guest.pid)
    seen = {guest.pid}
    for _ in range(9):
        guest.update()
        seen.add(guest.pid)
    assert len(seen) == 10
    load.wait_rounds(1)
    assert load.stop() >= 2
    assert len(open_files(guest.pid)) <= files
    assert thread_count(guest.pid) <= threads
    guest.check_alive()
    guest.check_kernel_log()


def listening_sockets() -> set[str]:
    """All unix sockets that somebody can connect to, as open_files() names them."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]]
    return {f"socket:[{row[6]}]" for row in rows if int(row[3], 16) & 0x10000}


def test_report_on_both_sides(guest: Guest) -> None:
    """query-migrate of both processes: the same times, and sums that agree."""
    old = guest.connect_qmp()
    old_pid = guest.pid
    incoming = guest.start_incoming().wait_listening()
    report = guest.hand_over(incoming.path)
    check_report(report)
    assert old.execute("query-status") == {"status": "postmigrate", "running": False}
    with pytest.raises(QmpError):
        old.execute("cont")
    guest.clients.remove(old)
    new = guest.connect_qmp()
    there = new.execute("query-migrate")
    assert there["status"] == "completed" and there["baton"]["incoming"] is True and report["baton"]["incoming"] is False
    assert there["baton"]["vcpus"] == report["baton"]["vcpus"]
    assert there["baton"]["blackout-ns"] == report["baton"]["blackout-ns"]
    for here, ours in zip(there["baton"]["stages"], report["baton"]["stages"]):
        assert here["name"] == ours["name"] and here["start-ns"] == ours["start-ns"]
    # The old process answers its client until that leaves, and holds nothing of the guest meanwhile.
    assert not any("vfio" in name or "iommu" in name or "kvm" in name for name in open_files(old_pid))
    assert listening_sockets().isdisjoint(open_files(old_pid)) and not listening_sockets().isdisjoint(open_files(incoming.pid))
    old.close()
    wait_for("the end of the old process", lambda: guest.processes() == [incoming.pid])
    guest.check_alive()


def test_events_of_a_hand_over(guest: Guest) -> None:
    incoming = guest.start_incoming().wait_listening()
    qmp = guest.qmp
    qmp.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    qmp.execute("migrate-set-parameters", mode="cpr-transfer")
    qmp.drain_events()
    qmp.execute("migrate", channels=[cpr_channel(incoming.path)])
    names, states = [], []
    while "completed" not in states:
        message = qmp.events.pop(0) if qmp.events else qmp.read()
        names.append(message["event"])
        if message["event"] == "MIGRATION":
            states.append(message["data"]["status"])
    assert states[0] == "setup" and states == sorted(states, key=["setup", "active", "device", "completed"].index)
    assert "STOP" in names
    guest.drop_clients()
    guest.check_alive()


def test_console_client_stays_connected(guest: Guest) -> None:
    """One connection, made before the first update, still carries every byte: also those written around the switch."""
    token = guest.console.start("i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); echo $i; done")
    guest.update()
    status, output = guest.console.finish(token, 300)
    assert status == 0
    assert output.split() == [str(number) for number in range(1, 3001)]
    assert len(guest.consoles) == 1


def clock_offset(guest: Guest) -> tuple[float, float]:
    """Bounds for the guest's uptime less the host's monotonic clock, narrowed by several readings."""
    low, high = -float("inf"), float("inf")
    for _ in range(8):
        before = time.monotonic()
        uptime = float(guest.command("read up rest < /proc/uptime; echo $up"))
        low, high = max(low, uptime - time.monotonic()), min(high, uptime + 0.01 - before)
    return low, high


def test_clocks_go_on(guest: Guest) -> None:
    """The guest's clock neither stops for an update nor jumps: it keeps its distance to the host's."""
    guest.put("/tmp/clock.py", "import time\nlast = time.monotonic()\nwhile True:\n    now = time.monotonic()\n"
                               "    if now < last: open('/tmp/backwards', 'a').write(f'{last} {now}\\n')\n    last = now\n")
    guest.command("(python3 /tmp/clock.py </dev/null >/dev/null 2>&1 & echo $! > /tmp/clock.pid)")
    source = guest.command("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    low, high = clock_offset(guest)
    date = int(guest.command("date +%s")) - time.time()
    for _ in range(4):
        guest.update()
    later_low, later_high = clock_offset(guest)
    assert later_low <= high + 0.01 and low - 0.01 <= later_high, f"{low}..{high} became {later_low}..{later_high}"
    assert abs(int(guest.command("date +%s")) - time.time() - date) < 10 + (high - low)
    assert guest.command("kill $(cat /tmp/clock.pid); cat /tmp/backwards 2>/dev/null || true") == ""
    assert guest.command("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == source
    assert guest.kernel_log("clocksource.*unstable|Clocksource.*skew|time.*backwards") == []


def test_paused_guest_stays_paused(guest: Guest) -> None:
    guest.qmp.execute("stop")
    guest.console.send("echo woken\n")
    for _ in range(2):
        update = guest.update()
        assert update.status == 0
        assert guest.qmp.execute("query-status") == {"status": "paused", "running": False}
    assert b"woken" not in guest.console.log[guest.console.position:]
    guest.qmp.execute("cont")
    guest.qmp.event("RESUME")
    guest.console.wait("woken")
    guest.check_alive()
    guest.check_kernel_log()


def test_qemus_documented_procedure(guest: Guest) -> None:
    """Word for word as QEMU's documentation has it: all options again, both channels, no event asked for."""
    qmp_path, path = guest.directory / "qmp.new", guest.directory / "cpr.sock"
    options = [word if word != f"unix:{guest.qmp_path},server=on,wait=off" else f"unix:{qmp_path},server=on,wait=off"
               for word in guest.options]
    incoming = guest.start_incoming(*options, "-incoming", "tcp:0:44444").wait_listening()
    path = incoming.path
    with guest.connect_qmp() as old:
        assert old.execute("query-status") == {"status": "running", "running": True}
        old.execute("migrate-set-parameters", mode="cpr-transfer")
        old.raw(json.dumps({"execute": "migrate", "arguments": {"channels": [main_channel(), cpr_channel(path)]}}).encode())
        assert old.answer() == {"return": {}}
        wait_for("its end", lambda: old.execute("query-migrate")["status"] == "completed")
        assert old.execute("query-status") == {"status": "postmigrate", "running": False}
        assert old.execute("quit") == {}
    guest.clients.clear()
    guest.qmp_path = qmp_path
    assert guest.qmp.execute("query-status") == {"status": "running", "running": True}
    wait_for("one process", lambda: guest.processes() == [incoming.pid])
    guest.check_alive()


def test_nothing_but_incoming(guest: Guest) -> None:
    """The definition travels: the new process has the same name, sockets and devices, and goes on being updatable."""
    incoming = guest.start_incoming().wait_listening()
    guest.hand_over(incoming.path)
    guest.drop_clients()
    assert guest.pid == incoming.pid
    assert guest.qmp.execute("query-name") == {"name": guest.name}
    guest.update()
    guest.check_alive()


def test_guest_reboots_after_updates(guest: Guest) -> None:
    """The kernel's file travelled as well: the new process boots it again, and resets the devices."""
    guest.command("sync; mount -o remount,ro /")
    guest.console.send("busybox reboot -f\n")
    guest.qmp.event("RESET", reason="guest-reset")
    guest.console.wait_prompt()
    guest.command("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=50 iflag=direct 2>/dev/null")
    guest.check_kernel_log()
    guest.update()
    guest.check_alive()


def test_guest_powers_off_after_updates(guest: Guest) -> None:
    """Last of this guest. Its processes and sockets are gone, and the devices free."""
    runtime = guest.runtime / guest.name
    guest.console.send("exit\n")
    guest.wait_gone()
    assert not runtime.exists() and not guest.qmp_path.exists() and not guest.console_path.exists()
    assert re.search(r"^NAME", guest.list()) and guest.name not in guest.list()
    with nvme_guest() as again:
        again.boot()
        assert again.command("cat /root/disk") == "kept"


def test_ordinary_user() -> None:
    """No privilege is needed, and locked memory is charged to the process that runs the guest. (The kernel charges nobody
    who has CAP_IPC_LOCK, so this is where it shows. While it changes hands it counts twice for their user.)"""
    user = as_user((2 * MEMORY + 64) << 20)
    with nvme_guest(wrapper=user) as guest:
        guest.boot()
        guest.wrapper = as_user((MEMORY + 32) << 20)
        refused = guest.update(check=False)
        assert refused.status == 1 and "limit on locked memory" in refused.errors and "rehearse" in refused.errors
        guest.wrapper = user
        for _ in range(2):
            before = guest.pid
            assert os.stat(f"/proc/{before}").st_uid == USER
            assert status_field(before, "VmPin") >= MEMORY * 1024
            watcher = Qmp(guest.qmp_path)  # keeps the former process from ending
            guest.update()
            assert status_field(guest.pid, "VmPin") >= MEMORY * 1024
            assert status_field(before, "VmPin") == 0
            watcher.close()
        guest.check_alive()
        guest.check_kernel_log()


def test_too_little_locked_memory() -> None:
    """Says what is missing."""
    with nvme_guest(wrapper=as_user((MEMORY // 2) << 20)) as guest:
        guest.start()
        assert guest.exit_status() == 1
        assert re.search("lock|RLIMIT_MEMLOCK|ulimit", guest.log), guest.log
