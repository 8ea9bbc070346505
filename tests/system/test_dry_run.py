# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --trace pci_nvme_pci_reset --trace pci_nvme_mmio_cfg --trace pci_nvme_mmio_start_success --trace msix_write_config
"""What is known before an update is tried: rehearsals on a running guest, and what makes an update impossible.

The guest belongs to an ordinary user, whose limit on locked memory is a blocker that can be put up and taken away.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton_lab import (MEMORY, SKEW, STAGES, USER, FioLoad, Guest, QmpError, as_user, bind, cpr_channel, nvme_guest, open_files, run,
                       wait_for)

REHEARSED = list(STAGES[:STAGES.index("rehearse") + 1])
TRACE = Path("/results/trace.log")
DIRECTORY = Path("/tmp/dry-run")


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    bind("01:00.0")
    DIRECTORY.mkdir(mode=0o777, exist_ok=True)
    os.chown(DIRECTORY, USER, USER)
    with nvme_guest("-pidfile", str(DIRECTORY / "pid"), wrapper=as_user((2 * MEMORY + 64) << 20)) as guest:
        yield guest.boot()


@pytest.fixture(scope="module")
def load(guest: Guest) -> FioLoad:
    return FioLoad(guest, "/root/load")


def uptime(guest: Guest) -> float:
    return float(guest.command("cut -d' ' -f1 /proc/uptime"))


def limit_locked_memory(guest: Guest, mib: int) -> None:
    run("prlimit", "--pid", str(guest.pid), f"--memlock={mib << 20}:{(2 * MEMORY + 64) << 20}")


def test_rehearsal(guest: Guest, load: FioLoad) -> None:
    """Everything up to the commit, on a guest that computes, writes and reads: it does not notice, nor does its drive."""
    qmp, pid = guest.qmp, guest.pid
    qmp.drain_events()
    drive, before, rounds = TRACE.stat().st_size, uptime(guest), load.rounds
    assert "pci_nvme_mmio_start_success" in TRACE.read_text(), "the emulator's trace is at work"
    files = open_files(pid)
    update = guest.update("--dry-run")
    assert list(update.stages) == REHEARSED
    assert update.predicted_ms and update.predicted_ms > 0
    assert update.blackout_ms is None
    assert "an update would work" in update.output
    assert re.fullmatch(r"baton\[\w+\]: the rehearsal went well: .*\n", update.errors), "the new process's farewell, and no complaint"

    assert guest.pid == pid == int((DIRECTORY / "pid").read_text())
    assert guest.processes() == [pid], "the new process has ended by itself"
    events = qmp.drain_events()
    assert set(events) == {"MIGRATION", "BATON_UPDATE_STAGE"}, "no STOP, no RESUME"
    load.wait_rounds(1)
    assert uptime(guest) > before and load.rounds > rounds
    touched = [line for line in TRACE.read_text()[drive:].splitlines() if "nvme" in line or "msix" in line]
    assert touched == [], "no reset, no re-enable, no change of MSI-X"
    wait_for("descriptors to be closed again", lambda: open_files(pid) == files)
    guest.check_alive()


def test_report(guest: Guest) -> None:
    """It says that it was a rehearsal, that it went well, and how it comes to its prediction."""
    report = guest.qmp.execute("query-migrate")
    details, prediction = report["baton"], report["baton"]["prediction"]
    assert report["status"] == "rehearsed" and details["dry-run"] is True
    assert "blocked-reasons" not in report and "downtime" not in report
    assert [stage["name"] for stage in details["stages"]] == REHEARSED
    assert all(prediction[part] > 0 for part in ("save-ns", "load-ns", "trip-ns"))
    assert prediction["blackout-ns"] == prediction["save-ns"] + prediction["load-ns"] + 2 * prediction["trip-ns"]
    assert report["expected-downtime"] == -(-prediction["blackout-ns"] // 1_000_000)


def test_rehearsal_over_qmp(guest: Guest, load: FioLoad) -> None:
    """A process that was given a console, a socket and a pid file of its own puts none of them in the guest's places."""
    pid, console = guest.pid, guest.console_path.stat().st_ino
    incoming = guest.start_incoming("-serial", guest.serial, "-qmp", f"unix:{guest.directory}/other,server=on,wait=off",
                                    "-pidfile", str(DIRECTORY / "other"))
    report = guest.hand_over(incoming.wait_listening().path, "rehearsed", dry_run=True)
    assert report["status"] == "rehearsed"
    assert incoming.exit_status() == 0
    assert "rehearsal went well" in incoming.log
    assert not (DIRECTORY / "other").exists() and int((DIRECTORY / "pid").read_text()) == pid
    assert guest.console_path.stat().st_ino == console
    guest.check_alive()


def test_rehearsal_with_another_protocol(guest: Guest) -> None:
    """The reason that an update would have; a version that fits can still be rehearsed."""
    update = guest.update("--dry-run", binary=SKEW / "protocol" / "baton", check=False)
    assert update.status == 1
    reasons = re.findall(rf"^baton update: guest '{guest.name}' cannot be updated: (.*)$", update.errors, re.M)
    assert len(reasons) == 1 and "stage 'hello'" in reasons[0] and "9 to 9" in reasons[0]
    assert guest.processes() == [guest.pid]
    assert guest.qmp.execute("query-migrate")["status"] == "failed"
    assert guest.update("--dry-run", binary=SKEW / "next" / "baton").predicted_ms


def test_blocker_comes_and_goes(guest: Guest) -> None:
    """A limit that is too low: known while the guest runs, told with its remedy, and refused before anything is begun."""
    limit_locked_memory(guest, MEMORY + 32)
    report = guest.qmp.execute("query-migrate")
    [reason] = report["blocked-reasons"]
    [blocker] = report["baton"]["blockers"]
    assert blocker["object"] == "guest memory"
    assert "limit on locked memory" in blocker["reason"] and "prlimit" in blocker["remedy"] and str(guest.pid) in blocker["remedy"]
    assert reason == f"{blocker['object']}: {blocker['reason']}: {blocker['remedy']}"
    for options in ((), ("--dry-run",)):
        update = guest.update(*options, check=False)
        assert update.status == 1 and not update.stages
        assert update.errors.splitlines() == [f"baton update: guest '{guest.name}' cannot be updated: {reason}"]
    guest.qmp.execute("migrate-set-parameters", mode="cpr-transfer")
    with pytest.raises(QmpError) as caught:
        guest.qmp.execute("migrate", channels=[cpr_channel(guest.directory / "nobody")])
    assert caught.value.desc == reason
    limit_locked_memory(guest, 2 * MEMORY + 64)
    assert "blocked-reasons" not in guest.qmp.execute("query-migrate")
    guest.check_alive()


def test_two_at_once(guest: Guest) -> None:
    """The second is refused with the reason, by whatever way it is asked for; the first goes on."""
    qmp = guest.qmp
    qmp.execute("migrate-set-parameters", mode="cpr-transfer")
    qmp.execute("migrate", channels=[cpr_channel(guest.directory / "nobody")])
    [reason] = qmp.execute("query-migrate")["blocked-reasons"]
    assert "under way" in reason and "migrate_cancel" in reason
    with pytest.raises(QmpError, match="under way"):
        qmp.execute("migrate", channels=[cpr_channel(guest.directory / "nobody")], dry_run=True)
    update = guest.update("--dry-run", check=False)
    assert update.status == 1 and "under way" in update.errors
    assert qmp.execute("query-migrate")["status"] == "setup"
    qmp.execute("migrate_cancel")
    qmp.event("MIGRATION", status="cancelled")
    assert "blocked-reasons" not in qmp.execute("query-migrate")


def test_trace_events(guest: Guest) -> None:
    """Switched on in a running guest, and in the new process: both sides tell of each stage."""
    qmp = guest.qmp
    assert {event["state"] for event in qmp.execute("trace-event-get-state", name="*")} == {"disabled"}
    qmp.execute("trace-event-set-state", name="update_*", enable=True)
    update = guest.update("--dry-run", "--trace", "*")
    outgoing = re.findall(r"^(\d+)@\d+\.\d{9}:update_stage_(begin|end) side=outgoing stage=(\w+)", guest.log, re.M)
    incoming = re.findall(r"^(\d+)@\d+\.\d{9}:update_stage_(begin|end) side=incoming stage=(\w+)", update.errors, re.M)
    steps = [(step, stage) for stage in REHEARSED for step in ("begin", "end")]
    assert [line[1:] for line in outgoing] == steps == [line[1:] for line in incoming]
    assert {int(line[0]) for line in outgoing} == {guest.pid} != {int(line[0]) for line in incoming}
    assert "vfio_adopt device=nvme0 host=0000:01:00.0" in update.errors and "vfio_region_map device=nvme0" in update.errors
    for word in ("vfio_open", "vfio_set_irqs", "vfio_irq_arm", "vfio_irq_disarm", "vfio_reset", "vfio_bind", "iommu_map"):
        assert f":{word} " not in update.errors, "adopting changes no device"
    assert ":iommu_" not in guest.log, "not switched on"
    qmp.execute("trace-event-set-state", name="*", enable=False)
    size = len(guest.log)
    guest.update("--dry-run")
    assert ":update_" not in guest.log[size:]


def test_the_real_thing(guest: Guest, load: FioLoad) -> None:
    """After all that the guest moves. How good the prediction was is for bench/blackout to say: here both are shown."""
    predicted = guest.update("--dry-run").predicted_ms
    update = guest.update()
    print(f"predicted {predicted} ms, measured {update.blackout_ms} ms")
    assert update.blackout_ms
    load.wait_rounds(1)
    assert load.stop() > 1
    guest.check_alive()
    guest.check_kernel_log()
