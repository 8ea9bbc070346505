#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Stands between the two sides of a hand-over and does harm at one point of it. Started by test_refused.py:

    proxy.py LISTEN CONNECT ACTION STAGE PID

It listens at LISTEN for the outgoing process and forwards every message, descriptors included, to the incoming process PID at
CONNECT, and back. When the request for STAGE passes (or the message of type "go"), it does ACTION:

    kill-before     kills the incoming process, then itself, instead of forwarding the request
    kill-after      forwards the request, waits for the answer, and kills both instead of forwarding that
    hang            forwards nothing any more, and stays
    drop-descriptor forwards the message behind the request with one descriptor less
    rename=OLD=NEW  forwards it with the name OLD changed (names of one length)

As a process of its own it dies like a peer: the kernel tells the outgoing side through its pidfd.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import struct
import sys
from typing import NoReturn

MESSAGE_MAX = 1 << 16
DESCRIPTORS_MAX = 253
GO = 4


class Proxy:
    def __init__(self, listen: str, connect: str, action: str, stage: str, pid: int) -> None:
        self.action, self.stage, self.pid = action, stage.encode(), pid
        self.armed = False  # the request has passed; what comes next is concerned
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(listen)
        listener.listen()
        self.outgoing, _ = listener.accept()
        self.incoming = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.incoming.connect(connect)

    def run(self) -> None:
        while True:
            ready, _, _ = select.select([self.outgoing, self.incoming], [], [])
            for source in ready:
                if not self.forward(source):
                    return

    def forward(self, source: socket.socket) -> bool:
        data, ancillary, _, _ = source.recvmsg(MESSAGE_MAX, socket.CMSG_SPACE(4 * DESCRIPTORS_MAX))
        if not data:
            return False
        descriptors = array.array("i")
        for _, _, content in ancillary:
            descriptors.frombytes(content[:len(content) - len(content) % 4])
        if source is self.outgoing:
            data = self.harm_request(data, descriptors)
        elif self.armed and self.action == "kill-after":
            self.end_both()
        target = self.incoming if source is self.outgoing else self.outgoing
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if descriptors else []
        target.sendmsg([data], rights)
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def harm_request(self, data: bytes, descriptors: array.array[int]) -> bytes:
        if self.armed and self.action == "drop-descriptor" and descriptors:
            os.close(descriptors.pop())
        if self.armed and self.action.startswith("rename="):
            old, new = (word.encode() for word in self.action.split("=")[1:])
            data = data.replace(old, new)
        if self.is_concerned(data):
            self.armed = True
            if self.action == "kill-before":
                self.end_both()
            if self.action == "hang":
                signal.pause()
        return data

    def is_concerned(self, data: bytes) -> bool:
        """A request names its stage in a field: the CBOR texts "stage" and its value, one after the other."""
        if self.stage == b"go":
            return message_type(data) == GO
        return b"\x65stage" + bytes([0x60 + len(self.stage)]) + self.stage in data

    def end_both(self) -> NoReturn:
        os.kill(self.pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")


def message_type(data: bytes) -> int:
    """The second word of a message's head; see src/channel/channel.c."""
    return struct.unpack_from("<I", data, 4)[0]


if __name__ == "__main__":
    Proxy(*sys.argv[1:5], int(sys.argv[5])).run()  # type: ignore[call-arg]
