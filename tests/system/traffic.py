# SPDX-License-Identifier: Apache-2.0
"""Traffic for passed-through NICs, checked at L1's end of the cable: pings and a TCP stream."""

from __future__ import annotations

import random
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from baton_lab import PATIENCE, Guest, LabError, run, wait_for

PORT = 7000
BLOCK = 4096
IN_FLIGHT = 4  # blocks: less than what any NIC's ring takes, so that a guest that stands still loses nothing
PAUSE = 0.1  # seconds between blocks: there is other traffic in the guest
TOTAL_RETRANS = slice(100, 104)  # tcpi_total_retrans of struct tcp_info (linux/tcp.h)


class Cable:
    """A subnet between an interface of L1 and one of the guest. Neither end retransmits because an answer is late (an
    emulated machine may be busy for longer than TCP's patience): whatever is retransmitted was lost."""

    def __init__(self, guest: Guest, here: str, there: str, number: int) -> None:
        self.guest = guest
        self.here, self.there = f"10.8.{number}.1", f"10.8.{number}.2"
        patient = f"10.8.{number}.0/24 proto kernel scope link rto_min 60s"
        Path("/proc/sys/net/ipv4/tcp_early_retrans").write_text("0")
        run("ip", "addr", "replace", f"{self.here}/24", "dev", here)
        run("ip", "link", "set", here, "up")
        run("ip", "route", "replace", *patient.split(), "dev", here, "src", self.here)
        guest.command(f"echo 0 >/proc/sys/net/ipv4/tcp_early_retrans; ip addr add {self.there}/24 dev {there}"
                      f" && ip link set {there} up && ip route replace {patient} dev {there} src {self.there}")
        guest.command(f"(setsid socat TCP-LISTEN:{PORT},bind={self.there},reuseaddr PIPE </dev/null >/dev/null 2>&1 &)")

    def wait(self) -> Cable:
        """Until both ends have a link, and the guest's echo server listens."""
        wait_for(f"an answer from {self.there}", lambda: run("ping", "-c", "1", "-W", "1", self.there, check=False).returncode == 0)
        number = "".join(f"{int(part):02X}" for part in reversed(self.there.split(".")))
        wait_for("the echo server", lambda: self.guest.console.status(f"grep -q '{number}:{PORT:04X} .* 0A ' /proc/net/tcp")[0] == 0)
        return self

    def retransmissions(self) -> int:
        """Of all connections of the guest."""
        return int(self.guest.command("awk '/^Tcp: [0-9]/ { print $13 }' /proc/net/snmp"))


class Ping:
    """A hundred a second from L1, until told to stop: each must be answered, once, however late."""

    def __init__(self, address: str) -> None:
        self.output = tempfile.NamedTemporaryFile(mode="w+")
        self.process = subprocess.Popen(["ping", "-n", "-i", "0.01", address], stdin=subprocess.DEVNULL, stdout=self.output,
                                        stderr=subprocess.STDOUT)
        self.wait_more()

    def answers(self) -> list[int]:
        """Sequence numbers, in the order in which they came; the last line may be half written."""
        return [int(number) for number in re.findall(r" icmp_seq=(\d+) .*\n", Path(self.output.name).read_text())]

    def wait_more(self, more: int = 20) -> None:
        wanted = len(self.answers()) + more
        wait_for(f"answer {wanted} to a ping", lambda: len(self.answers()) >= wanted)

    def stop(self) -> int:
        """@return how many there were. What was sent last may not have been answered yet; all before that was."""
        last = self.answers()[-1]
        wait_for("the last answers", lambda: self.answers()[-1] >= last + 100)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE)
        answers = self.answers()
        missing = sorted(set(range(1, max(answers) + 1)) - set(answers))
        assert not missing, f"not answered: {missing} of {max(answers)}"
        assert len(answers) == len(set(answers)), "answered twice"
        assert answers == sorted(answers), "answered out of order"
        return len(answers)


class TcpStream(threading.Thread):
    """One connection, opened once, on which the guest echoes what it gets: compared here, byte for byte."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.blocks = 0
        self.mistake = ""
        self.stopping = threading.Event()
        self.socket = socket.create_connection((address, PORT), timeout=PATIENCE)
        self.start()
        self.wait_more()
        self.before = self.retransmissions()

    def retransmissions(self) -> int:
        information = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TOTAL_RETRANS.stop)
        return int(struct.unpack("=I", information[TOTAL_RETRANS])[0])

    def run(self) -> None:
        try:
            sent = 0
            while sent < self.blocks + IN_FLIGHT and not self.stopping.is_set():
                self.socket.sendall(self.block(sent))
                sent += 1
                if sent == self.blocks + IN_FLIGHT:
                    self.receive()
                    time.sleep(PAUSE)
            while self.blocks < sent:
                self.receive()
            self.socket.shutdown(socket.SHUT_WR)
            if self.socket.recv(1):
                self.mistake = "more came back than was sent"
        except (OSError, EOFError) as error:
            self.mistake = self.mistake or f"after {self.blocks} blocks: {error!r}"

    @staticmethod
    def block(number: int) -> bytes:
        return random.Random(number).randbytes(BLOCK)

    def receive(self) -> None:
        data = b""
        while len(data) < BLOCK:
            piece = self.socket.recv(BLOCK - len(data))
            if not piece:
                raise EOFError("the guest has closed the connection")
            data += piece
        if data != self.block(self.blocks):
            self.mistake = f"block {self.blocks} is not what was sent"
            self.stopping.set()
        self.blocks += 1

    def wait_more(self, more: int = 4) -> None:
        wanted = self.blocks + more

        def reached() -> bool:
            if self.mistake:
                raise LabError(self.mistake)
            return self.blocks >= wanted
        wait_for(f"block {wanted} of a TCP stream", reached)

    def stop(self) -> int:
        """@return how many blocks came back, all of them as they were sent"""
        again = self.retransmissions() - self.before
        self.stopping.set()
        self.join(PATIENCE)
        assert not self.is_alive() and not self.mistake, self.mistake
        assert again == 0, f"{again} segments were sent again"
        return self.blocks
