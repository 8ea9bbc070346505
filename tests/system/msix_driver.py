# SPDX-License-Identifier: Apache-2.0
"""A user-space driver for an e1000e, over VFIO without an IOMMU: MSI-X vectors masked, pending, and enabled late. test_msix.py
puts it into a guest, beside edu_driver.py, and runs it there, as root:

    python3 msix_driver.py 0000:00:02.0 DIRECTORY

The device raises any cause that its register ICS is told to, and its register IVAR says which vector a cause has. Masks and
pending bits are those of the vector table, behind the back of the guest's kernel. At each step it makes DIRECTORY/stepN and
waits for DIRECTORY/goN; DIRECTORY/result is "ok" or what was wrong.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
import sys
import time
from pathlib import Path

from edu_driver import SET_IRQS, open_device

IRQ_MSIX = 2
TRIGGER, DATA_NONE, DATA_EVENTFD = 1 << 5, 1 << 0, 1 << 2
ICR, ICS, IMS, IVAR = 0xc0, 0xc8, 0xd0, 0xe4
CAUSES = (1 << 20, 1 << 22, 1 << 24)  # receive queue 0, transmit queue 0, other: vectors 0, 1 and 2
ROUTES = 0x8 | 0x9 << 8 | 0xa << 16  # in IVAR: valid, vector
MASKALL = 1 << 14


class Nic:
    def __init__(self, address: str) -> None:
        self.path = Path(f"/sys/bus/pci/devices/{address}")
        self.device = open_device(address)
        self.config = os.open(self.path / "config", os.O_RDWR)
        self.set_config(4, "<H", 0x0006)
        self.registers = self.map_bar(0)
        self.capability = self.find_msix()
        table, pending = (self.get_config(self.capability + offset, "<I") for offset in (4, 8))
        self.table, self.table_offset = self.map_bar(table & 7), table & ~7
        self.pending, self.pending_offset = self.map_bar(pending & 7), pending & ~7
        self.events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in CAUSES]

    def map_bar(self, bar: int) -> mmap.mmap:
        file = os.open(self.path / f"resource{bar}", os.O_RDWR)
        return mmap.mmap(file, os.fstat(file).st_size)

    def get_config(self, offset: int, form: str) -> int:
        return struct.unpack(form, os.pread(self.config, struct.calcsize(form), offset))[0]

    def set_config(self, offset: int, form: str, value: int) -> None:
        os.pwrite(self.config, struct.pack(form, value), offset)

    def find_msix(self) -> int:
        at = self.get_config(0x34, "<B")
        while self.get_config(at, "<B") != 0x11:
            at = self.get_config(at + 1, "<B")
        return at

    def register(self, offset: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_buffer(self.registers, offset)

    def entry(self, vector: int, field: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_buffer(self.table, self.table_offset + 16 * vector + 4 * field)

    def messages(self) -> list[int]:
        return [self.entry(vector, field).value for vector in range(2) for field in range(3)]

    def pending_bits(self) -> int:
        return ctypes.c_uint32.from_buffer(self.pending, self.pending_offset).value & 7

    def mask(self, vector: int, masked: bool) -> None:
        self.entry(vector, 3).value = masked

    def mask_all(self, masked: bool) -> None:
        control = self.get_config(self.capability + 2, "<H")
        self.set_config(self.capability + 2, "<H", control & ~MASKALL | MASKALL * masked)

    def enable(self, first: int, count: int) -> None:
        """Vectors from `first` on; none at all switches MSI-X off."""
        flags = TRIGGER | (DATA_EVENTFD if count else DATA_NONE)
        data = struct.pack(f"<{count}i", *self.events[first:first + count])
        fcntl.ioctl(self.device, SET_IRQS, struct.pack("<IIIII", 20 + len(data), flags, IRQ_MSIX, first, count) + data)

    def raise_cause(self, vector: int) -> None:
        self.register(IVAR).value = ROUTES
        self.register(IMS).value = sum(CAUSES)
        self.register(ICR).value = sum(CAUSES)
        self.register(ICS).value = CAUSES[vector]

    def interrupts(self, patience: float) -> list[int]:
        """Which vectors have come, once one of them has; or none in that time. How often is not told: the emulator's e1000e
        repeats every message when the time of throttling (EITR) is over."""
        select.select(self.events, [], [], patience)
        time.sleep(0.2)
        came = []
        for event in self.events:
            try:
                came.append(int(os.eventfd_read(event) > 0))
            except BlockingIOError:
                came.append(0)
        return came


def expect(what: str, value: object, wanted: object) -> None:
    if value != wanted:
        raise ValueError(f"{what}: {value}, not {wanted}")


def step(directory: Path, number: int) -> None:
    (directory / f"step{number}").touch()
    while not (directory / f"go{number}").exists():
        time.sleep(0.02)


def drive(nic: Nic, directory: Path) -> None:
    nic.enable(0, 2)
    messages = nic.messages()
    for vector in range(2):
        nic.raise_cause(vector)
        expect(f"vector {vector}", nic.interrupts(60), [int(vector == 0), int(vector == 1), 0])

    nic.mask(1, True)
    nic.raise_cause(1)
    expect("masked", nic.interrupts(0.5), [0, 0, 0])
    expect("pending bits", nic.pending_bits(), 0b010)
    step(directory, 1)  # vector 1 is masked and pending
    expect("still masked", nic.interrupts(0.5), [0, 0, 0])
    expect("pending bits after an update", nic.pending_bits(), 0b010)
    expect("messages", nic.messages(), messages)
    nic.mask(1, False)
    expect("unmasked", nic.interrupts(60), [0, 1, 0])
    expect("pending bits after delivery", nic.pending_bits(), 0)
    nic.raise_cause(0)
    expect("open all the while", nic.interrupts(60), [1, 0, 0])

    nic.enable(2, 1)  # never used before
    nic.raise_cause(2)
    expect("enabled after an update", nic.interrupts(60), [0, 0, 1])

    nic.mask_all(True)
    nic.raise_cause(0)
    nic.raise_cause(2)
    step(directory, 2)  # the whole function is masked, two vectors are pending
    expect("function masked", nic.interrupts(0.5), [0, 0, 0])
    expect("pending bits of a masked function", nic.pending_bits(), 0b101)
    nic.mask_all(False)
    expect("function unmasked", nic.interrupts(60), [1, 0, 1])

    nic.mask(0, True)
    step(directory, 3)  # vector 0 is masked, nothing is pending; the device raises it after the update
    nic.raise_cause(0)
    expect("raised while masked, after an update", nic.interrupts(0.5), [0, 0, 0])
    expect("pending bits, set after an update", nic.pending_bits(), 0b001)
    nic.mask(0, False)
    expect("unmasked after all", nic.interrupts(60), [1, 0, 0])

    nic.enable(0, 0)
    step(directory, 4)  # MSI-X is off
    nic.raise_cause(1)
    expect("switched off", nic.interrupts(0.5), [0, 0, 0])
    nic.enable(0, 3)
    for vector in range(3):
        nic.raise_cause(vector)
        expect(f"vector {vector} once more", nic.interrupts(60), [int(vector == i) for i in range(3)])


def main() -> None:
    directory = Path(sys.argv[2])
    try:
        drive(Nic(sys.argv[1]), directory)
        result = "ok"
    except ValueError as error:
        result = str(error)
    (directory / "new").write_text(f"{result}\n")
    (directory / "new").rename(directory / "result")  # which is there when all of it is


if __name__ == "__main__":
    main()
