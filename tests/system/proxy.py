#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Stands between the two sides of a hand-over and does harm at one point of it. Started by baton_lab.py's through_proxy():

    proxy.py LISTEN CONNECT ACTION STAGE PID

It listens at LISTEN for the outgoing process and forwards every message, descriptors included, to the incoming process PID at
CONNECT, and back. When the request for STAGE passes (or the message of type "go"), it does ACTION:

    kill-before      kills the incoming process, then itself, instead of forwarding the request
    kill-after       forwards the request, waits for the answer, and kills both instead of forwarding that
    hang             forwards nothing any more, and stays
    close-before     closes both sockets instead of forwarding the request, and stays
    close-after      closes them instead of forwarding the answer
    short-request    forwards the first half of the request
    short-reply      forwards the first half of the answer
    twice-request    forwards the request twice
    twice-reply      forwards the answer twice
    late-request     forwards the request after the message that is behind it (which only describe has)
    garbage-request  forwards as many other bytes instead of the request
    garbage-reply    forwards as many other bytes instead of the answer
    drop-descriptor  forwards the message behind the request with one descriptor less
    more-descriptor  forwards it with one descriptor more
    other-descriptor forwards it with /dev/null in the place of one descriptor
    rename=OLD=NEW   forwards it with the name OLD changed (names of one length)
    state=OLD=NEW    replaces OLD in the state, which is in the shared memory, before it forwards the request
    state-cut        erases the second half of the state

As a process of its own it dies like a peer: the kernel tells the outgoing side through its pidfd.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import NoReturn

MESSAGE_MAX = 1 << 16
DESCRIPTORS_MAX = 253
REQUEST, DESCRIPTORS, GO = 1, 2, 4  # enum wire_type
STATE_OFFSET = 4096 + 256 * 1024  # WIRE_STATE_OFFSET


class Proxy:
    def __init__(self, listen: str, connect: str, action: str, stage: str, pid: int) -> None:
        self.action, self.stage, self.pid = action, stage.encode(), pid
        self.armed = False  # the request has passed; what comes next is concerned
        self.held: tuple[bytes, list[int]] | None = None
        self.memory: mmap.mmap | None = None
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
                data, ancillary, _, _ = source.recvmsg(MESSAGE_MAX, socket.CMSG_SPACE(4 * DESCRIPTORS_MAX))
                if not data:
                    return
                descriptors = array.array("i")
                for _, _, content in ancillary:
                    descriptors.frombytes(content[:len(content) - len(content) % 4])
                if source is self.outgoing:
                    self.forward_request(data, list(descriptors))
                else:
                    self.forward_reply(data)

    @staticmethod
    def send(target: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        target.sendmsg([data], rights)

    def forward_request(self, data: bytes, descriptors: list[int]) -> None:
        if self.armed and message_type(data) == DESCRIPTORS:
            data, descriptors = self.harm_batch(data, descriptors)
        if not self.memory and message_type(data) == REQUEST and descriptors:
            self.memory = mmap.mmap(descriptors[0], os.fstat(descriptors[0]).st_size)
        if self.is_concerned(data):
            self.armed = True
            data = self.harm_request(data, descriptors)
        elif self.held:
            self.send(self.incoming, data, descriptors)
            (data, descriptors), self.held = self.held, None
        if self.held:
            return
        self.send(self.incoming, data, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def harm_request(self, data: bytes, descriptors: list[int]) -> bytes:
        match self.action.split("=", 1)[0]:
            case "kill-before":
                self.end_both()
            case "hang":
                signal.pause()
            case "close-before":
                self.close_both()
            case "short-request":
                return data[:len(data) // 2]
            case "twice-request":
                self.send(self.incoming, data, descriptors)
            case "late-request":
                self.held = data, descriptors
            case "garbage-request":
                return b"\xa5" * len(data)
            case "state" | "state-cut":
                self.harm_state()
        return data

    def harm_batch(self, data: bytes, descriptors: list[int]) -> tuple[bytes, list[int]]:
        match self.action.split("=", 1)[0]:
            case "drop-descriptor":
                os.close(descriptors.pop())
            case "more-descriptor":
                descriptors.append(os.open("/dev/null", os.O_RDWR))
            case "other-descriptor":
                os.close(descriptors.pop())
                descriptors.append(os.open("/dev/null", os.O_RDWR))
            case "rename":
                old, new = (word.encode() for word in self.action.split("=")[1:])
                data = data.replace(old, new)
        return data, descriptors

    def harm_state(self) -> None:
        assert self.memory
        state = self.memory[STATE_OFFSET:]
        length = len(state.rstrip(b"\0"))
        if self.action == "state-cut":
            self.memory[STATE_OFFSET + length // 2:STATE_OFFSET + length] = bytes(length - length // 2)
            return
        old, new = (word.encode() for word in self.action.split("=")[1:])
        assert old in state and len(old) == len(new)
        self.memory[STATE_OFFSET:] = state.replace(old, new, 1)

    def forward_reply(self, data: bytes) -> None:
        if self.armed:
            match self.action:
                case "kill-after":
                    self.end_both()
                case "close-after":
                    self.close_both()
                case "short-reply":
                    data = data[:len(data) // 2]
                case "twice-reply":
                    self.send(self.outgoing, data)
                case "garbage-reply":
                    data = b"\xa5" * len(data)
            self.armed = False
        self.send(self.outgoing, data)

    def is_concerned(self, data: bytes) -> bool:
        """A request names its stage in a field: the CBOR texts "stage" and its value, one after the other."""
        if self.stage == b"go":
            return message_type(data) == GO
        return b"\x65stage" + bytes([0x60 + len(self.stage)]) + self.stage in data

    def end_both(self) -> NoReturn:
        os.kill(self.pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    def close_both(self) -> NoReturn:
        self.outgoing.close()
        self.incoming.close()
        while True:
            signal.pause()


def message_type(data: bytes) -> int:
    """The second word of a message's head; see src/channel/channel.c."""
    return struct.unpack_from("<I", data, 4)[0]


if __name__ == "__main__":
    Proxy(*sys.argv[1:5], int(sys.argv[5])).run()  # type: ignore[call-arg]
