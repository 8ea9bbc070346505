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
    state-future     replaces the version of a section, and that of the reader that it needs, by one that no baton has

When it comes to that, it says "done" on standard output: should it end without, the two sides have come to grief over something
else. As a process of its own it dies like a peer: the kernel tells the outgoing side through its pidfd.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import re
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
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
        packets = [data]
        if self.is_concerned(data):
            self.armed = True
            packets = self.harm_request(data, descriptors)
        elif self.held:
            self.send(self.incoming, data, descriptors)
            (data, descriptors), self.held = self.held, None
            packets = [data]
        if self.held:
            return
        for packet in packets:
            self.send(self.incoming, packet, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def harm_request(self, data: bytes, descriptors: list[int]) -> list[bytes]:
        """@return what is forwarded instead"""
        packets = [data]
        match self.action.split("=", 1)[0]:
            case "kill-before":
                self.end_both()
            case "hang":
                say_done()
                stay()
            case "close-before":
                self.close_both()
            case "short-request":
                packets = [data[:len(data) // 2]]
            case "twice-request":
                packets = [data, data]
            case "late-request":
                self.held = data, descriptors
            case "garbage-request":
                packets = [b"\xa5" * len(data)]
            case "state":
                self.harm_state(self.with_words_replaced)
            case "state-cut":
                self.harm_state(without_second_half)
            case "state-future":
                self.harm_state(from_the_future)
            case _:
                return packets  # what comes next is harmed
        say_done()
        return packets

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
                data = self.with_words_replaced(data)
            case _:
                return data, descriptors
        say_done()
        return data, descriptors

    def harm_state(self, change: Callable[[bytes], bytes]) -> None:
        assert self.memory
        before = self.memory[STATE_OFFSET:]
        after = change(before)
        assert len(after) == len(before) and after != before
        self.memory[STATE_OFFSET:] = after

    def with_words_replaced(self, data: bytes) -> bytes:
        old, new = (word.encode() for word in self.action.split("=")[1:])
        assert old in data and len(old) == len(new)
        return data.replace(old, new, 1)

    def forward_reply(self, data: bytes) -> None:
        for packet in self.harm_reply(data) if self.armed else [data]:
            self.send(self.outgoing, packet)
        self.armed = False

    def harm_reply(self, data: bytes) -> list[bytes]:
        packets = [data]
        match self.action:
            case "kill-after":
                self.end_both()
            case "close-after":
                self.close_both()
            case "short-reply":
                packets = [data[:len(data) // 2]]
            case "twice-reply":
                packets = [data, data]
            case "garbage-reply":
                packets = [b"\xa5" * len(data)]
            case _:
                return packets  # something else was harmed
        say_done()
        return packets

    def is_concerned(self, data: bytes) -> bool:
        """A request names its stage in a field: the CBOR texts "stage" and its value, one after the other."""
        if self.stage == b"go":
            return message_type(data) == GO
        return b"\x65stage" + bytes([0x60 + len(self.stage)]) + self.stage in data

    def end_both(self) -> NoReturn:
        say_done()
        os.kill(self.pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    def close_both(self) -> NoReturn:
        say_done()
        self.outgoing.close()
        self.incoming.close()
        stay()


def without_second_half(state: bytes) -> bytes:
    length = len(state.rstrip(b"\0"))
    return state[:length // 2].ljust(len(state), b"\0")


def from_the_future(state: bytes) -> bytes:
    """Makes 23, the last number that is one byte of CBOR, of two numbers: the version of the first section that not every version may
    read, and of its reader."""
    return re.sub(rb"(version).(jmin_reader).", lambda found: found[1] + b"\x17" + found[2] + b"\x17", state, count=1, flags=re.DOTALL)


def say_done() -> None:
    print("done", flush=True)


def stay() -> NoReturn:
    while True:
        signal.pause()


def message_type(data: bytes) -> int:
    """The second word of a message's head; see src/channel/channel.c."""
    return struct.unpack_from("<I", data, 4)[0]


if __name__ == "__main__":
    with contextlib.suppress(ConnectionError):  # a side that has gone while something was forwarded to it
        Proxy(*sys.argv[1:5], int(sys.argv[5])).run()  # type: ignore[call-arg]
