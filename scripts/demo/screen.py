# SPDX-License-Identifier: Apache-2.0
"""How ./demo looks: aligned lines, colours when DEMO_COLOUR is set (that is, when the demo's output is a terminal)."""

from __future__ import annotations

import os
import threading


class Screen:
    """Prints whole lines, from any thread."""

    def __init__(self) -> None:
        self.coloured = bool(os.environ.get("DEMO_COLOUR"))
        self.lock = threading.Lock()

    def paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.coloured else text

    def strong(self, text: str) -> str:
        return self.paint("1", text)

    def print(self, line: str) -> None:
        with self.lock:
            print(line, flush=True)

    def item(self, label: str, text: str) -> None:
        self.print(f"{self.paint('1;36', f'{label:<9}')} {text}")

    def detail(self, label: str, text: str) -> None:
        self.print(f"{'':9} {self.paint('2', f'{label:<14}')} {text}")

    def guest(self, line: str) -> None:
        self.print(f"{self.paint('32', '    guest |')} {line}")

    def verdict(self, good: bool, label: str, text: str) -> None:
        mark = self.paint("1;32", "✓") if good else self.paint("1;31", "✗")
        self.print(f"  {mark} {label:<14} {text}")
