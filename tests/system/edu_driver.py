# SPDX-License-Identifier: Apache-2.0
"""A user-space driver for QEMU's edu device. test_devices.py puts it into a guest and runs it there, as root:

    python3 edu_driver.py 0000:00:02.0 DIRECTORY

It raises interrupts one after the other through the device's register, and waits for each: one that is lost stops it, and its
count tells. Every sixteenth time it has the device copy a page to itself and back by DMA, and compares. It ends when
DIRECTORY/stop exists; DIRECTORY/result then holds "raised handled copies mistakes".
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

PAGE = 4096
VFIO = ord(";") << 8 | 100  # _IO(';', 100 + n)
SET_IOMMU, SET_CONTAINER, GET_DEVICE_FD, SET_IRQS = VFIO + 2, VFIO + 4, VFIO + 6, VFIO + 10
NOIOMMU = 8
IRQ_MSI = 1
IRQ_EVENTFD_TRIGGER = 1 << 2 | 1 << 5
ID, STATUS, RAISE, ACKNOWLEDGE, DMA_SOURCE, DMA_TARGET, DMA_COUNT, DMA_COMMAND = 0, 0x24, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98
DEVICE_BUFFER = 0x40000


class Edu:
    def __init__(self, address: str) -> None:
        device = open_device(address)
        config = 7 << 40  # offset of the configuration space
        os.pwrite(device, struct.pack("<H", 0x0006), config + 4)  # memory and bus master on
        self.registers = mmap.mmap(device, 1 << 20, offset=0)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        fcntl.ioctl(device, SET_IRQS, struct.pack("<IIIIIi", 24, IRQ_EVENTFD_TRIGGER, IRQ_MSI, 0, 1, self.event))
        self.device = device
        self.page = mmap.mmap(-1, PAGE)
        self.page[:] = bytes(PAGE)
        ctypes.CDLL(None).mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self.page))), PAGE)

    def register(self, offset: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_buffer(self.registers, offset)

    def raise_and_wait(self, value: int) -> int:
        """How many interrupts came for one that was raised."""
        self.register(RAISE).value = value
        ready, _, _ = select.select([self.event], [], [], 100)
        if not ready:
            return 0
        count = os.eventfd_read(self.event)
        if self.register(STATUS).value != value:
            count = -1
        self.register(ACKNOWLEDGE).value = value
        return count

    def copy(self, content: bytes) -> bool:
        """Through the device's memory and back, by DMA both ways."""
        physical = physical_address(self.page)
        self.page[:] = content
        self.dma(physical, DEVICE_BUFFER, 0)
        self.page[:] = bytes(PAGE)
        self.dma(DEVICE_BUFFER, physical, 2)
        return self.page[:] == content

    def dma(self, source: int, target: int, direction: int) -> None:
        for offset, value in ((DMA_SOURCE, source), (DMA_TARGET, target), (DMA_COUNT, PAGE), (DMA_COMMAND, 1 | direction)):
            ctypes.c_uint64.from_buffer(self.registers, offset).value = value
        while self.register(DMA_COMMAND).value & 1:
            time.sleep(0.005)


def open_device(address: str) -> int:
    """The device, by way of VFIO without an IOMMU, which a guest has none of."""
    Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode").write_text("1")
    path = Path(f"/sys/bus/pci/devices/{address}")
    (path / "driver_override").write_text("vfio-pci")
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    number = (path / "iommu_group").readlink().name
    group = os.open(f"/dev/vfio/noiommu-{number}", os.O_RDWR)
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    fcntl.ioctl(group, SET_CONTAINER, struct.pack("<i", container))
    fcntl.ioctl(container, SET_IOMMU, NOIOMMU)
    return fcntl.ioctl(group, GET_DEVICE_FD, bytearray(address.encode() + b"\0"), True)  # the descriptor, not the buffer


def physical_address(page: mmap.mmap) -> int:
    virtual = ctypes.addressof(ctypes.c_char.from_buffer(page))
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(virtual // PAGE * 8)
        entry = struct.unpack("<Q", file.read(8))[0]
    return (entry & (1 << 55) - 1) * PAGE


def main() -> None:
    edu, directory = Edu(sys.argv[1]), Path(sys.argv[2])
    raised = handled = copies = mistakes = 0
    while not (directory / "stop").exists():
        raised += 1
        count = edu.raise_and_wait(raised)
        handled += max(count, 0)
        mistakes += count != 1
        if raised % 16 == 0:
            copies += 1
            mistakes += not edu.copy(os.urandom(PAGE))
        (directory / "progress").write_text(str(raised))
        if count == 0:
            break
    (directory / "result").write_text(f"{raised} {handled} {copies} {mistakes}\n")


if __name__ == "__main__":
    main()
