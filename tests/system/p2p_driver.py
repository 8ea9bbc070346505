# SPDX-License-Identifier: Apache-2.0
"""Two of QEMU's edu devices that do DMA into each other's registers. test_p2p.py puts it into a guest, beside edu_driver.py:

    python3 p2p_driver.py 0000:00:02.0 0000:00:03.0 DIRECTORY

Each round, one device writes a random word into the other's register that keeps the complement of what is written, and reads
it back, both by DMA to the other's BAR; the processor looks at the register as well. Then they swap roles. It ends when
DIRECTORY/stop exists; DIRECTORY/result then holds "rounds mistakes".
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from edu_driver import DEVICE_BUFFER, Edu, physical_address

COMPLEMENT = 0x04
SIZE = 4


def bar_address(address: str) -> int:
    return int(Path(f"/sys/bus/pci/devices/{address}/resource").read_text().split()[0], 16)


def exchange(active: Edu, passive: Edu, register: int) -> bool:
    """@param register bus address of the passive device's register"""
    word = os.urandom(SIZE)
    complement = bytes(byte ^ 0xFF for byte in word)
    memory = physical_address(active.page)
    active.page[:SIZE] = word
    active.dma(memory, DEVICE_BUFFER, 0, SIZE)
    active.dma(DEVICE_BUFFER, register, 2, SIZE)
    seen = struct.pack("<I", passive.register(COMPLEMENT).value)
    active.dma(register, DEVICE_BUFFER + SIZE, 0, SIZE)
    active.dma(DEVICE_BUFFER + SIZE, memory + SIZE, 2, SIZE)
    if (seen, active.page[SIZE:2 * SIZE]) == (complement, complement):
        return True
    print(f"wrote {word.hex()}: the register has {seen.hex()}, DMA read {active.page[SIZE:2 * SIZE].hex()}", flush=True)
    return False


def main() -> None:
    addresses, directory = sys.argv[1:3], Path(sys.argv[3])
    devices = [Edu(address) for address in addresses]
    registers = [bar_address(address) + COMPLEMENT for address in addresses]
    rounds = mistakes = 0
    while not (directory / "stop").exists():
        mistakes += not exchange(devices[0], devices[1], registers[1])
        mistakes += not exchange(devices[1], devices[0], registers[0])
        rounds += 1
        (directory / "new").write_text(str(rounds))
        (directory / "new").rename(directory / "progress")  # who reads meanwhile finds the former one
    (directory / "result").write_text(f"{rounds} {mistakes}\n")


if __name__ == "__main__":
    main()
