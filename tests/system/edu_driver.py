# SPDX-License-Identifier: Apache-2.0
"""QEMU's edu device by way of VFIO without an IOMMU: the part of p2p_driver.py that drives one of them. test_p2p.py puts both into
a guest. (The driver that counts interrupts is edu_driver.c.)
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time
from pathlib import Path

PAGE = 4096
VFIO = ord(";") << 8 | 100  # _IO(';', 100 + n)
SET_IOMMU, SET_CONTAINER, GET_DEVICE_FD, SET_IRQS = VFIO + 2, VFIO + 4, VFIO + 6, VFIO + 10
NOIOMMU = 8
IRQ_MSI = 1
IRQ_EVENTFD_TRIGGER = 1 << 2 | 1 << 5
DMA_SOURCE, DMA_TARGET, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
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
        # Locked memory stays, but not where it is, unless compaction is told to leave it alone.
        Path("/proc/sys/vm/compact_unevictable_allowed").write_text("0")
        self.page = mmap.mmap(-1, PAGE)
        self.page[:] = bytes(PAGE)
        ctypes.CDLL(None).mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self.page))), PAGE)

    def register(self, offset: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_buffer(self.registers, offset)

    def dma(self, source: int, target: int, direction: int, count: int = PAGE) -> None:
        for offset, value in ((DMA_SOURCE, source), (DMA_TARGET, target), (DMA_COUNT, count), (DMA_COMMAND, 1 | direction)):
            ctypes.c_uint64.from_buffer(self.registers, offset).value = value
        while self.register(DMA_COMMAND).value & 1:
            time.sleep(0.005)


def open_device(address: str) -> int:
    """The device, by way of VFIO without an IOMMU, which a guest has none of."""
    Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode").write_text("1")
    path = Path(f"/sys/bus/pci/devices/{address}")
    if (path / "driver").exists():
        (path / "driver/unbind").write_text(address)
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
