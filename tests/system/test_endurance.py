# SPDX-License-Identifier: Apache-2.0
# lab: --memory 3072 --device nvme --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --device edu,dma_mask=0xffffffffffffffff --trace pci_cfg_write
"""Many updates of one guest, up and down alternately, under fio and interrupts: nothing is lost and nothing grows."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from baton_lab import (BATON, NEXT, SANITIZED, Edu, FioLoad, Guest, bind, nvme_guest, open_files, status_field, thread_count,
                       vfio_options)

COUNT = int(os.environ.get("BATON_UPDATES", "20"))  # tests/endurance sets it
EDU = "0000:00:02.0"
SETTLED = 4  # updates after which both versions have run twice
SLACK = 16 << 10 if SANITIZED else 512  # KiB that the memory of a process may differ from another's of its version
MAPPINGS_SLACK = 16 if SANITIZED else 0  # a sanitizer's runtime makes some for itself as it needs them
HOST_SLACK = 96 << 10  # KiB: what the host has in caches differs more


@dataclass(frozen=True)
class Sample:
    """What the process that runs the guest uses, and the whole host."""

    descriptors: int
    threads: int
    mappings: int
    locked: int  # KiB, as all sizes
    private: int
    host_files: int
    host_memory: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        memory = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
        return cls(len(open_files(pid)), thread_count(pid), len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
                   status_field(pid, "VmLck") + status_field(pid, "VmPin"), status_field(pid, "RssAnon"),
                   int(Path("/proc/sys/fs/file-nr").read_text().split()[0]),
                   int(memory["MemTotal:"]) - int(memory["MemAvailable:"]))

    def __str__(self) -> str:
        return (f"{self.descriptors} descriptors, {self.threads} threads, {self.mappings} mappings, {self.locked} KiB locked, "
                f"{self.private} KiB private; host: {self.host_files} files, {self.host_memory >> 10} MiB")


def check_no_growth(samples: list[Sample]) -> None:
    """Processes of one version are alike, from the first to the last."""
    assert {sample.locked for sample in samples} == {samples[0].locked}
    for version in (samples[0::2], samples[1::2]):
        first, last = version[SETTLED // 2], version[-1]
        assert (first.descriptors, first.threads) == (last.descriptors, last.threads), f"from {first} to {last}"
        assert abs(first.mappings - last.mappings) <= MAPPINGS_SLACK, f"from {first} to {last}"
        assert last.private - first.private < SLACK, f"from {first} to {last}"
        assert last.host_files - first.host_files < 64, f"from {first} to {last}"
        assert last.host_memory - first.host_memory < HOST_SLACK, f"from {first} to {last}"


def test_updates_in_a_row(iommufd: str) -> None:
    bind("all")
    words = vfio_options("02:00.0", ident="edu0", iommufd=iommufd, declare=False)
    with nvme_guest(*words, iommufd=iommufd) as guest:
        guest.boot()
        run_updates(guest)


def run_updates(guest: Guest) -> None:
    edu, load, samples, blackouts = Edu(guest, EDU, "msi", rest=Edu.REST), FioLoad(guest, "/root/load"), [], []
    edu.wait_for_more()
    start = time.monotonic()
    for number in range(COUNT):
        blackouts.append(guest.update(binary=BATON if number % 2 else NEXT).blackout_ms)
        samples.append(Sample.of(guest.pid))
        if (number + 1) % max(10, COUNT // 20) == 0:
            edu.check()
            print(f"{number + 1} updates in {time.monotonic() - start:.0f} s: {samples[-1]}; {edu.raised} interrupts, "
                  f"{load.rounds} rounds of fio; blackout median {sorted(blackouts)[number // 2]} ms", flush=True)
    counts, rounds = edu.stop(), load.stop()
    print(f"{counts}, {rounds} rounds of fio, blackout median {sorted(blackouts)[COUNT // 2]}, worst {max(blackouts)} ms")
    counts.check()
    assert counts.in_kernel == counts.raised
    check_no_growth(samples)
    guest.check_alive()
    guest.check_kernel_log()
